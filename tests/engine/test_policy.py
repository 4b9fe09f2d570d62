"""Packets that are built when prompts ask for them."""

import threading
import time

import pytest
import torch

from kvrag import deferred, worker
from kvrag.errors import SettingsError
from kvrag.policy import policy_from_name
from tests.conftest import CHUNKS

PROMPT = f"Read this.\n\n{CHUNKS[0]}\n\n{CHUNKS[1]}\n\nWho lit the lighthouse?"


def ask(engine, prompt: str = PROMPT) -> int:
    """Tokens of an answer's prompt that came from packets, once what it asked for is built."""
    completion = engine.generate(prompt, max_new_tokens=2)
    engine.wait_for_builds()
    return completion.usage.cached_tokens


def packets(engine) -> int:
    return engine.store.stat().packets


def test_registered_texts_get_their_packet_when_a_prompt_has_them(new_engine):
    engine = new_engine(policy="on-first-use")
    report = engine.build(CHUNKS)
    assert (report.registered, report.built, report.bytes, packets(engine)) == (len(CHUNKS), 0, 0, 0)
    assert ask(engine) == 0
    assert packets(engine) == 2
    assert ask(engine) > 30
    assert list(engine.store.verify()) == []


def test_packets_built_later_are_those_of_an_eager_build(new_engine):
    eager = new_engine(folder="eager", computed_bytes=0)
    lazy = new_engine(folder="lazy", policy="on-first-use", computed_bytes=0)
    eager.build(CHUNKS[:2])
    lazy.build(CHUNKS[:2])
    ask(lazy)
    keys = [row.key for row in eager.store.ls()]
    assert [row.key for row in lazy.store.ls()] == keys
    for key in keys:
        torch.testing.assert_close(lazy.store.get(key).kv, eager.store.get(key).kv)
    assert ask(lazy) == ask(eager)


def test_a_text_without_its_packet_is_a_document_and_nothing_else(new_engine):
    """What looks like a special token in it stays text, as it does in a packet."""
    text = "The night boat carries twelve goats. <|im_end|> It does not sail in fog."
    engine = new_engine(policy="on-first-use")
    engine.build([text])
    segments = engine.prepare(f"Read this.\n\n{text}\n\nHow many goats?").segments
    ids = [token for segment in segments for token in segment.ids]
    assert engine.model.tokenizer.encode("<|im_end|>") != engine.model.tokenizer.encode("<|im_end|>", literal=True)
    assert not set(engine.model.tokenizer.encode("<|im_end|>")) <= set(ids)


def test_a_hot_set_holds_what_was_met_often_enough_even_over_restarts(new_engine):
    engine = new_engine(policy="hot-set=3")
    engine.build(CHUNKS)
    ask(engine)
    ask(engine, PROMPT.replace(CHUNKS[1], CHUNKS[1] * 2))  # twice in a prompt is one use
    assert packets(engine) == 0
    engine.close()
    again = new_engine(policy="hot-set=3")
    ask(again, f"{CHUNKS[0]}\n\nWho lit it?")
    assert [packets(again), len(CHUNKS)] == [1, again.build(CHUNKS).registered + 1]


def size_of_a_packet(new_engine) -> int:
    engine = new_engine(folder="elsewhere")
    engine.build(CHUNKS[:3])
    return max(row.bytes for row in engine.store.ls())


def asked(engine, *numbers: int) -> None:
    for number in numbers:
        ask(engine, f"Read this.\n\n{CHUNKS[number]}\n\nWhat of it?")


def kept(engine) -> set[int]:
    keys = {row.key for row in engine.store.ls()}
    ids = [engine.model.tokenizer.encode(chunk, literal=True) for chunk in CHUNKS]
    return {number for number, found in enumerate(ids) if engine.scope().key(found) in keys}


@pytest.mark.parametrize("policy", ["hot-set", "on-first-use"])
def test_within_a_budget_the_packets_that_prompts_use_most_are_kept(new_engine, policy):
    budget = int(2.5 * size_of_a_packet(new_engine))
    engine = new_engine(policy=policy, disk_bytes=budget, computed_bytes=0)
    assert engine.build(CHUNKS).registered == len(CHUNKS)
    asked(engine, 0, 0, 0, 0, 1, 1, 1)
    assert kept(engine) == {0, 1}
    asked(engine, 2, 2)  # not yet as often as 1
    assert kept(engine) == {0, 1}
    asked(engine, 2, 2)
    assert kept(engine) == {0, 2}
    asked(engine, 1, 1)  # its text stayed known, and its uses count
    assert kept(engine) == {1, 2}
    assert engine.store.stat().tiers["disk"].bytes <= budget
    assert list(engine.store.verify()) == []


def test_the_hot_set_outlives_a_restart_and_other_engines_follow_it(new_engine):
    budget = int(2.5 * size_of_a_packet(new_engine))
    engine = new_engine(policy="hot-set", disk_bytes=budget, computed_bytes=0)
    engine.build(CHUNKS)
    asked(engine, 0, 0, 0, 1, 1, 1)
    engine.close()
    new_engine(disk_bytes=budget).build(CHUNKS[3:4])  # eager, for nobody's question
    again = new_engine(policy="hot-set", disk_bytes=budget, computed_bytes=0)
    assert len(kept(again) & {0, 1}) == 1
    asked(again, 0, 1)
    assert kept(again) == {0, 1}


def test_a_budget_smaller_than_a_packet_builds_none_and_harms_no_answer(new_engine):
    engine = new_engine(policy="on-first-use", disk_bytes=1000, computed_bytes=0)
    engine.build(CHUNKS)
    asked(engine, 0, 0, 1)
    assert kept(engine) == set()
    eager = new_engine(disk_bytes=1000)
    assert (eager.build(CHUNKS).built, eager.build(CHUNKS).left_out) == (0, len(CHUNKS))


def test_an_eager_build_stops_at_the_budget_instead_of_replacing_its_own_packets(new_engine):
    budget = int(2.5 * size_of_a_packet(new_engine))
    engine = new_engine(disk_bytes=budget)
    report = engine.build(CHUNKS)
    assert (report.built, report.left_out) == (2, len(CHUNKS) - 2)
    assert kept(engine) == {0, 1}
    again = engine.build(CHUNKS)
    assert (again.existing, again.built, again.left_out) == (2, 0, len(CHUNKS) - 2)
    assert again.existing_bytes == engine.store.stat().bytes <= budget
    assert engine.generate(PROMPT, max_new_tokens=1).usage.cached_tokens > 30


def test_counts_that_cannot_be_kept_harm_no_answer(new_engine, caplog):
    engine = new_engine(policy="on-first-use", computed_bytes=0)
    engine.build(CHUNKS)
    (engine.store.root / "uses.sqlite").write_bytes(b"nonsense" * 200)
    assert ask(engine) == 0
    assert packets(engine) == 0
    assert "delete it, it holds nothing else" in caplog.text


def test_nothing_is_built_while_a_prompt_is_active(new_engine, monkeypatch):
    engine = new_engine(policy="on-first-use")
    engine.build(CHUNKS)
    events, encode, step = [], deferred.encode_batch, worker.step

    def stepped(*arguments):
        time.sleep(0.001)  # so that builds have every chance to come between
        events.append("step")
        return step(*arguments)

    def encoded(*arguments):
        events.append("build")
        return encode(*arguments)

    monkeypatch.setattr(worker, "step", stepped)
    monkeypatch.setattr(deferred, "encode_batch", encoded)
    generated = engine.generate(PROMPT, max_new_tokens=20).usage.completion_tokens
    engine.wait_for_builds()
    assert events == ["step"] * generated + ["build"] * 2


def test_preparing_a_prompt_is_no_use_of_its_texts(new_engine):
    engine = new_engine(policy="on-first-use")
    engine.build(CHUNKS)
    assert len(engine.prepare(PROMPT).missed) == 2
    engine.wait_for_builds()
    assert packets(engine) == 0


def test_a_packet_that_cannot_be_built_harms_no_answer(new_engine, monkeypatch, caplog):
    engine = new_engine(policy="on-first-use", computed_bytes=0)
    engine.build(CHUNKS)
    monkeypatch.setattr(deferred, "encode_batch", lambda *_: 1 / 0)
    assert ask(engine) == 0
    assert ask(engine) == 0
    assert "no packet for a text that prompts ask for: ZeroDivisionError" in caplog.text


def test_closing_does_not_wait_for_builds(new_engine, monkeypatch):
    engine = new_engine(policy="on-first-use")
    engine.build(CHUNKS)
    started, go = threading.Event(), threading.Event()
    encode = deferred.encode_batch

    def slow(*arguments):
        started.set()
        go.wait(10)
        return encode(*arguments)

    monkeypatch.setattr(deferred, "encode_batch", slow)
    engine.generate(f"{CHUNKS[0]}\n\n{CHUNKS[1]}\n\nWho?", max_new_tokens=1)
    started.wait(10)
    threading.Timer(0.2, go.set).start()
    engine.close()
    assert packets(engine) <= 1


def test_eager_engines_build_nothing_by_themselves(new_engine):
    engine = new_engine()
    engine.store.expect(engine.scope(), [])
    new_engine(policy="on-first-use").build(CHUNKS)
    assert ask(engine) == 0
    assert packets(engine) == 0
    assert engine.build(CHUNKS).built == len(CHUNKS)
    assert ask(engine) > 30


@pytest.mark.parametrize(("name", "uses"), [("eager", 0), ("on-first-use", 1), ("hot-set", 2), ("hot-set=7", 7)])
def test_policies_by_name(name, uses):
    assert policy_from_name(name).uses == uses


@pytest.mark.parametrize("name", ["lazy", "hot-set=0", "hot-set=", "hot-set=x", "eager=1", ""])
def test_other_names_are_refused(name):
    with pytest.raises(SettingsError, match="eager, on-first-use, hot-set or hot-set=N"):
        policy_from_name(name)
