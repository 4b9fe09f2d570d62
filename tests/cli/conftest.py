import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

pytest.importorskip("llama_index.vector_stores.chroma")
pytest.importorskip("llama_index.readers.file")

from typer.testing import CliRunner

from kvrag.cli import app
from kvrag.demo import retrieval
from tests.cli.collections_of_files import write_documents
from tests.cli.process_server import ProcessServer
from tests.cli.word_embedding import WordEmbedding
from tests.conftest import TINY, build_model


@pytest.fixture(scope="session")
def save_model(hf_tokenizer, tmp_path_factory) -> Callable[[int], Path]:
    """A folder with the tiny model of this seed and its tokenizer."""

    def save(seed: int) -> Path:
        folder = tmp_path_factory.mktemp("model")
        build_model(LlamaConfig(**TINY), seed=seed).save_pretrained(folder)
        hf_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def model(save_model) -> Path:
    return save_model(0)


@pytest.fixture
def documents(tmp_path) -> Path:
    return write_documents(tmp_path / "documents")


@pytest.fixture
def kvrag(monkeypatch, tmp_path) -> Callable[..., Any]:
    """Run a command in this process."""
    monkeypatch.setattr(retrieval, "sentence_embedding", WordEmbedding)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="kvrag")

    return run


@pytest.fixture
def build(kvrag, model) -> Callable[..., Any]:
    def run(folder: object, *options: object) -> Any:
        result = kvrag("build", folder, "--model", model, *options)
        assert result.exit_code == 0, result.stderr
        return result

    return run


@pytest.fixture
def ask(kvrag, model) -> Callable[..., Any]:
    """The JSON that a question is answered with."""

    def run(question: str, *options: object) -> Any:
        result = kvrag("ask", question, "--model", model, "--max-new-tokens", 4, "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessServer]:
    server = ProcessServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def expected(model, tmp_path_factory) -> Any:
    """What is cached and retrieved after an undisturbed build of the documents in chunks of 32 tokens."""
    folder = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "sentence_embedding", WordEmbedding)
        patch.chdir(folder)
        options = ["--model", str(model), "--store", str(folder / "store")]
        CliRunner().invoke(app, ["build", str(write_documents(folder / "documents")), "--chunk-tokens", "32", *options])
        arguments = ["ask", "goats", "--top-k", "99", "--json", "--max-new-tokens", "4", *options]
        return summary(json.loads(CliRunner().invoke(app, arguments).stdout))


def summary(told: Any) -> Any:
    """Chunks and tokens of an answer, without scores and texts that depend on the order of equals."""
    sources = sorted((source["file"], source["page"] or "", source["text"]) for source in told["sources"])
    return sources, told["cached_tokens"]
