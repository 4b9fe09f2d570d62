"""Several engines on one model: by turns, and none closes it for another."""

import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
import torch

from kvrag import PacketEngine
from kvrag.errors import StoreError
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from kvrag.turns import Turns

from ..conftest import CHUNKS
from .test_writer import adapter_of, random_pairs

PROMPT = "Read this.\n" + "\n\n".join(CHUNKS) + "\nWhen was it lit?"
OPTIONS = {"adapter": "none", "strategy": "no-recompute", "computed_bytes": 0}


@pytest.fixture
def another(tmp_path):
    """Opens more engines, each over a store of its own."""
    with ExitStack() as opened:

        def open_another(model, **options):
            store = opened.enter_context(PacketStore(tmp_path / f"another-{time.perf_counter_ns()}"))
            return opened.enter_context(PacketEngine(model, store=store, **OPTIONS | options))

        yield open_another


def implementation(model):
    return model._model.config._attn_implementation


def answer(engine, tokens=8):
    return engine.generate(PROMPT, max_new_tokens=tokens).text


def test_closing_an_engine_leaves_a_given_model_to_others(engine, another):
    engine.build(CHUNKS)
    wanted = answer(engine)
    other = another(engine.model)
    other.build(CHUNKS)
    other.close()
    assert answer(engine) == wanted
    assert implementation(engine.model).startswith("kvrag_")
    engine.close()
    engine.model.close()
    engine.model.close()  # as often as one likes
    assert not implementation(engine.model).startswith("kvrag_")


def test_two_wrappers_of_a_model_share_it(tiny, another, hf_tokenizer):
    second = LanguageModel(tiny._model, hf_tokenizer)
    assert second.turns is tiny.turns
    tiny.close()
    assert answer(another(second))
    second.close()
    assert not implementation(second).startswith("kvrag_")


def test_an_engine_closes_the_model_that_it_opened(tiny, hf_tokenizer, tmp_path):
    tiny.close()
    with PacketEngine.from_pretrained((tiny._model, hf_tokenizer), store=tmp_path / "own", **OPTIONS) as engine:
        assert implementation(engine.model).startswith("kvrag_")
    assert not implementation(engine.model).startswith("kvrag_")
    with pytest.raises(StoreError, match="closed"):
        engine.store.stat()


def test_what_one_engine_builds_does_not_reach_what_another_answers(engine, another):
    """A writer acts by hooks on the model: they must not be there in another thread's pass."""
    engine.build(CHUNKS)
    wanted = answer(engine, 40)
    adapter = adapter_of(engine.model, random_pairs(engine.model), header=torch.randn(2, 64))
    builder = another(engine.model, adapter=adapter, strategy="kv-packet")
    ended = threading.Event()

    def build():
        for number in range(10_000):
            if ended.is_set():
                return
            builder.build([f"{text} ({number})" for text in CHUNKS])

    thread = threading.Thread(target=build)
    thread.start()
    try:
        assert {answer(engine, 40) for _ in range(5)} == {wanted}
    finally:
        ended.set()
        thread.join()


def test_turns_come_in_the_order_they_were_asked_for():
    turns, served = Turns(), []

    def wait(name):
        with turns:
            served.append(name)

    with turns:
        waiting = [threading.Thread(target=wait, args=(name,)) for name in range(5)]
        for number, thread in enumerate(waiting):
            thread.start()
            while len(turns._line) < number + 2:
                time.sleep(0.001)
    with turns:  # asked last
        assert served == [0, 1, 2, 3, 4]
    for thread in waiting:
        thread.join()


def test_a_turn_ends_with_an_error():
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns:
        raise ZeroDivisionError
    with turns:
        pass


def test_nobody_waits_for_one_who_was_interrupted():
    turns, came = Turns(), threading.Event()

    def take_a_turn():
        with turns:
            came.set()

    class Interrupted(threading.Condition):
        def wait_for(self, predicate, timeout=None):
            raise KeyboardInterrupt

    with turns:
        usual, turns._changed = turns._changed, Interrupted()
        with pytest.raises(KeyboardInterrupt):
            turns.__enter__()
        turns._changed = usual
        behind = threading.Thread(target=take_a_turn, daemon=True)
        behind.start()
    assert came.wait(10)


def test_a_process_waits_for_what_its_worker_is_doing_when_it_ends():
    """Nobody closed the engine; a thread that PyTorch has at that moment would abort the process."""
    script = """
import time, types, torch
from kvrag.turns import Turns
from kvrag.worker import Worker
worker = Worker(types.SimpleNamespace(turns=Turns(), device=torch.device("cpu")), None)
worker._send(lambda: (time.sleep(0.5), print("done", flush=True)))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
