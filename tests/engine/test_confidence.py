"""Answers from packets that leave the model in doubt are given once more, by the strategy's fallback."""

import pytest
import torch

from kvrag.attach import ComputedStates
from kvrag.attach.arrivals import Arrivals
from kvrag.attach.pool import DevicePool
from kvrag.bench.methods import measure_method_times
from kvrag.completion import Stream
from kvrag.errors import SettingsError
from kvrag.evaluation.cases import Case
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.request import Request
from kvrag.settings import Sampling
from kvrag.strategies import FullRecompute, KVPacket, strategy_from_name
from kvrag.worker import step

from ..conftest import CHUNKS
from .test_recompute import PROMPT, TAIL, first_logits
from .test_writer import adapter_of, random_pairs

FULL = FullRecompute(segmented=True)
ALWAYS, NEVER = KVPacket(confidence=1.0), KVPacket(confidence=1e-9)


@pytest.fixture
def trained(new_engine):
    """In float64, with an adapter of all parts, so that an answer from packets differs from full recompute's."""
    model = new_engine(dtype=torch.float64).model
    torch.manual_seed(11)
    soft = {name: torch.randn(count, 64) for name, count in (("header", 3), ("trailer", 2), ("link", 1))}
    engine = new_engine(dtype=torch.float64, adapter=adapter_of(model, random_pairs(model), **soft))
    engine.build(CHUNKS, strategy="kv-packet")
    return engine


def answers(engine, strategy, **options):
    return engine.generate(PROMPT, strategy=strategy, **{"max_new_tokens": 12} | options)


def test_the_first_token_decides_who_answers(trained):
    packets, full = answers(trained, "kv-packet"), answers(trained, FULL)
    assert packets.token_ids != full.token_ids
    sure = float(first_logits(trained, KVPacket()).softmax(-1).max())
    kept = answers(trained, KVPacket(confidence=sure - 1e-6))
    again = answers(trained, KVPacket(confidence=sure + 1e-6))
    assert (kept.token_ids, kept.fell_back) == (packets.token_ids, False)
    assert (again.token_ids, again.text, again.fell_back) == (full.token_ids, full.text, True)
    assert kept.usage == packets.usage
    assert again.usage == full.usage
    assert again.strategy == kept.strategy == "kv-packet"
    assert not packets.fell_back


def test_a_repair_comes_before_full_recompute(trained):
    repaired = answers(trained, KVPacket(repair=0.5))
    again = answers(trained, KVPacket(repair=0.5, confidence=1.0))
    assert (again.token_ids, again.usage, again.fell_back) == (repaired.token_ids, repaired.usage, True)
    kept = answers(trained, KVPacket(repair=0.5, confidence=1e-9))
    assert kept.token_ids == answers(trained, "kv-packet").token_ids


def test_options_by_name(trained):
    assert answers(trained, "kv-packet:confidence=1.0").fell_back
    assert strategy_from_name("kv-packet:repair=0.2:confidence=0.4") == KVPacket(0.2, 0.4)


def test_packets_serve_whatever_the_confidence(trained):
    assert {trained.scope(s).digest for s in (KVPacket(), ALWAYS, KVPacket(repair=0.2, confidence=0.5))} == {
        trained.scope("kv-packet").digest
    }


def test_a_prompt_without_packets_has_nothing_to_fall_back_from(trained):
    assert trained.prepare("No documents." + TAIL, strategy=ALWAYS).fallback is None
    assert not trained.generate("No documents." + TAIL, strategy=ALWAYS, max_new_tokens=3).fell_back


def test_nothing_is_delivered_twice(trained):
    stream = trained.stream(PROMPT, strategy=ALWAYS, max_new_tokens=12)
    assert "".join(stream) == stream.completion.text == answers(trained, FULL).text


def test_sampling_begins_anew(trained):
    options = {"temperature": 1.5, "seed": 7}
    assert answers(trained, ALWAYS, **options).token_ids == answers(trained, FULL, **options).token_ids


def test_those_in_doubt_leave_the_others_of_a_step_alone(trained):
    strategies = [ALWAYS, NEVER, FULL, KVPacket(repair=0.5, confidence=1.0), KVPacket()]
    wanted = [answers(trained, s).token_ids for s in strategies]
    streams = [Stream() for _ in strategies]
    active = [
        Request(trained.prepare(PROMPT, strategy=s), Sampling.of(max_new_tokens=12), stream.delivery, s.name, 0.0)
        for s, stream in zip(strategies, streams, strict=True)
    ]
    while active:
        active = step(trained.model, ComputedStates(0), active)
    assert [stream.result().token_ids for stream in streams] == wanted


def answered_in_a_full_pool(engine, strategy):
    """An answer that begins again, with room for its packets alone: the first attempt has to let them go."""
    geometry, device = engine.model.geometry, engine.model.device
    prepared, stream = engine.prepare(PROMPT, strategy=strategy), Stream()
    room = sum(packet.nbytes for packet in prepared.packets.values()) + 4096
    pool = DevicePool(geometry, torch.float64, device, room, Arrivals(geometry.layers, device))
    request = Request(prepared, Sampling.of(max_new_tokens=4), stream.delivery, "kv-packet", 0.0)
    assert step(engine.model, ComputedStates(0), [request], pool) == [request]
    assert request.plan is None
    assert not pool._pins
    while step(engine.model, ComputedStates(0), [request], pool):
        pass
    assert not pool._pins
    return stream.result()


def test_a_fallback_lets_the_packets_of_the_first_attempt_go(trained):
    assert answered_in_a_full_pool(trained, ALWAYS).fell_back


def test_who_cancels_in_doubt_gets_an_end(trained):
    stream = Stream()
    prepared = trained.prepare(PROMPT, strategy=ALWAYS)
    request = Request(prepared, Sampling.of(max_new_tokens=4), stream.delivery, "kv-packet", 0.0)
    step(trained.model, ComputedStates(0), [request])
    stream.delivery.cancelled.set()
    assert step(trained.model, ComputedStates(0), [request]) == []
    assert stream._queue.get().finish_reason == "cancelled"


@pytest.mark.parametrize("strategy", [ALWAYS, NEVER, KVPacket(repair=0.5, confidence=1.0)])
def test_quality_is_measured_of_what_is_served(trained, strategy):
    spans = tuple((PROMPT.index(chunk), PROMPT.index(chunk) + len(chunk)) for chunk in CHUNKS)
    case = Case(PROMPT, spans, "when?", ("now",), 4000)
    (measured,) = EngineAnswerer(trained, 12).answer([case], strategy)
    served = answers(trained, strategy)
    assert measured.token_ids == served.token_ids
    attempts = [KVPacket()] + [strategy.fallback] * served.fell_back
    alone = [EngineAnswerer(trained, 12).answer([case], each)[0].computed for each in attempts]
    assert measured.computed == pytest.approx(sum(alone))


@pytest.mark.parametrize("value", ["2", "-0.1", "abc", ""])
def test_a_confidence_is_a_probability(value):
    with pytest.raises(SettingsError, match=f"confidence between 0 and 1, found {value}"):
        strategy_from_name(f"kv-packet:confidence={value}")


def test_random_weights_have_no_time_to_tell(trained):
    with pytest.raises(SettingsError, match="falls back in doubt"):
        measure_method_times(trained.model, {"doubtful": ALWAYS}, packets=1, packet=8, question=2, runs=1)
