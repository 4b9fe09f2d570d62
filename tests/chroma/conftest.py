"""Chroma in a folder and behind HTTP, and packets of what is in it."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("chromadb")

import chromadb
from typer.testing import CliRunner

from kvrag.cli import app
from kvrag.engine import PacketEngine
from tests.chroma.server import chroma_server


class Place(NamedTuple):
    """Where collections are: what `kvrag store gc --chroma` takes, and a client."""

    name: Path | str
    client: Any


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[str]:
    with chroma_server(tmp_path_factory.mktemp("server") / "chroma") as url:
        yield url


@pytest.fixture(params=["folder", "server"])
def place(request, tmp_path) -> Iterator[Place]:
    """An empty Chroma: a PersistentClient's folder, or a server over HTTP."""
    name = tmp_path / "chroma" if request.param == "folder" else request.getfixturevalue("server")
    client = open_chroma(str(name))
    yield Place(name, client)
    for collection in client.list_collections():
        client.delete_collection(collection.name)


@pytest.fixture
def collection(place: Place) -> Any:
    return place.client.create_collection(f"chunks-{uuid.uuid4().hex}", embedding_function=None)


@pytest.fixture
def packets(new_engine) -> PacketEngine:
    """Keeps no computed states: what is cached comes from packets."""
    return new_engine(computed_bytes=0)


@pytest.fixture
def gc(packets: PacketEngine, place: Place) -> Callable[[], dict[str, Any]]:
    """Sweep the engine's store by what Chroma holds now."""
    return lambda: sweep(packets.store.root, place.name)


def sweep(store: Path, chroma: Path | str) -> dict[str, Any]:
    """The JSON of `kvrag store gc` without grace."""
    arguments = ["--store", str(store), "--chroma", str(chroma), "--grace", "0s", "--json"]
    result = CliRunner().invoke(app, ["store", "gc", *arguments], prog_name="kvrag")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def open_chroma(name: str) -> Any:
    """A client of the server at a URL, or of a folder."""
    settings = chromadb.Settings(anonymized_telemetry=False)
    if name.startswith("http://"):
        host, port = name.removeprefix("http://").split(":")
        return chromadb.HttpClient(host, int(port), settings=settings)
    return chromadb.PersistentClient(name, settings)


def cached(engine: PacketEngine, text: str) -> int:
    """Tokens of a prompt around the text that came from packets."""
    return engine.generate(f"Read: {text}\nWell?", max_new_tokens=1).usage.cached_tokens


def tokens(engine: PacketEngine, *texts: str) -> int:
    """Tokens that the packets of the texts have to have."""
    return sum(len(engine.model.tokenizer.encode(text.strip(), literal=True)) for text in texts)


def documents(collection: Any) -> list[str]:
    return collection.get(include=["documents"])["documents"]
