"""Answers, streams, usage, sampling and stop strings."""

import asyncio
import threading
import time

import pytest
import torch

from kvrag.completion import Stream
from kvrag.errors import EngineError, PromptError, PromptTooLongError, SettingsError
from kvrag.estimating import estimate
from kvrag.generate import StopText
from kvrag.request import Request
from kvrag.settings import Sampling
from kvrag.worker import step

from ..conftest import CHUNKS

QUESTION = "\nQuestion: how many goats? Answer:"


def prompt_of(*chunks, question=QUESTION):
    return "Documents:\n" + "\n\n".join(chunks) + question


def greedy(engine, prompt, count):
    """transformers' own greedy generation over the naturally tokenised prompt."""
    ids = torch.tensor([engine.model.tokenizer.encode(prompt)])
    out = engine.model._model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


def test_full_recompute_generates_what_transformers_generates(engine):
    prompt = prompt_of(*CHUNKS)
    answer = engine.generate(prompt, strategy="full-recompute", max_new_tokens=20)
    assert list(answer.token_ids) == greedy(engine, prompt, 20)
    assert answer.usage.cached_tokens == 0


def test_one_leading_packet_generates_what_transformers_generates(engine):
    engine.build([CHUNKS[0]])
    prompt = CHUNKS[0] + QUESTION
    answer = engine.generate(prompt, max_new_tokens=20)
    assert answer.usage.cached_tokens == len(engine.model.tokenizer.encode(CHUNKS[0]))
    segmented = [i for s in engine.prepare(prompt).segments for i in s.ids]
    ids = torch.tensor([segmented])
    out = engine.model._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert list(answer.token_ids) == out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("codec", ["int8", "fp8", "int4"])
def test_packets_of_another_codec_are_other_packets(new_engine, codec):
    raw, coded = new_engine(computed_bytes=0), new_engine(codec=codec, computed_bytes=0)
    raw.build(CHUNKS)
    prompt = prompt_of(*CHUNKS)
    assert coded.generate(prompt, max_new_tokens=1).usage.cached_tokens == 0
    coded.build(CHUNKS)
    answer = coded.generate(prompt, max_new_tokens=1)
    assert answer.usage.cached_tokens == raw.generate(prompt, max_new_tokens=1).usage.cached_tokens > 0


def test_an_unknown_codec_is_named(new_engine):
    with pytest.raises(SettingsError, match="raw, int8, fp8, int4"):
        new_engine(codec="zip")


def test_usage_adds_up(engine):
    engine.build(CHUNKS)
    first = engine.generate(prompt_of(*CHUNKS[:3]), max_new_tokens=4).usage
    packets = sum(len(engine.model.tokenizer.encode(c, literal=True)) for c in CHUNKS[:3])
    assert first.cached_tokens == packets
    assert first.prompt_tokens == first.cached_tokens + first.computed_tokens
    again = engine.generate(prompt_of(*CHUNKS[:3]), max_new_tokens=4).usage
    assert again.computed_tokens == 1  # the row the first token is sampled from
    other = engine.generate(prompt_of(*CHUNKS[3:]), max_new_tokens=4).usage
    head = len(engine.model.tokenizer.encode("Documents:\n"))
    assert other.cached_tokens == head + sum(len(engine.model.tokenizer.encode(c, literal=True)) for c in CHUNKS[3:])


def test_timings_are_milliseconds_of_the_parts(engine):
    engine.build(CHUNKS)
    timings = engine.generate(prompt_of(*CHUNKS), max_new_tokens=4).timings
    parts = timings.match_ms + timings.load_ms + timings.attach_ms
    assert 0 < parts < timings.first_token_ms < 60_000
    assert timings.per_token_ms > 0


def test_a_conversation_reuses_its_history(engine):
    engine.build(CHUNKS)
    turns = [{"role": "system", "content": "Use these.\n" + "\n\n".join(CHUNKS)}, {"role": "user", "content": "Goats?"}]
    first = engine.generate(turns, max_new_tokens=6)
    turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And bread?"}]
    second = engine.generate(turns, max_new_tokens=6)
    fresh = second.usage.computed_tokens
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert fresh < len(engine.model.tokenizer.encode(first.text)) + 60
    assert fresh < first.usage.computed_tokens + second.usage.completion_tokens + 40


def test_an_emptied_store_computes_the_same_prompt(engine):
    engine.build(CHUNKS)
    prompt = prompt_of(*CHUNKS)
    cached = engine.generate(prompt, max_new_tokens=3).usage
    for row in list(engine.store.ls()):
        engine.store.remove(row.key)
    bare = engine.generate(prompt, max_new_tokens=3).usage
    assert cached.cached_tokens > 0
    assert bare.cached_tokens == len(engine.model.tokenizer.encode("Documents:\n"))  # the text before the first packet
    assert bare.prompt_tokens == pytest.approx(cached.prompt_tokens, abs=5)


def test_pieces_of_a_stream_are_the_text(engine):
    with engine.stream(prompt_of(*CHUNKS), max_new_tokens=30) as stream:
        pieces = list(stream)
    assert stream.completion is not None
    assert "".join(pieces) == stream.completion.text
    assert stream.completion.text == engine.generate(prompt_of(*CHUNKS), max_new_tokens=30).text
    assert len(pieces) > 1


async def test_async_streams_say_the_same_and_never_block_the_loop(engine):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    stream = await engine.astream(prompt_of(*CHUNKS), max_new_tokens=30)
    pieces = [piece async for piece in stream]
    whole = await engine.agenerate(prompt_of(*CHUNKS), max_new_tokens=30)
    ticking.cancel()
    assert "".join(pieces) == whole.text
    assert ticks > 5


def test_stop_strings_are_found_across_token_borders(engine):
    text = engine.generate(prompt_of(*CHUNKS), max_new_tokens=40).text
    stop = text[7:12]
    cut = engine.generate(prompt_of(*CHUNKS), max_new_tokens=40, stop=stop)
    assert cut.text == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["ab", "cd"], ["bc"], "a"),
        (["a", "b", "c"], ["abd"], "abc"),
        (["x", "yz", "z"], ["yzz", "zzz"], "x"),
        (["aaa", "ab"], ["aab"], "aa"),
        (["one", " END", " two"], ["END", "two"], "one "),
        (["abc"], [], "abc"),
    ],
)
def test_stop_text(pieces, stops, text):
    watcher = StopText(stops)
    got = "".join(watcher.push(piece) for piece in pieces)
    assert got + ("" if watcher.stopped else watcher.flush()) == text


def test_an_end_token_ends_the_answer_and_is_no_text(new_engine, monkeypatch):
    engine = new_engine()
    free = engine.generate(prompt_of(CHUNKS[0]), max_new_tokens=10)
    monkeypatch.setitem(engine.model.__dict__, "stop_ids", frozenset({free.token_ids[4]}))
    ended = engine.generate(prompt_of(CHUNKS[0]), max_new_tokens=10)
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[:5]
    assert free.finish_reason == "length"
    assert free.text.startswith(ended.text)


def test_seeds_repeat_and_temperature_matters(engine):
    options = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.95, "top_k": 50}
    one, same, other = (engine.generate(prompt_of(*CHUNKS), seed=seed, **options).token_ids for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_repetition_penalty_counts_the_whole_prompt_like_transformers(engine):
    prompt = prompt_of(CHUNKS[0])
    ids = torch.tensor([engine.model.tokenizer.encode(prompt)])
    want = engine.model._model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, do_sample=False, repetition_penalty=1.8
    )
    got = engine.generate(prompt, strategy="full-recompute", max_new_tokens=15, repetition_penalty=1.8)
    assert list(got.token_ids) == want[0, ids.shape[1] :].tolist()[: len(got.token_ids)]


def request_of(engine, prompt, count):
    stream = Stream()
    settings = Sampling(max_new_tokens=count)
    request = Request(engine.prepare(prompt), settings, stream.delivery, "no-recompute", time.perf_counter())
    return request, stream


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_with_four_requests_equals_four_single_runs(new_engine, dtype):
    """Prompts of different lengths, sharing packets at different places, ending at different times."""
    engine = new_engine(dtype=dtype)
    engine.build(CHUNKS)
    prompts = [prompt_of(*CHUNKS[:3]), prompt_of(*CHUNKS[1:5]), prompt_of(CHUNKS[2]), "No documents at all." + QUESTION]
    counts = [12, 5, 9, 17]
    alone = [engine.generate(p, max_new_tokens=n).token_ids for p, n in zip(prompts, counts, strict=True)]
    engine._states.clear()
    pairs = [request_of(engine, p, n) for p, n in zip(prompts, counts, strict=True)]
    active, passes = [request for request, _ in pairs], 0
    while active:
        active = step(engine.model, engine._states, active)
        passes += 1
    assert passes == max(counts)
    assert [stream.result().token_ids for _, stream in pairs] == alone


def test_many_callers_share_the_engine(engine):
    engine.build(CHUNKS)
    prompts = [prompt_of(*CHUNKS[i : i + 3]) for i in range(4)]
    alone = [engine.generate(p, max_new_tokens=8).text for p in prompts]
    together: dict[int, str] = {}

    def ask(number):
        together[number] = engine.generate(prompts[number % 4], max_new_tokens=8).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(12)] == alone * 3


def test_closing_a_stream_ends_the_generation(engine):
    stream = engine.stream(prompt_of(*CHUNKS), max_new_tokens=3000)
    next(stream)
    stream.close()
    begin = time.perf_counter()
    engine.generate("Short." + QUESTION, max_new_tokens=2)
    assert time.perf_counter() - begin < 20
    assert list(stream) == []


def test_a_dropped_stream_is_a_closed_one(engine):
    cancelled = engine.stream(prompt_of(*CHUNKS), max_new_tokens=3000).delivery.cancelled
    assert cancelled.wait(5)


async def test_closing_an_async_stream_ends_the_generation(engine):
    stream = await engine.astream(prompt_of(*CHUNKS), max_new_tokens=3000)
    await anext(stream)
    await stream.aclose()
    answer = await engine.agenerate("Short." + QUESTION, max_new_tokens=2)
    assert answer.usage.completion_tokens == 2


def test_a_slow_consumer_holds_nobody_up(engine):
    slow = engine.stream(prompt_of(*CHUNKS), max_new_tokens=20)
    quick = engine.generate("Short." + QUESTION, max_new_tokens=5)
    assert quick.usage.completion_tokens == 5
    assert slow.result().usage.completion_tokens == 20


def test_closing_the_engine_ends_what_runs(new_engine):
    engine = new_engine()
    stream = engine.stream(prompt_of(*CHUNKS), max_new_tokens=3000)
    next(stream)
    engine.close()
    with pytest.raises(EngineError, match="in the middle of the answer"):
        stream.result()
    with pytest.raises(EngineError, match="closed"):
        engine.generate("Hello")


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(engine, prompt):
    with pytest.raises(PromptError, match=r"expected .*prompt"):
        engine.generate(prompt)


def test_a_prompt_that_does_not_fit_is_refused(engine):
    with pytest.raises(PromptTooLongError, match="4096"):
        engine.generate("goat " * 6000)
    assert engine.generate("Still here." + QUESTION, max_new_tokens=2).text is not None


def test_an_answer_ends_at_the_context_window(engine):
    """A prompt just under the window leaves room for a few tokens only."""
    text = "goat " * 3000
    ids = engine.model.tokenizer.encode(text)
    prompt = engine.model.tokenizer.decode(ids[: 4096 - 5])
    answer = engine.generate(prompt, max_new_tokens=50)
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 4096
    assert answer.usage.completion_tokens < 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"strategy": "magic"}, "'magic'"),
    ],
)
def test_bad_settings_are_named(engine, options, message):
    with pytest.raises(SettingsError, match=message):
        engine.generate("Hello", **options)


@pytest.mark.parametrize("use", ["build", "prefetch", "generate", "estimate"])
def test_what_is_not_a_list_of_texts_is_not_read_letter_by_letter(use, engine, tmp_path):
    ask = {
        "build": engine.build,
        "prefetch": engine.prefetch,
        "generate": lambda documents: engine.generate("x", documents=documents, max_new_tokens=1),
        "estimate": lambda texts: estimate(engine, texts, folder=tmp_path),
    }[use]
    with pytest.raises(PromptError, match="expected several texts, found one: .* put it into a list"):
        ask(CHUNKS[0])
    with pytest.raises(PromptError, match="expected texts, found a dict; give what prompts will contain of it"):
        ask([{"page_content": CHUNKS[0]}])
    assert engine.store.stat().packets == 0


def test_what_is_no_prompt_is_named(engine):
    for prompt in (["a", "b"], [("user", "a")]):
        with pytest.raises(PromptError, match="expected a string, or messages such as"):
            engine.generate(prompt)
