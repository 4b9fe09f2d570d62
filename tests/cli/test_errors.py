"""Whatever goes wrong is one line on standard error and an exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvrag.cli.app import app
from kvrag.demo import retrieval
from kvrag.demo.retrieval import MissingExtraError


def assert_fails(result, code: int, *parts: str) -> None:
    lines = result.stderr.splitlines()
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert lines[-1].startswith("error: ")
    assert all(line.startswith(("skipped ", "warning: ", "error: ")) for line in lines)
    for part in parts:
        assert part in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["build"], "FOLDER"),
        (["build", "nowhere"], "does not exist"),
        (["build", "file"], "is a file"),
        (["build", "documents", "--chunk-tokens", "5"], "32"),
        (["build", "documents", "--chunk-tokens", "many"], "valid int"),
        (["build", "documents", "--stratgy", "none"], "No such option"),
        (["build", "documents", "--strategy", "magic"], "expected a strategy out of a3, "),
        (["ask"], "QUESTION"),
        (["ask", "why?", "--top-k", "0"], "top-k"),
        (["store"], "Missing command"),
        (["store", "burn"], "No such command"),
        (["fly"], "No such command"),
    ],
)
def test_wrong_usage_is_2(kvrag, documents, arguments, part):
    Path("file").write_text("")
    assert_fails(kvrag(*arguments), 2, part)
    assert not Path(".kvrag").exists()


def test_a_folder_without_documents_makes_no_store(kvrag, model, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert_fails(kvrag("build", folder, "--model", model), 1, "expected text, Markdown, HTML or PDF files")
    (folder / "a.png").write_text("no picture")
    (folder / "a.txt").write_text("")
    result = kvrag("build", folder, "--model", model)
    assert_fails(result, 1, "found none with text in it")
    assert "skipped a.png" in result.stderr
    assert not Path(".kvrag").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "half"])
def test_asking_what_is_no_store_says_how_to_make_one(kvrag, tmp_path, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("")
    elif kind != "missing":
        place.mkdir()
    if kind == "half":
        (place / "chroma").mkdir()
    before = sorted(os.walk(tmp_path))
    assert_fails(kvrag("ask", "why?", "--store", place), 1, f"run: kvrag build FOLDER --store {place}")
    assert sorted(os.walk(tmp_path)) == before


def test_an_empty_question_is_refused(kvrag, documents, build):
    build(documents)
    assert_fails(kvrag("ask", "  "), 2, "QUESTION")


def test_a_model_that_is_none_is_named(kvrag, documents, tmp_path):
    assert_fails(kvrag("build", documents, "--model", tmp_path / "nothing"), 1, "expected a causal language model")


def test_a_chunk_must_fit_into_the_context_window(kvrag, documents, model):
    result = kvrag("build", documents, "--model", model, "--chunk-tokens", 4096)
    assert_fails(result, 2, "expected --chunk-tokens below 4096")


def test_a_store_that_is_a_file_is_refused(kvrag, documents, model):
    Path("store").write_text("")
    assert_fails(kvrag("build", documents, "--model", model, "--store", "store"), 1, "cannot make the store")


def test_nothing_is_built_into_a_bare_packet_store(kvrag, documents, build, model):
    build(documents)
    result = kvrag("build", documents, "--model", model, "--store", ".kvrag/packets")
    assert_fails(result, 1, "found the bare packet store .kvrag/packets")
    assert_fails(kvrag("ask", "why?", "--store", ".kvrag/packets"), 1, "found the bare packet store")


def test_a_damaged_collection_is_named(kvrag, documents, build, model, tmp_path):
    build(documents)
    os.rename(".kvrag", "damaged")  # Chroma keeps open clients by path
    Path("damaged/chroma/chroma.sqlite3").write_bytes(b"this is no database" * 1000)
    assert_fails(kvrag("ask", "why?", "--model", model, "--store", "damaged"), 1, "Chroma cannot open")


def test_a_missing_extra_is_named(kvrag, documents, model, monkeypatch):
    def missing() -> None:
        raise MissingExtraError("sentence-transformers")

    monkeypatch.setattr(retrieval, "sentence_embedding", missing)
    assert_fails(kvrag("build", documents, "--model", model), 1, "pip install 'kvrag[demo]'")
    monkeypatch.setitem(sys.modules, "llama_index.readers.file", None)
    assert_fails(kvrag("build", documents, "--model", model), 1, "pip install 'kvrag[demo]'")


def test_what_nobody_expected_is_one_line_too_unless_debugging(kvrag, documents, model, monkeypatch):
    def strange() -> None:
        raise RuntimeError("the moon\nis full")

    monkeypatch.setattr(retrieval, "sentence_embedding", strange)
    assert_fails(kvrag("build", documents, "--model", model), 1, "unexpected RuntimeError: the moon is full", "--debug")
    result = kvrag("--debug", "build", documents, "--model", model)
    assert isinstance(result.exception, RuntimeError)


def test_other_commands_get_the_same_treatment(kvrag, monkeypatch):
    monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])

    @app.command()
    def stumble() -> None:
        raise KeyboardInterrupt

    assert_fails(kvrag("stumble"), 130, "interrupted")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from kvrag.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_and_version_need_no_torch():
    code = (
        "import sys, kvrag.cli; sys.argv = ['kvrag', '--help']\n"
        "try: kvrag.cli.main()\n"
        "finally: assert not {'torch', 'transformers', 'llama_index', 'chromadb'} & set(sys.modules)"
    )
    help = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (help.returncode, help.stderr) == (0, "")
    assert all(name in help.stdout for name in ("build", "ask", "store"))


def test_without_arguments_there_is_help(kvrag):
    assert kvrag().stdout == kvrag("--help").stdout
    assert kvrag("--version").stdout.startswith("kvrag 0.")


def test_a_real_process_ends_the_same_way(tmp_path):
    result = command("build", str(tmp_path / "nowhere"))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    result = command("store", "ls", "--store", str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
