"""Engines on machines of their own that share a remote."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from obstore.store import MemoryStore
from transformers import LlamaConfig

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from tests.conftest import CHUNKS, TINY, build_model

PROMPT = f"{CHUNKS[0]}\n{CHUNKS[1]}\nWhen was it lit?"

Machine = Callable[..., AbstractContextManager[PacketEngine]]


@pytest.fixture
def machine(hf_tokenizer, tmp_path) -> Machine:
    """An engine with a folder of its own."""

    @contextmanager
    def run(folder: str, remote: object) -> Iterator[PacketEngine]:
        model = LanguageModel(build_model(LlamaConfig(**TINY)), hf_tokenizer, name="tiny")
        options = {"adapter": "none", "strategy": "no-recompute", "computed_bytes": 0}
        options["loading"] = "load"  # so small a model computes packets sooner than it loads them
        with (
            PacketStore(tmp_path / folder, remote=remote) as store,
            PacketEngine(model, store=store, **options) as engine,
        ):
            yield engine

    return run


def test_what_one_machine_built_no_other_computes(machine: Machine):
    objects = MemoryStore()
    with machine("a", objects) as engine:
        assert engine.build(CHUNKS).built == len(CHUNKS)
        expected = engine.generate(PROMPT, max_new_tokens=4)
        assert engine.store.flush(10) == 0
    with machine("b", objects) as engine:
        report = engine.build(CHUNKS)
        assert (report.built, report.existing) == (0, len(CHUNKS))
        answer = engine.generate(PROMPT, max_new_tokens=4)
        assert (answer.text, answer.usage) == (expected.text, expected.usage)
        assert answer.usage.cached_tokens > 0
        assert engine.store.stat().tiers["remote"].hits == 2


def test_an_answer_does_without_a_remote_that_is_gone(machine: Machine, tmp_path):
    folder = tmp_path / "shared"
    with machine("a", f"file://{folder}") as engine:
        engine.build(CHUNKS)
        assert engine.store.flush(10) == 0
        expected = engine.generate(PROMPT, max_new_tokens=4, strategy="full-recompute")
    with machine("b", f"file://{folder}") as engine:
        assert engine.build(CHUNKS).built == 0
        shutil.rmtree(folder)
        answer = engine.generate(PROMPT, max_new_tokens=4)
        assert answer.usage.cached_tokens == 0
        assert answer.text == expected.text
