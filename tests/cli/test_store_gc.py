"""`kvrag store gc` and `kvrag store du`."""

import json
import os
from pathlib import Path

import chromadb
import pytest
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from kvrag.cli.gc import _seconds
from kvrag.errors import SettingsError
from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore
from tests.cli.collections_of_files import BELLS, GOATS

STORE = Path(".kvrag")
TEXTS = [f"Plain text number {number} of a collection that is about nothing else." for number in range(6)]


@pytest.fixture
def built(documents, build) -> Path:
    build(documents)
    return STORE


@pytest.fixture
def bare(kvrag, tmp_path) -> Path:
    """A store that a program of its own made, with a packet for each of the texts."""
    import numpy as np
    import torch

    scope = Scope(Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="float32"), Recipe())
    with PacketStore(tmp_path / "bare") as store:
        for number, text in enumerate(TEXTS):
            ids = np.arange(number, number + 4)
            store.put(Packet(scope.key(ids), scope, ids, torch.zeros(1, 2, 1, 4, 2)), [text])
    return tmp_path / "bare"


def packets(store: Path) -> int:
    return len(list(store.rglob("*.safetensors")))


@pytest.fixture
def gc(kvrag):
    """The JSON of a collection; grace is 0 unless told otherwise."""

    def run(*options) -> dict:
        result = kvrag("store", "gc", "--grace", "0s", "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def chroma(folder: Path, texts, name="mine", metadatas=None) -> Path:
    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    collection = client.get_or_create_collection(name, embedding_function=None)
    ids = [str(number) for number in range(len(texts))]
    collection.add(ids=ids, documents=list(texts), embeddings=[[0.0, 1.0]] * len(ids), metadatas=metadatas)
    return folder


def test_packets_of_chunks_that_are_gone_are_removed_once_they_are_old(built, kvrag, gc, documents, build, ask):
    assert gc()["removed"] == []
    (documents / "sub" / "bells.txt").unlink()
    build(documents)
    assert "1 young" in kvrag("store", "gc").stdout
    listed = kvrag("store", "gc", "--grace", "0s", "--dry-run").stdout
    assert "1 packets would be removed" in listed
    assert packets(built) == 5
    told = gc()
    assert (told["packets"], told["alive"], len(told["removed"])) == (5, 4, 1)
    assert packets(built) == 4
    assert ask("goats", "--top-k", 1)["cached_tokens"] > 30
    assert kvrag("store", "verify").exit_code == 0


@pytest.mark.parametrize("part", ["", "packets"])
def test_the_stores_own_chunks_are_in_use_however_it_is_named(built, gc, part, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps(TEXTS[0]))
    told = gc("--store", built / part, "--texts", tmp_path / "texts.jsonl")
    assert (told["alive"], told["removed"]) == (5, [])


def test_a_namespace_is_swept_by_its_own_collection(built, gc, documents, build, kvrag):
    (documents / "sub" / "bells.txt").unlink()
    build(documents, "--namespace", "other")
    (documents / "boats.md").unlink()
    build(documents, "--namespace", "other")
    told = gc("--namespace", "other")
    assert (told["packets"], len(told["removed"])) == (4, 1)
    assert {row["namespace"] for row in told["removed"]} == {"other"}
    result = kvrag("store", "gc", "--namespace", "no such")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "expected a collection" in result.stderr


def test_documents_of_chroma_are_in_use(bare, gc, tmp_path):
    folder = chroma(tmp_path / "chroma", TEXTS[:2])
    chroma(folder, TEXTS[2:4], "other")
    options = ("--store", bare, "--chroma", folder)
    assert len(gc(*options, "--dry-run")["removed"]) == 2
    assert len(gc(*options, "--collection", "mine", "--dry-run")["removed"]) == 4
    assert len(gc(*options)["removed"]) == 2
    assert packets(bare) == 4


@pytest.mark.parametrize("kind", ["chroma", "docstore"])
def test_nodes_are_in_use_as_they_are_and_as_the_model_sees_them(bare, gc, tmp_path, kind):
    """The packet of the first text belongs to a node's plain text, that of the second to what the LLM is shown."""
    plain = TextNode(text=TEXTS[0], metadata={"a": "b"})
    label, text = TEXTS[1].split(" ", 1)
    seen = TextNode(text=text, metadata={"label": label}, text_template="{metadata_str} {content}")
    seen.metadata_template = "{value}"
    assert seen.get_content(MetadataMode.LLM) == TEXTS[1]
    if kind == "docstore":
        store = SimpleDocumentStore()
        store.add_documents([plain, seen])
        store.persist(str(tmp_path / "docstore.json"))
        source = tmp_path / "docstore.json"
    else:
        from llama_index.core.vector_stores.utils import node_to_metadata_dict

        metadatas = [node_to_metadata_dict(node, remove_text=True) for node in (plain, seen)]
        source = chroma(tmp_path / "chroma", [plain.text, seen.text], metadatas=metadatas)
    told = gc("--store", bare, f"--{kind}", source)
    assert (told["alive"], len(told["removed"])) == (2, 4)


def test_texts_of_files_are_in_use(bare, gc, tmp_path):
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps(text) for text in TEXTS[:2]) + "\n\n")
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    (tmp_path / "texts" / "sub" / "one").write_text(f"{TEXTS[2]}\n")
    told = gc("--store", bare, "--texts", tmp_path / "texts.jsonl", "--texts", tmp_path / "texts")
    assert (told["alive"], len(told["removed"])) == (3, 3)


def bad_sources(folder: Path) -> dict[str, list]:
    (folder / "numbers.jsonl").write_text(json.dumps(TEXTS[0]) + "\n7\n")
    (folder / "no.jsonl").write_text("this is no JSON")
    (folder / "empty.jsonl").write_text("")
    (folder / "nothing").mkdir()
    (folder / "latin").mkdir()
    (folder / "latin" / "text").write_bytes(b"\xff\xfe")
    (folder / "fake").mkdir()
    (folder / "fake" / "chroma.sqlite3").write_bytes(b"no database" * 1000)
    (folder / "docs.json").write_text("{}")
    good = chroma(folder / "good", TEXTS)
    return {
        "no source": [],
        "a source that is not there": ["--texts", folder / "nowhere"],
        "numbers": ["--texts", folder / "numbers.jsonl"],
        "no JSON": ["--texts", folder / "no.jsonl"],
        "an empty file": ["--texts", folder / "empty.jsonl"],
        "an empty folder": ["--texts", folder / "nothing"],
        "no UTF-8": ["--texts", folder / "latin"],
        "no Chroma": ["--chroma", folder / "nowhere"],
        "a mistyped Chroma folder": ["--chroma", folder],
        "no Chroma server": ["--chroma", "http://127.0.0.1:9"],
        "a server without a name": ["--chroma", "http://"],
        "a broken Chroma folder": ["--chroma", folder / "fake"],
        "a mistyped collection": ["--chroma", good, "--collection", "no such"],
        "no document store": ["--docstore", folder / "nowhere.json"],
        "an empty document store": ["--docstore", folder / "docs.json"],
        "something else as document store": ["--docstore", folder / "no.jsonl"],
        "one good and one bad": ["--chroma", good, "--texts", folder / "nowhere"],
    }


def test_what_cannot_be_read_removes_nothing(bare, kvrag, tmp_path):
    for name, options in bad_sources(tmp_path).items():
        result = kvrag("store", "gc", "--store", bare, "--grace", "0s", *options)
        assert (result.exit_code, result.stdout) == (1, ""), name
        assert result.stderr.startswith("error: expected "), (name, result.stderr)
        assert result.stderr.count("\n") == 1, name
    assert packets(bare) == 6
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "options",
    [["--grace", "soon"], ["--grace", "-1d"], ["--collection", "x"], ["--identity", "xyz"], ["--identity", ""]],
)
def test_wrong_options_remove_nothing(bare, kvrag, options):
    result = kvrag("store", "gc", "--store", bare, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert packets(bare) == 6


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7 d", 604800)])
def test_durations(text, seconds):
    assert _seconds(text) == seconds
    with pytest.raises(SettingsError):
        _seconds(text.replace(text[-1], "y"))


def test_superseded_packets_and_old_quarantined_files_go_when_asked_for(built, gc, documents, build, kvrag):
    path = sorted((built / "packets" / "packets").rglob("*.safetensors"))[0]
    path.write_bytes(b"nonsense")
    kvrag("store", "repair")
    build(documents, "--codec", "int8")
    scopes = json.loads(kvrag("store", "du", "--json").stdout)["scopes"]
    assert {scope["codec"]: scope["packets"] for scope in scopes} == {"raw": 4, "int8": 5}
    (old,) = (scope["identity"] for scope in scopes if scope["codec"] == "raw")
    told = gc("--identity", old[:12], "--quarantine-days", 0)
    assert (len(told["removed"]), told["alive"], len(told["quarantine"])) == (4, 5, 1)
    assert {row["identity"] for row in told["removed"]} == {old}
    assert packets(built) == 5


def test_usage_is_shown_largest_first(built, kvrag, documents, build):
    (documents / "boats.md").write_text(f"{BELLS} {GOATS}")
    build(documents, "--namespace", "zz")
    (built / "packets" / "quarantine" / "x").write_bytes(b"123")
    told = json.loads(kvrag("store", "du", "--json").stdout)
    sizes = [scope["bytes"] for scope in told["scopes"]]
    assert sizes == sorted(sizes, reverse=True)
    assert told["quarantine"] == {"files": 1, "bytes": 3}
    files = [path for path in (built / "packets").rglob("*") if path.is_file()]
    packets_and_quarantine = sum(os.path.getsize(path) for path in files if not path.name.startswith("index"))
    assert told["bytes"] - told["index"]["bytes"] == packets_and_quarantine
    shown = kvrag("store", "du").stdout
    assert "(quarantine)" in shown
    assert "zz" in shown
    assert "raw" in shown


def test_objects_of_packets_that_are_gone_go_with_uploads(documents, build, gc, kvrag, tmp_path):
    remote = f"file://{tmp_path}/remote"
    build(documents, "--remote", remote)
    (documents / "sub" / "bells.txt").unlink()
    build(documents, "--remote", remote)
    assert len(gc("--remote", remote)["removed"]) == 1
    assert packets(tmp_path / "remote") == 5
    planned = kvrag("store", "gc", "--grace", "0s", "--uploads", "--remote", remote, "--dry-run").stdout
    assert "1 objects of the remote would be deleted" in planned
    assert packets(tmp_path / "remote") == 5
    told = gc("--uploads", "--remote", remote)
    assert (told["removed"], len(told["withdrawn"]), told["kept_back"]) == ([], 1, 0)
    assert packets(tmp_path / "remote") == 4
    assert kvrag("store", "verify", "--remote", remote).exit_code == 0


def test_uploads_without_a_remote_are_wrong_usage(built, kvrag):
    result = kvrag("store", "gc", "--uploads")
    assert result.exit_code == 2
    assert "give --remote or set KVRAG_REMOTE" in result.stderr
