"""An interrupt ends a build soon, and keeps what was computed."""

import threading

import pytest

from kvrag import engine as engine_module
from tests.conftest import CHUNKS


def test_the_pass_that_has_begun_is_kept_and_no_other_begins(new_engine, monkeypatch):
    engine = new_engine()
    monkeypatch.setattr(engine_module, "pass_tokens", lambda model: 1)  # one chunk a pass
    begun, interrupted = threading.Event(), threading.Event()
    encode, put = engine._loader.encode, engine.store.put
    encoded: list[str] = []

    def counted(scope, chunks):
        encoded.extend(chunk.text for chunk in chunks)
        if len(encoded) == 2:
            begun.set()
            assert interrupted.wait(10)
        return encode(scope, chunks)

    def struck(packet, texts):
        if not interrupted.is_set():
            assert begun.wait(10)
            interrupted.set()
            raise KeyboardInterrupt
        return put(packet, texts)

    monkeypatch.setattr(engine._loader, "encode", counted)
    monkeypatch.setattr(engine.store, "put", struck)
    with pytest.raises(KeyboardInterrupt):
        engine.build(CHUNKS)
    assert len(CHUNKS) > 2
    assert encoded == list(CHUNKS[:2])
    assert engine.store.stat().packets == 2
    report = engine.build(CHUNKS)
    assert (report.existing, report.built) == (2, len(CHUNKS) - 2)


def test_a_pass_that_has_not_begun_does_not_begin(new_engine, monkeypatch):
    """The model's thread has other work when the interrupt comes."""
    engine = new_engine()
    monkeypatch.setattr(engine_module, "pass_tokens", lambda model: 1)
    go, puts = threading.Event(), []
    encode, run, put = engine._loader.encode, engine._worker.run, engine.store.put
    encoded: list[str] = []

    def counted(scope, chunks):
        encoded.extend(chunk.text for chunk in chunks)
        return encode(scope, chunks)

    def occupied(job, *args):
        future = run(job, *args)
        if not encoded:
            future.result()
            run(go.wait, 10)
        return future

    def struck(packet, texts):
        puts.append(texts)
        if len(puts) == 1:
            raise KeyboardInterrupt
        go.set()
        return put(packet, texts)

    monkeypatch.setattr(engine._loader, "encode", counted)
    monkeypatch.setattr(engine._worker, "run", occupied)
    monkeypatch.setattr(engine.store, "put", struck)
    with pytest.raises(KeyboardInterrupt):
        engine.build(CHUNKS)
    run(lambda: None).result()
    assert encoded == [CHUNKS[0]]
    assert engine.store.stat().packets == 1


def test_a_job_that_is_cancelled_before_its_turn_is_never_called(new_engine):
    worker = new_engine()._worker
    go, called = threading.Event(), []
    first = worker.run(go.wait, 10)
    second, third = worker.run(called.append, 2), worker.run(called.append, 3)
    assert second.cancel()
    go.set()
    third.result(10)
    assert first.result(10)
    assert called == [3]
