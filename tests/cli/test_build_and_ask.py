"""From a folder of files to answers."""

import json
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from kvrag.cli import build as build_command
from kvrag.cli.documents import Skipped, UnreadableError, find_files, read_documents
from kvrag.sources import open_model
from tests.cli.collections_of_files import BELLS, BOXES, BREAD, GOATS, LAMPS
from tests.training.test_packed_pass import make_adapter

CHUNKS = "chunks   {} added, {} unchanged, {} removed"


def packets(stdout: str) -> str:
    return next(line for line in stdout.splitlines() if line.startswith("packets"))


def test_every_kind_of_file_is_read_and_the_others_are_named(documents, build):
    result = build(documents)
    assert "files    4 read, 3 skipped, 1 hidden left out" in result.stdout
    assert CHUNKS.format(5, 0, 0) in result.stdout  # a PDF's pages are two
    assert packets(result.stdout) == "packets  5 built, 0 existing, 0 too short, 0 rejected"
    assert "skipped picture.png: not text, Markdown, HTML or PDF by its name" in result.stderr
    assert "skipped latin.txt: not UTF-8 (byte 0)" in result.stderr
    assert "skipped broken.pdf: " in result.stderr
    assert ".hidden" not in result.stderr


def test_answers_come_from_the_packets_of_the_chunks_that_were_read(documents, build, ask):
    build(documents)
    for question, file, page, text in (
        ("How many goats does the night boat carry?", "boats.md", None, f"# Boats\n\n{GOATS}"),
        ("What was the school bell cast from?", "sub/bells.txt", None, BELLS),
        ("How is bread sold in the upper town?", "bread.html", None, f"Bread\n{BREAD}\nSo it is."),
        ("What is an archive box tied with, string?", "archive.pdf", "1", BOXES),
        ("Who trims four lamps at dusk, the lighthouse keeper?", "archive.pdf", "2", LAMPS),
    ):
        told = ask(question, "--top-k", 1)
        (source,) = told["sources"]
        assert (source["file"], source["page"], source["text"].strip()) == (file, page, text)
        assert told["cached_tokens"] > 30
        assert told["cached_tokens"] + told["computed_tokens"] == told["prompt_tokens"]
        assert told["completion_tokens"] == 4


def test_all_retrieved_chunks_are_cached(documents, build, ask):
    build(documents)
    one, all = (ask("the night boat", "--top-k", top_k)["cached_tokens"] for top_k in (1, 99))
    assert all > 4 * one


def test_building_again_changes_nothing(documents, build, ask):
    build(documents)
    before = ask("goats", "--top-k", 5)
    result = build(documents)
    assert CHUNKS.format(0, 5, 0) in result.stdout
    assert packets(result.stdout) == "packets  0 built, 5 existing, 0 too short, 0 rejected"
    assert ask("goats", "--top-k", 5)["sources"] == before["sources"]


def test_changed_files_replace_their_chunks_and_lost_files_take_them_along(documents, build, ask):
    build(documents)
    (documents / "boats.md").write_text("The day boat to Corran carries no goats at all, only the post and the baker.")
    (documents / "sub" / "bells.txt").unlink()
    result = build(documents)
    assert CHUNKS.format(1, 3, 2) in result.stdout
    told = ask("How many goats does the boat carry, and the school bell?", "--top-k", 99)
    texts = " ".join(source["text"] for source in told["sources"])
    assert "no goats at all" in texts
    assert GOATS not in texts
    assert BELLS not in texts


def test_a_file_that_cannot_be_read_this_time_keeps_its_chunks(documents, build, ask):
    build(documents)
    (documents / "sub" / "bells.txt").write_bytes(b"\xff\xfe")
    assert CHUNKS.format(0, 4, 0) in build(documents).stdout
    assert ask("What was the school bell cast from?", "--top-k", 1)["sources"][0]["text"] == BELLS


def test_several_folders_share_a_store(documents, build, ask, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "boats.md").write_text("The mail boat of Fennock is rowed by two sisters who never speak to each other.")
    build(documents)
    assert CHUNKS.format(1, 0, 0) in build(other).stdout
    assert CHUNKS.format(0, 5, 0) in build(documents).stdout
    assert {source["file"] for source in ask("boat", "--top-k", 6)["sources"]} >= {"boats.md", "archive.pdf"}
    result = build(documents / "sub")  # what the model sees of a file's path has changed
    assert CHUNKS.format(1, 0, 1) in result.stdout


def test_long_files_are_split_by_the_models_own_tokens(documents, build, ask, model):
    from transformers import AutoTokenizer

    (documents / "long.txt").write_text(" ".join(f"Sentence {n} is about the goats of island {n}." for n in range(60)))
    build(documents, "--chunk-tokens", 100)
    tokenizer = AutoTokenizer.from_pretrained(model)
    told = ask("goats of island", "--top-k", 20)
    lengths = [
        len(tokenizer.encode(s["text"], add_special_tokens=False)) for s in told["sources"] if s["file"] == "long.txt"
    ]
    assert len(lengths) > 5
    assert max(lengths) <= 100
    assert told["cached_tokens"] > sum(lengths)


def test_a_context_too_long_for_one_prompt_is_asked_in_several(documents, build, ask):
    (documents / "long.txt").write_text(" ".join(f"Sentence {n} is about the goats of island {n}." for n in range(400)))
    build(documents, "--chunk-tokens", 500)
    told = ask("goats of island", "--top-k", 40)
    assert told["prompts"] > 1
    assert told["cached_tokens"] > 4096


def test_several_prompts_say_which_packets_answered_them(documents, build, ask, kvrag, model):
    (documents / "long.txt").write_text(" ".join(f"Sentence {n} is about the goats of island {n}." for n in range(400)))
    build(documents, "--chunk-tokens", 500)
    told = ask("goats of island", "--top-k", 40, "--strategy", "kv-packet:top_n=2")
    assert len(told["kept"]) == told["prompts"] > 1
    assert all(kept is None or 1 <= len(kept) <= 2 for kept in told["kept"])
    assert any(told["kept"])
    options = ["--model", model, "--top-k", 40, "--max-new-tokens", 2]
    shown = kvrag("ask", "goats of island", "--strategy", "kv-packet:top_n=2", *options)
    assert "; answered from " in shown.stdout


def test_full_recompute_stands_beside_the_packets(documents, build, ask, kvrag, model):
    build(documents)
    told = ask("goats", "--full")
    assert told["full"]["strategy"] == "full-recompute"
    assert (told["full"]["cached_tokens"], told["cached_tokens"] > 0) == (0, True)
    assert told["ratio"] == told["full"]["first_token_ms"] / told["first_token_ms"]
    shown = kvrag("ask", "goats", "--model", model, "--max-new-tokens", 4, "--full")
    assert "full-recompute" in shown.stdout
    times = re.search(r"first token: \S+ takes (\d+\.\d) times as long as (kv-packet|full-recompute)", shown.stdout)
    assert times
    assert float(times[1]) >= 1


def test_an_answer_is_shown_with_its_sources_and_what_it_cost(documents, build, kvrag, model):
    build(documents)
    result = kvrag("ask", "What was the school bell cast from?", "--model", model, "--max-new-tokens", 4, "--top-k", 1)
    assert "sub/bells.txt" in result.stdout
    assert "tokens cached" in result.stdout
    assert "first token after" in result.stdout


def test_namespaces_do_not_see_each_other(documents, build, ask, kvrag, model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret.txt").write_text("The goats of the other tenant are all called Wilhelmina, whatever they say.")
    build(documents, "--namespace", "one tenant")
    build(other, "--namespace", "other tenant")
    assert [s["file"] for s in ask("goats", "--namespace", "other tenant", "--top-k", 9)["sources"]] == ["secret.txt"]
    assert "secret.txt" not in [s["file"] for s in ask("goats", "--namespace", "one tenant", "--top-k", 9)["sources"]]
    result = kvrag("ask", "goats", "--model", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "namespace 'default'" in result.stderr


def test_the_strategy_of_the_build_answers(documents, build, ask):
    build(documents, "--strategy", "no-recompute")
    told = ask("goats", "--strategy", "no-recompute")
    assert (told["strategy"], told["cached_tokens"] > 0) == ("no-recompute", True)


def test_the_codec_of_the_build_answers(documents, build, ask, kvrag, model):
    build(documents)
    build(documents, "--codec", "int8")
    assert ask("goats", "--codec", "int8")["cached_tokens"] == ask("goats")["cached_tokens"] > 0
    result = kvrag("ask", "goats", "--codec", "int4", "--model", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "found 10 in .kvrag that do not serve (codec raw instead of int4)" in result.stderr
    result = kvrag("ask", "goats", "--codec", "zip", "--model", model)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "raw, int8, fp8, int4" in result.stderr


def test_a_store_of_another_model_or_other_options_is_named(documents, build, kvrag, save_model, model):
    build(documents)
    result = kvrag("ask", "goats", "--model", save_model(1))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: expected packets of" in result.stderr
    assert "found 5 in .kvrag that do not serve (another model)" in result.stderr
    result = kvrag("ask", "goats", "--namespace", "other", "--strategy", "control-chat", "--model", model)
    assert "found 5 in .kvrag that do not serve (another strategy, namespace 'default')" in result.stderr


def test_packets_with_another_adapter_or_without_texts_are_named(documents, build, kvrag, model, tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    make_adapter(open_model(str(model), "cpu")).save(adapter)
    build(documents, "--adapter", adapter)
    result = kvrag("ask", "goats", "--adapter", "none", "--model", model)
    assert "that do not serve (another adapter or strategy)" in result.stderr
    first = min(Path(".kvrag/packets/packets").rglob("*.safetensors"), key=lambda path: path.name)
    first.write_bytes(b"")
    assert kvrag("ask", "goats", "--adapter", "none", "--model", model).stderr == result.stderr
    kvrag("store", "repair")
    Path(".kvrag/packets/index.sqlite").unlink()
    kvrag("store", "repair")
    result = kvrag("ask", "goats", "--adapter", adapter, "--model", model)
    assert "found 4 in .kvrag that do not serve (no text leads to them)" in result.stderr


def test_chunks_that_lost_their_packets_are_told_about(documents, build, kvrag, model):
    build(documents)
    (documents / "new.txt").write_text("A new text about the submarine of the harbour office, and what it is used for.")
    shutil.copytree(".kvrag/packets", "packets before")
    build(documents)
    shutil.rmtree(".kvrag/packets")
    os.rename("packets before", ".kvrag/packets")
    result = kvrag("ask", "submarine", "--top-k", 1, "--model", model, "--max-new-tokens", 2)
    assert result.exit_code == 0
    assert "0 tokens cached" in result.stdout
    assert "warning: none of these chunks had a packet" in result.stderr


def test_strange_names_and_strange_files_do_no_harm(documents, build, ask, tmp_path):
    (documents / os.fsdecode(b"caf\xe9 \x1b[31m.txt")).write_text(
        "A text in a file whose name is neither UTF-8 nor printable."
    )
    (documents / "loop").symlink_to(documents)
    (documents / "gone.txt").symlink_to("nowhere")
    (documents / "linked.txt").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("A text that lies outside, and a link in the folder that leads to it, no more.")
    (documents / "empty.md").write_text(" \n")
    (documents / "bom.txt").write_bytes(b"\xef\xbb\xbfA text that begins with a byte order mark, as Windows likes it.")
    (documents / "LOUD.TXT").write_text("A text whose file name is written in capital letters, and it is read too.")
    os.mkfifo(documents / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(documents / "socket.txt"))
    result = build(documents)
    assert "files    8 read" in result.stdout
    for line in (
        "loop: a link to a folder",
        "gone.txt: No such file",
        "empty.md: there is no text",
        "pipe.txt: not a reg",
    ):
        assert f"skipped {line}" in result.stderr
    assert "\x1b" not in result.stderr
    assert CHUNKS.format(0, 9, 0) in build(documents).stdout
    told = ask("a file whose name is neither printable", "--top-k", 1)
    assert told["sources"][0]["file"] == "caf\N{REPLACEMENT CHARACTER} \x1b[31m.txt"
    assert told["cached_tokens"] > 30
    assert ask("byte order mark, as Windows likes it", "--top-k", 1)["sources"][0]["text"].startswith("A text")


def test_the_store_may_lie_within_the_folder(documents, build):
    build(documents, "--store", documents / "store")
    (documents / "store" / "note.txt").write_text("not a document")
    assert CHUNKS.format(0, 5, 0) in build(documents, "--store", documents / "store").stdout


def test_a_folder_below_a_hidden_one_is_read(build, tmp_path):
    folder = tmp_path / ".config" / "documents"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(GOATS)
    assert "files    1 read\n" in build(folder).stdout


def test_a_folder_that_cannot_be_entered_this_time_keeps_its_chunks(documents, build, monkeypatch):
    build(documents)

    def without_sub(folder, **options):
        found = find_files(folder, **options)
        found.files = [path for path in found.files if path.parent.name != "sub"]
        found.skipped.append(Skipped(folder / "sub", "Permission denied"))
        return found

    monkeypatch.setattr(build_command, "find_files", without_sub)
    result = build(documents)
    assert CHUNKS.format(0, 4, 0) in result.stdout
    assert "skipped sub: Permission denied" in result.stderr


def test_folders_and_files_without_permission_are_named():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "locked").mkdir(mode=0o000)
        (folder / "locked.txt").write_text(GOATS)
        (folder / "locked.txt").chmod(0o000)
        somebody_else = 65534 if os.geteuid() == 0 else os.geteuid()
        before = os.geteuid()
        os.seteuid(somebody_else)
        try:
            found = find_files(folder, leave_out=folder / ".kvrag")
            with pytest.raises(UnreadableError, match="Permission denied"):
                read_documents(folder / "locked.txt", "locked.txt")
        finally:
            os.seteuid(before)
    assert [(skip.path.name, skip.reason) for skip in found.skipped] == [("locked", "Permission denied")]


def test_question_and_answer_must_leave_room_for_a_chunk(documents, build, kvrag, model):
    build(documents)
    result = kvrag("ask", "goats", "--model", model, "--max-new-tokens", 4096)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "lower --max-new-tokens" in result.stderr


def test_an_estimate_builds_nothing_and_says_what_a_build_would(documents, kvrag, model, build, tmp_path):
    result = kvrag("build", documents, "--model", model, "--estimate")
    assert result.exit_code == 0, result.stderr
    assert "nothing was built" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents"]
    told = json.loads(kvrag("build", documents, "--model", model, "--estimate", "--json").stdout)
    assert (told["chunks"], told["policy"]) == (5, "eager")
    build(documents)
    (stat,) = [json.loads(kvrag("store", "stat", "--json").stdout)]
    assert told["bytes"]["raw"] == stat["bytes"]


def test_json_belongs_to_an_estimate(documents, kvrag):
    assert kvrag("build", documents, "--json").exit_code == 2


def test_a_build_on_first_use_leaves_packets_to_the_questions(documents, build, ask, kvrag):
    result = build(documents, "--policy", "on-first-use")
    assert packets(result.stdout) == "packets  0 built, 0 existing, 5 registered, 0 too short, 0 rejected"
    first, again = (ask("How many goats does the night boat carry?", "--top-k", 2) for _ in range(2))
    assert first["cached_tokens"] == 0
    assert again["cached_tokens"] > 30
    assert json.loads(kvrag("store", "stat", "--json").stdout)["packets"] == 2
    assert packets(build(documents).stdout) == "packets  3 built, 2 existing, 0 too short, 0 rejected"


def test_an_unknown_policy_is_refused_before_a_model_is_loaded(documents, kvrag):
    result = kvrag("build", documents, "--model", "nowhere", "--policy", "lazy")
    assert result.exit_code != 0
    assert "expected a policy out of eager" in result.stderr


def test_an_answer_that_was_in_doubt_says_so(documents, build, ask, kvrag, model):
    build(documents)
    asked = "How many goats does the night boat carry?"
    kept = ask(asked, "--strategy", "kv-packet:confidence=0.000000001")
    again = ask(asked, "--strategy", "kv-packet:confidence=1")
    assert (kept["fell_back"], again["fell_back"]) == (False, True)
    assert kept["cached_tokens"] > again["cached_tokens"] == 0
    assert again["answer"] == ask(asked, "--strategy", "full-recompute:segmented=True")["answer"]
    told = kvrag("ask", asked, "--model", model, "--strategy", "kv-packet:confidence=1", "--max-new-tokens", 2)
    assert "doubtful from packets, so answered once more" in told.stdout
    assert "had a packet" not in told.stderr


def test_an_answer_from_the_packets_it_attends_to_most_says_so(documents, build, ask, kvrag, model):
    build(documents)
    asked = "How many goats does the night boat carry?"
    one = ask(asked, "--strategy", "kv-packet:top_n=1", "--top-k", 2)
    assert one["kept"] in ([[0]], [[1]])
    assert ask(asked, "--top-k", 2)["kept"] == [None]
    options = ["--model", model, "--top-k", 2, "--max-new-tokens", 2]
    told = kvrag("ask", asked, "--strategy", "kv-packet:top_n=1", *options)
    assert "; answered from 1 of the packets" in told.stdout
    assert "of the packets" not in kvrag("ask", asked, *options).stdout
