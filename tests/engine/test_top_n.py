"""Prompts that are read twice: over all packets, and over those that their question attends to most."""

import pytest
import torch
from transformers import LlamaConfig

from kvrag.attach import ComputedStates, PrivatePass
from kvrag.bench.methods import measure_method_times
from kvrag.completion import Stream
from kvrag.errors import SettingsError
from kvrag.evaluation.cases import Case
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.narrowing import ASKING_ROWS, best_packets, narrowed, narrows
from kvrag.packet import PacketKey
from kvrag.plan import plan_lane
from kvrag.prompt import PacketSegment, TextSegment
from kvrag.request import Request
from kvrag.settings import Sampling
from kvrag.strategies import FullRecompute, KVPacket, strategy_from_name
from kvrag.worker import step

from ..conftest import CHUNKS, TINY
from .test_confidence import answered_in_a_full_pool
from .test_recompute import DEEP, GAP, HEAD, PROMPT, TAIL
from .test_writer import adapter_of, random_pairs

TWO = KVPacket(top_n=2)
LONG = TAIL + " " + "Say what the keeper did not own, and nothing else. " * 4


def trained_engine(new_engine, config=DEEP):
    """In float64, with an adapter of all parts."""
    model = new_engine(config=config, dtype=torch.float64).model
    torch.manual_seed(11)
    soft = {name: torch.randn(count, 64) for name, count in (("header", 3), ("trailer", 2), ("link", 1))}
    engine = new_engine(config=config, dtype=torch.float64, adapter=adapter_of(model, random_pairs(model), **soft))
    engine.build(CHUNKS, strategy="kv-packet")
    return engine


@pytest.fixture
def trained(new_engine):
    return trained_engine(new_engine)


@pytest.fixture
def deeper(new_engine):
    """Two of its layers ask."""
    return trained_engine(new_engine, LlamaConfig(**TINY | {"num_hidden_layers": 12}))


def answers(engine, strategy, prompt=PROMPT, **options):
    return engine.generate(prompt, strategy=strategy, **{"max_new_tokens": 12} | options)


def ranked(engine, strategy=TWO, prompt=PROMPT):
    """The attention that packets get, in their order."""
    plan = plan_lane(engine.model, engine.prepare(prompt, strategy=strategy), ComputedStates(0), 1)
    engine.run(engine.model.forward, [plan.rows])
    return plan.rows.ranking.shares


@pytest.mark.parametrize("tail", [TAIL, LONG], ids=["short", "long"])
def test_ranks_by_the_attention_of_the_last_rows(deeper, tail):
    """Compared with attention over a private copy, computed from re-rotated keys."""
    model = deeper.model
    prompt = HEAD + GAP.join(CHUNKS) + tail
    plan = plan_lane(model, deeper.prepare(prompt, strategy=KVPacket(repair=0.5)), ComputedStates(0), 1)
    layout, rows = plan.rows.repair._layout, plan.rows
    places = layout.is_text.nonzero()[:, 0]
    asking = min(ASKING_ROWS, plan.prepared.length(plan.prepared.segments[-1]))
    assert (asking == ASKING_ROWS) == (tail == LONG)
    found = []

    @torch.inference_mode()
    def attend():
        def watch(seen):
            if seen.layer in model.geometry.asking:
                query = seen.query[:, -asking:].unflatten(0, (len(seen.keys), -1))
                scores = torch.matmul(query, seen.keys[:, None].transpose(2, 3)) * seen.scaling
                later = torch.ones(asking, asking, dtype=torch.bool).triu(1)
                scores[..., -asking:].masked_fill_(later, -torch.inf)
                found.append(scores.softmax(-1).mean((0, 1, 2)))

        ids, positions = torch.tensor([rows.ids, rows.positions])
        embeds = model.embed(ids)
        for first, given in rows.soft:
            embeds[first : first + len(given)] = given
        current = PrivatePass(rows.lane, places, layout.tokens, watch=watch)
        model.run(embeds[places], positions[places], current, torch.tensor([-1]))

    deeper.run(attend)
    mean = torch.stack(found).mean(0)
    wanted = []
    for (first, last), before, after in zip(layout.packets, layout.soft[::2], layout.soft[1::2], strict=True):
        assert before[1] == first
        assert after[0] == last
        wanted.append(float(mean[before[0] : after[1]].sum()))
    assert ranked(deeper, prompt=prompt) == pytest.approx(wanted, rel=1e-9)
    assert 0 < sum(wanted) < 1


def test_the_layers_that_ask_lie_behind_two_thirds(deeper, engine):
    assert deeper.model.geometry.asking == range(8, 10)
    assert engine.model.geometry.asking == range(2, 3)


def test_answers_from_the_best_as_if_there_were_no_others(trained):
    attention = ranked(trained)
    best = sorted(range(len(CHUNKS)), key=lambda n: attention[n])[-2:]
    answer = answers(trained, TWO)
    assert answer.kept == tuple(best)
    alone = answers(trained, "kv-packet", HEAD + GAP.join(CHUNKS[n] for n in best) + TAIL)
    assert (answer.token_ids, answer.text) == (alone.token_ids, alone.text)
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert alone.kept is None
    assert answers(trained, "kv-packet").token_ids != answer.token_ids


def test_all_packets_are_only_put_in_order(trained):
    answer = answers(trained, KVPacket(top_n=100))
    assert sorted(answer.kept) == list(range(len(CHUNKS)))
    assert list(answer.kept) == best_packets(ranked(trained), CHUNKS, 100)
    ordered = answers(trained, "kv-packet", HEAD + GAP.join(CHUNKS[n] for n in answer.kept) + TAIL)
    assert answer.token_ids == ordered.token_ids


def test_texts_that_say_something_about_packets_stay_where_they_are(trained):
    prompt = "".join(f"Source {n}:\n{chunk}\n" for n, chunk in enumerate(CHUNKS)) + TAIL
    answer = answers(trained, TWO, prompt)
    left_out = [chunk for n, chunk in enumerate(CHUNKS) if n not in answer.kept]
    for chunk in left_out:
        prompt = prompt.replace(chunk, "")
    assert all(f"Source {n}:" in prompt for n in range(6))
    assert answers(trained, "kv-packet", prompt).text == answer.text


def test_asking_again_chooses_and_answers_the_same(trained):
    first, again = (answers(trained, TWO, HEAD + GAP.join(CHUNKS) + LONG) for _ in range(2))
    assert (again.kept, again.token_ids) == (first.kept, first.token_ids)
    assert again.usage.computed_tokens == 1 < first.usage.computed_tokens


def test_the_text_before_the_packets_is_computed_once(trained):
    """The second reading reuses what the first one has computed."""
    opening = "Read this first, and read it twice. " * 8
    computed = [
        answers(trained, TWO, beginning + GAP.join(CHUNKS) + TAIL).usage.computed_tokens
        for beginning in (opening, "Read.\n")
    ]
    assert computed[0] == computed[1]


def test_one_packet_or_none_is_read_once(trained):
    for prompt in (HEAD + CHUNKS[0] + TAIL, HEAD + TAIL):
        prepared = trained.prepare(prompt, strategy=TWO)
        assert prepared.narrow is None
        answer = answers(trained, TWO, prompt)
        assert answer.kept is None
        assert answer.token_ids == answers(trained, "kv-packet", prompt).token_ids


def test_doubt_and_repair_are_about_the_second_reading(trained):
    kept = answers(trained, TWO).kept
    short = HEAD + GAP.join(CHUNKS[n] for n in kept) + TAIL
    always = KVPacket(top_n=2, confidence=1.0)
    answer = answers(trained, always)
    assert (answer.kept, answer.fell_back) == (kept, True)
    assert answer.token_ids == answers(trained, FullRecompute(segmented=True), short).token_ids
    never = answers(trained, KVPacket(top_n=2, confidence=1e-9))
    assert (never.token_ids, never.fell_back) == (answers(trained, TWO).token_ids, False)
    repaired = answers(trained, KVPacket(top_n=2, repair=0.5))
    assert (repaired.kept, repaired.token_ids) == (kept, answers(trained, KVPacket(repair=0.5), short).token_ids)


def test_several_requests_in_a_step_equal_single_ones(trained):
    strategies = (TWO, KVPacket(), KVPacket(top_n=3), KVPacket(top_n=2, confidence=1.0))
    singles = [answers(trained, strategy) for strategy in strategies]

    def together():
        streams = [Stream() for _ in strategies]
        requests = [
            Request(
                trained.prepare(PROMPT, strategy=strategy), Sampling(max_new_tokens=12), s.delivery, "kv-packet", 0.0
            )
            for strategy, s in zip(strategies, streams, strict=True)
        ]
        states = ComputedStates(0)
        active = requests
        while active:
            active = step(trained.model, states, active)
        return [s.result() for s in streams]

    for one, single in zip(together(), singles, strict=True):
        assert (one.token_ids, one.kept, one.fell_back) == (single.token_ids, single.kept, single.fell_back)


def test_the_first_reading_lets_its_packets_go(trained):
    assert answered_in_a_full_pool(trained, TWO).kept == answers(trained, TWO).kept


def test_the_evaluation_counts_both_readings(trained):
    spans = tuple((PROMPT.index(c), PROMPT.index(c) + len(c)) for c in CHUNKS)
    (found,) = EngineAnswerer(trained, 12).answer([Case(PROMPT, spans)], TWO)
    served = answers(trained, TWO)
    assert found.token_ids == served.token_ids
    first = trained.prepare(PROMPT, strategy="kv-packet")
    texts = sum(first.length(s) for s in first.segments if not isinstance(s, PacketSegment))
    assert texts < found.computed < 2 * texts
    assert found.prompt_tokens == served.usage.prompt_tokens


def test_random_packets_are_read_twice_too(trained):
    options = {"packets": 3, "packet": 8, "question": 4, "runs": 1}
    rows = measure_method_times(trained.model, {"once": KVPacket(), "twice": TWO}, **options)
    assert {row.method: row.computed_tokens for row in rows} == {"once": 4, "twice": 8}
    assert {row.prompt_tokens for row in rows} == {3 * (8 + 16) + 4}
    with pytest.raises(SettingsError, match="falls back in doubt"):
        measure_method_times(trained.model, {"doubtful": KVPacket(top_n=2, confidence=0.5)}, **options)


def test_scores_come_in_pieces_where_they_would_be_many(deeper, monkeypatch):
    at_once = ranked(deeper)
    monkeypatch.setattr("kvrag.attach.ranking._MOST", 1)
    assert ranked(deeper) == pytest.approx(at_once, rel=1e-9)


def test_packets_serve_whatever_top_n(trained):
    assert trained.scope(TWO).digest == trained.scope("kv-packet").digest


def test_options_by_name():
    assert strategy_from_name("kv-packet:top_n=2:confidence=0.4") == KVPacket(confidence=0.4, top_n=2)
    for wrong in ("-1", "1.5", "many", "True"):
        with pytest.raises(SettingsError, match="top_n as a number of packets"):
            strategy_from_name(f"kv-packet:top_n={wrong}")


def test_sampled_answers_and_streams(trained):
    options = {"temperature": 0.8, "seed": 3, "max_new_tokens": 8}
    kept = answers(trained, TWO).kept
    alone = answers(trained, "kv-packet", HEAD + GAP.join(CHUNKS[n] for n in kept) + TAIL, **options)
    with trained.stream(PROMPT, strategy=TWO, **options) as stream:
        pieces = list(stream)
    assert "".join(pieces) == alone.text == stream.completion.text


def test_a_prompt_that_ends_in_a_chunk_asks_nothing(trained):
    prompt = HEAD + GAP.join(CHUNKS)
    answer = answers(trained, TWO, prompt)
    assert answer.kept is None
    assert answer.token_ids == answers(trained, "kv-packet", prompt).token_ids


def test_two_packets_in_a_conversation_stay_in_their_turns(trained):
    prompt = f"user: {CHUNKS[0]} Who?\nassistant: A keeper.\nuser: {CHUNKS[1]} What of?"
    for strategy in (TWO, KVPacket(top_n=9)):  # nothing to leave out, nothing to move
        assert trained.prepare(prompt, strategy=strategy).narrow is None
    answer = answers(trained, KVPacket(top_n=1), prompt)
    (kept,) = answer.kept
    left = prompt.replace(CHUNKS[1 - kept], "")
    assert answer.text == answers(trained, "kv-packet", left).text


def test_a_document_without_a_packet_stays(trained):
    prompt = HEAD + GAP.join([CHUNKS[0], "Nobody has built a packet of this text, so it is text.", *CHUNKS[1:3]]) + TAIL
    answer = answers(trained, KVPacket(top_n=1), prompt)
    for number, chunk in enumerate(CHUNKS[:3]):
        prompt = prompt if number in answer.kept else prompt.replace(chunk, "")
    assert "Nobody has built" in prompt
    assert answer.text == answers(trained, "kv-packet", prompt).text


def test_a_packet_that_stands_there_twice_is_kept_once(trained):
    prompt = HEAD + GAP.join([*CHUNKS[:3], *CHUNKS[:3]]) + TAIL
    answer = answers(trained, TWO, prompt)
    assert len({number % 3 for number in answer.kept}) == 2


def test_a_question_of_one_token(trained):
    answer = answers(trained, TWO, HEAD + GAP.join(CHUNKS) + "?")
    alone = answers(trained, "kv-packet", HEAD + GAP.join(CHUNKS[n] for n in answer.kept) + "?")
    assert answer.token_ids == alone.token_ids


def test_what_ranking_fails_at_is_its_own_requests_error(trained, monkeypatch):
    def fail(*args):
        raise MemoryError("no room for scores")

    monkeypatch.setattr("kvrag.attach.ranking._paid", fail)
    plain, twice = Stream(), Stream()
    requests = [
        Request(trained.prepare(PROMPT, strategy=s), Sampling(max_new_tokens=3), stream.delivery, "kv-packet", 0.0)
        for s, stream in ((KVPacket(), plain), (TWO, twice))
    ]
    while requests:
        requests = step(trained.model, ComputedStates(0), requests)
    assert len(plain.result().token_ids) > 0
    with pytest.raises(MemoryError, match="no room"):
        twice.result()


def test_who_cancels_between_the_readings_gets_an_end(trained):
    stream = Stream()
    request = Request(
        trained.prepare(PROMPT, strategy=TWO), Sampling(max_new_tokens=3), stream.delivery, "kv-packet", 0.0
    )
    assert step(trained.model, ComputedStates(0), [request]) == [request]
    stream.delivery.cancelled.set()
    assert step(trained.model, ComputedStates(0), [request]) == []
    assert request.finished


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_alike(new_engine, dtype):
    exact, half = (new_engine(dtype=kind, folder=str(kind), strategy=TWO) for kind in (torch.float32, dtype))
    for engine in (exact, half):
        engine.build(CHUNKS)
    assert ranked(half) == pytest.approx(ranked(exact), rel=0.1)


def segment(name):
    return PacketSegment(PacketKey(name), (1,), 0, 0)


def text(*ids):
    return TextSegment(ids, 0, 0)


def test_narrowing_keeps_the_gap_between_packets():
    a, b, c = map(segment, "abc")
    prompt = [text(1), a, text(2), b, text(2), c, text(3)]
    assert narrowed(prompt, [2, 0]) == [text(1), c, text(2), a, text(3)]
    assert narrowed(prompt, [1]) == [text(1), b, text(3)]
    assert narrowed([a, b, c, text(3)], [2, 1]) == [c, b, text(3)]


def test_narrowing_keeps_texts_that_differ():
    a, b, c = map(segment, "abc")
    prompt = [text(1), a, text(2), b, text(4), c, text(3)]
    assert narrowed(prompt, [2, 0]) == [text(1), a, text(2), text(4), c, text(3)]
    assert narrowed([a, b, text(2), c, text(3)], [2, 0]) == [a, text(2), c, text(3)]


def test_narrowing_takes_a_single_gap_for_a_text():
    a, b = map(segment, "ab")
    prompt = [text(1), a, text(2), b, text(3)]
    assert not narrows(prompt, 2)
    assert narrows(prompt, 1)
    assert narrowed(prompt, [1, 0]) == prompt
    assert narrowed(prompt, [1]) == [text(1), text(2), b, text(3)]


def test_narrowing_takes_long_gaps_for_texts():
    a, b, c = map(segment, "abc")
    for length, moves in ((8, True), (9, False)):
        gap = text(*range(length))
        prompt = [a, gap, b, gap, c, text(3)]
        assert narrows(prompt, 3) == moves
        assert narrowed(prompt, [2, 1, 0]) == ([c, gap, b, gap, a, text(3)] if moves else prompt)


def test_the_best_come_last_and_the_first_of_equals_stays():
    assert best_packets([0.1, 0.4, 0.2], "abc", 2) == [2, 1]
    assert best_packets([0.1, 0.1, 0.1], "abc", 2) == [1, 0]
    assert best_packets([0.3], "a", 5) == [0]
    assert best_packets([0.1, 0.4, 0.2, 0.3], "abbc", 3) == [0, 3, 1]
