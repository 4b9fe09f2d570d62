"""Two processes on one collection and one store, and both of them carried to another machine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from kvrag.engine import PacketEngine
from tests.chroma.application import COLLECTION, PATIENCE, entry, open_engine, work
from tests.chroma.conftest import Place, open_chroma, sweep
from tests.chroma.server import chroma_server
from tests.conftest import TINY, build_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(hf_tokenizer, tmp_path) -> Path:
    """The folder of a model."""
    build_model(LlamaConfig(**TINY)).save_pretrained(tmp_path / "model")
    hf_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def packets(model, tmp_path) -> Iterator[PacketEngine]:
    """The engine that every process opens for itself."""
    with open_engine(model, tmp_path / "store") as engine:
        yield engine


@contextmanager
def application(**told: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that has opened engine and collection and goes to work."""
    arguments = [sys.executable, "-m", "tests.chroma.application", json.dumps(told, default=str)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", process.communicate()
            yield process
        finally:
            process.kill()


def outcome(process: "subprocess.Popen[str]") -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0, stderr
    return json.loads(stdout)


def unpaired(told: dict[str, Any]) -> list[str]:
    """Texts that were answered from something else than their whole packet."""
    return [text for text, (found, expected) in told["answers"].items() if found != expected]


@pytest.mark.slow
def test_processes_that_write_and_ask_at_once_find_each_others_packets(place: Place, packets, gc, model):
    """Whoever finds a text in the collection finds its packet, since it was built before the text was stored."""
    collection = place.client.create_collection(COLLECTION, embedding_function=None)
    told = {"model": model, "store": packets.store.root, "chroma": place.name, "everything": 50}
    with application(**told, own=list(range(30))) as other:
        here = work(packets, collection, range(49, 19, -1), 50)
        there = outcome(other)
    for each in (here, there):
        assert sorted(each["answers"]) == sorted(map(entry, range(50)))
        assert unpaired(each) == []
    assert min(here["built"], there["built"]) > 0
    swept = gc()
    assert (swept["packets"], swept["removed"]) == (50, [])


@contextmanager
def chroma_of(kind: str, folder: Path) -> Iterator[str]:
    """What to open for the Chroma in a folder: the folder itself, or a server on it."""
    if kind == "folder":
        yield str(folder)
    else:
        with chroma_server(folder) as url:
            yield url


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "server"])
def test_what_is_copied_to_another_machine_is_found_there(packets: PacketEngine, model, tmp_path, kind):
    """Collection, store and model elsewhere, a new process, and nothing left at the old places."""
    (tmp_path / "here").mkdir()
    with chroma_of(kind, tmp_path / "here" / "chroma") as name:
        collection = open_chroma(name).create_collection(COLLECTION, embedding_function=None)
        work(packets, collection, range(12), 12)
    packets.build([entry(99)], progress=False)  # of which the collection knows nothing
    packets.store.root.rename(tmp_path / "here" / "store")
    model.rename(tmp_path / "here" / "model")
    there = tmp_path / "there" / "and deeper"
    shutil.copytree(tmp_path / "here", there)
    (tmp_path / "here").rename(tmp_path / "gone")
    with chroma_of(kind, there / "chroma") as name:
        told = {"model": there / "model", "store": there / "store", "chroma": name}
        with application(**told, own=[], everything=12) as process:
            found = outcome(process)
        assert sorted(found["answers"]) == sorted(map(entry, range(12)))
        assert unpaired(found) == []
        assert found["built"] == 0
        swept = sweep(there / "store", name)
        assert (swept["alive"], len(swept["removed"])) == (12, 1)
