"""What is exact, measured: attaching equals computing wherever the two mean the same."""

import dataclasses
from itertools import accumulate

import pytest
import torch
from transformers import DynamicCache

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.attach import ComputedStates, Extent
from kvrag.bench.baselines import over_cache
from kvrag.builder import encode_batch, tokenize_chunk
from kvrag.model import Rows
from kvrag.packet import digest_fields
from kvrag.plan import plan_lane, remember
from kvrag.prompt import PacketSegment, SoftSegment, TextSegment
from kvrag.strategies import FullRecompute, KVPacket, NoRecompute

from ..conftest import CHUNKS

HEAD, GAP, TAIL = "Read this first.\n", "\n\n", "\nQuestion: when was it lit? Answer:"


def prompt_of(chunks, head=HEAD, tail=TAIL):
    return head + GAP.join(chunks) + tail


def first_logits(engine, prompt, strategy=None):
    """Logits of the row the first token is sampled from, over no states of earlier prompts."""
    prepared = engine.prepare(prompt, strategy=strategy)
    plan = plan_lane(engine.model, prepared, ComputedStates(1 << 20), 8)
    return engine.model.forward([plan.rows])[0], plan


def plain_logits(model, ids, positions, mask=None, embeds=None):
    """transformers' own forward with a boolean mask [S, S]."""
    n = len(positions)
    mask = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask
    additive = torch.zeros(n, n, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)[None, None]
    inputs = {"input_ids": torch.tensor([ids])} if embeds is None else {"inputs_embeds": embeds[None]}
    with torch.no_grad():
        return model._model(**inputs, position_ids=torch.tensor([list(positions)]), attention_mask=additive).logits[0]


def close(a, b):
    """Float64 leaves only what transformers' float32 angles cost; a wrong mask costs a thousand times more."""
    assert (a - b).abs().max() / b.abs().max() < 1e-4


@pytest.fixture
def exact(new_engine):
    return new_engine(dtype=torch.float64)


def test_one_packet_at_position_zero_equals_full_recompute(exact):
    prompt = CHUNKS[0] + TAIL
    exact.build([CHUNKS[0]])
    attached, plan = first_logits(exact, prompt)
    full, _ = first_logits(exact, prompt, FullRecompute(segmented=True))
    assert plan.cached == len(exact.model.tokenizer.encode(CHUNKS[0]))
    torch.testing.assert_close(attached, full, rtol=1e-9, atol=1e-9)


def test_full_recompute_equals_the_models_own_forward(exact):
    prompt = prompt_of(CHUNKS[:3])
    full, plan = first_logits(exact, prompt, "full-recompute")
    ids = exact.model.tokenizer.encode(prompt)
    assert plan.cached == 0
    torch.testing.assert_close(full, plain_logits(exact.model, ids, range(len(ids)))[-1], rtol=1e-9, atol=1e-9)


def block_mask(prepared):
    """Packets see themselves; computed rows see everything before them."""
    n = prepared.tokens
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    at = 0
    for segment in prepared.segments:
        end = at + prepared.length(segment)
        if hasattr(segment, "key"):
            mask[at:end, :at] = False
        at = end
    return mask


def test_attaching_equals_one_pass_under_a_block_diagonal_mask(exact):
    exact.build(CHUNKS)
    prompt = prompt_of(CHUNKS)
    attached, plan = first_logits(exact, prompt)
    prepared = exact.prepare(prompt)
    ids = prepared.token_ids
    assert plan.cached > len(ids) / 2
    close(attached, plain_logits(exact.model, ids, range(len(ids)), block_mask(prepared))[-1])


def test_zero_copy_equals_copy_and_rerotate(exact):
    exact.build(CHUNKS)
    prompt = prompt_of(CHUNKS, head="")
    attached, _ = first_logits(exact, prompt)
    prepared = exact.prepare(prompt)
    model, cache = exact.model, DynamicCache()
    rows, positions = [], []
    for segment, start in zip(prepared.segments, prepared.starts, strict=True):
        if not hasattr(
            segment, "key"
        ):  # separators between packets are seen by nobody but the question: put them there
            rows += segment.ids
            positions += range(start, start + len(segment.ids))
            continue
        packet = prepared.packets[segment.key]
        cos, sin = (t.double().repeat(1, 2) for t in model.rope.angles([start]))
        for layer in range(model.geometry.layers):
            key = packet.kv[layer, 0]
            lo, hi = key.chunk(2, -1)
            cache.update((key * cos + torch.cat([-hi, lo], -1) * sin)[None], packet.kv[layer, 1][None], layer)
    held = cache.get_seq_length()
    key_positions = [
        p
        for s, start in zip(prepared.segments, prepared.starts, strict=True)
        if hasattr(s, "key")
        for p in range(start, start + prepared.length(s))
    ]
    seen = torch.tensor([[k <= p for k in [*key_positions, *positions]] for p in positions])
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)[None, None]
    with torch.no_grad():
        ids, places = torch.tensor([rows]), torch.tensor([positions])
        over = over_cache(model.transformers_model, cache, input_ids=ids, position_ids=places, attention_mask=mask)
    copied = over.logits[0, -1]
    assert held == sum(p.tokens for p in prepared.packets.values())
    close(attached, copied)


def test_kv_packet_without_adapter_equals_no_recompute(exact):
    exact.build(CHUNKS)
    prompt = prompt_of(CHUNKS)
    untrained, _ = first_logits(exact, prompt, KVPacket())
    plain, _ = first_logits(exact, prompt, NoRecompute())
    assert torch.equal(untrained, plain)


def test_an_adapter_of_zero_length_equals_no_recompute(new_engine):
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter_for(new_engine, 0, 0))
    engine.build(CHUNKS)
    empty, plan = first_logits(engine, prompt_of(CHUNKS))
    plain, _ = first_logits(engine, prompt_of(CHUNKS), "no-recompute")
    assert plan.cached > 0
    assert torch.equal(empty, plain)


def adapter_for(new_engine, header, trailer, link=0, rank=0):
    """Random soft tokens, links and a writer for the fixtures' float64 model."""
    model = new_engine(dtype=torch.float64).model
    torch.manual_seed(5)
    counts = {"header": header, "trailer": trailer, "link": link}
    tensors = {name: torch.randn(count, 64) * 0.2 for name, count in counts.items()}
    for path, m in model.linear_modules().items() if rank else ():
        tensors[f"writer.{path}.lora_A.weight"] = torch.randn(rank, m.in_features) * 0.1
        tensors[f"writer.{path}.lora_B.weight"] = torch.randn(m.out_features, rank) * 0.1
    return Adapter(AdapterHeader(weights=model.identity.weights, config=model.identity.config), tensors)


def test_soft_tokens_around_every_chunk_equal_one_block_diagonal_pass(new_engine):
    """The student of KV Packet's training, header and trailer rows counted as positions."""
    adapter = adapter_for(new_engine, 3, 2)
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter)
    engine.build(CHUNKS)
    prompt = prompt_of(CHUNKS)
    attached, _ = first_logits(engine, prompt)
    prepared = engine.prepare(prompt)
    assert all(prepared.length(s) == len(s.ids) + 5 for s in prepared.segments if hasattr(s, "key"))
    embeds = embeddings_of(engine, prepared)
    wanted = plain_logits(engine.model, None, range(len(embeds)), block_mask(prepared), embeds)[-1]
    close(attached, wanted)
    without, _ = first_logits(engine, prompt, "no-recompute")
    assert (without - attached).abs().max() > 1e-2  # the soft tokens do something


def test_chunks_built_in_one_pass_equal_chunks_built_alone(exact):
    scope = exact.scope()
    chunks = [tokenize_chunk(exact.model, scope, text) for text in CHUNKS]
    together = encode_batch(exact.model, None, scope, chunks)
    for chunk, packet in zip(chunks, together, strict=True):
        (alone,) = encode_batch(exact.model, None, scope, [chunk])
        assert packet.key == alone.key
        torch.testing.assert_close(packet.kv, alone.kv, rtol=1e-9, atol=1e-9)
        assert packet.kv.is_contiguous()


def test_states_of_earlier_prompts_change_nothing(exact):
    """Text before the first packet, a repeated prompt and a next turn come from states, and give the same logits."""
    exact.build(CHUNKS)
    model, states = exact.model, ComputedStates(1 << 24)
    first = exact.prepare(prompt_of(CHUNKS[:3]))
    plan = plan_lane(model, first, states, 8)
    model.forward([plan.rows])
    remember(plan, states, [])
    for text, at_least in (
        (prompt_of(CHUNKS[:3]), 0.9),
        (prompt_of(CHUNKS[3:]), 0.05),
        (prompt_of(CHUNKS[:3]) + " In 1788.\nWho lit it?", 0.5),
        (prompt_of(CHUNKS[:2]) + TAIL, 0.1),
    ):
        prepared = exact.prepare(text)
        warm = plan_lane(model, prepared, states, 8)
        cold = plan_lane(model, prepared, ComputedStates(1 << 24), 8)
        reused = len(cold.rows.ids) - len(warm.rows.ids)
        assert reused >= at_least * len(cold.rows.ids)
        assert reused > 0
        got, want = model.forward([warm.rows])[0], model.forward([cold.rows])[0]
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_states_behind_packets_are_found_only_behind_the_same_packets_at_the_same_places(exact):
    exact.build(CHUNKS)
    states = ComputedStates(1 << 24)
    prompt = exact.prepare(prompt_of(CHUNKS[:3]))
    plan = plan_lane(exact.model, prompt, states, 1)
    exact.model.forward([plan.rows])
    remember(plan, states, [])

    def computed(segments, starts):
        return len(
            plan_lane(exact.model, dataclasses.replace(prompt, segments=segments, starts=starts), states, 1).rows.ids
        )

    segments, starts = list(prompt.segments), list(prompt.starts)
    assert computed(segments, starts) == 1
    first, second, *_ = (n for n, s in enumerate(segments) if isinstance(s, PacketSegment))
    for number in (first, second):
        moved = [start + (n == number) for n, start in enumerate(starts)]
        assert computed(segments, moved) > 1
    swapped = list(segments)
    swapped[first], swapped[second] = segments[second], segments[first]
    assert computed(swapped, starts) > 1
    without = [n for n in range(len(segments)) if n != first]
    assert computed([segments[n] for n in without], [starts[n] for n in without]) > 1


def test_decoding_continues_as_full_recompute_would(exact):
    """Token by token over an attached packet equals recomputing the prompt with the answer so far."""
    exact.build([CHUNKS[0]])
    prompt = CHUNKS[0] + TAIL
    prepared = exact.prepare(prompt)
    plan = plan_lane(exact.model, prepared, ComputedStates(1 << 20), 1)
    logits = exact.model.forward([plan.rows])[0]
    ids = list(prepared.token_ids)
    for _ in range(70):  # more than the lane has room for: it grows
        token = int(logits.argmax())
        ids.append(token)
        logits = exact.model.forward([Rows(plan.lane, [token], [len(ids) - 1])])[0]
    torch.testing.assert_close(logits, plain_logits(exact.model, ids, range(len(ids)))[-1], rtol=1e-7, atol=1e-7)


def test_packets_are_not_modified_by_use(exact):
    exact.build(CHUNKS)
    prepared = exact.prepare(prompt_of(CHUNKS))
    before = {key: digest_fields(packet.kv.numpy().tobytes()) for key, packet in prepared.packets.items()}
    exact.generate(prompt_of(CHUNKS), max_new_tokens=5)
    assert before == {key: digest_fields(packet.kv.numpy().tobytes()) for key, packet in prepared.packets.items()}


def test_an_extent_placed_at_its_own_position_needs_no_turn(exact):
    scope = exact.scope()
    (packet,) = encode_batch(exact.model, None, scope, [tokenize_chunk(exact.model, scope, CHUNKS[0])])
    assert Extent.of_packet(packet, 0, 0, packet.kv).turn == 0
    assert Extent.of_packet(packet, 17, 0, packet.kv).turn == 17


def embeddings_of(engine, prepared):
    """What the model sees of a prompt `[S, hidden]`: texts, chunks between their soft tokens, and links."""
    embed, soft = engine.model._model.get_input_embeddings(), engine.adapter.soft
    pieces = []
    for segment in prepared.segments:
        if isinstance(segment, SoftSegment):
            pieces.append(soft(segment.name).double())
            continue
        piece = embed(torch.tensor(segment.ids))
        if hasattr(segment, "key"):
            piece = torch.cat([s.double() for s in (soft("header"), piece, soft("trailer")) if len(s)])
        pieces.append(piece)
    return torch.cat(pieces).detach()


@pytest.mark.parametrize(("header", "trailer"), [(0, 0), (3, 2)])
def test_links_equal_one_pass_in_which_they_see_everything_before_them(new_engine, header, trailer):
    adapter = adapter_for(new_engine, header, trailer, link=2)
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter)
    engine.build(CHUNKS)
    prompt = prompt_of(CHUNKS)
    attached, plan = first_logits(engine, prompt)
    prepared = engine.prepare(prompt)
    kinds = [type(s).__name__[:4] for s in prepared.segments]
    assert kinds == ["Text", *["Pack", "Soft", "Text"] * len(CHUNKS)]
    embeds = embeddings_of(engine, prepared)
    assert len(embeds) == prepared.tokens == prepared.end
    close(attached, plain_logits(engine.model, None, range(len(embeds)), block_mask(prepared), embeds)[-1])
    texts = sum(len(s.ids) for s in prepared.segments if isinstance(s, TextSegment))
    assert prepared.tokens - plan.cached == texts + 2 * len(CHUNKS)  # links are computed, and counted so
    without, _ = first_logits(engine, prompt, "no-recompute")
    assert (without - attached).abs().max() > 1e-2


def test_links_are_reused_with_the_text_before_them(new_engine):
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter_for(new_engine, 2, 1, link=2))
    engine.build(CHUNKS)
    attached, plan = first_logits(engine, prompt_of(CHUNKS))
    states = ComputedStates(1 << 24)
    remember(plan, states, [])
    again = plan_lane(engine.model, engine.prepare(prompt_of(CHUNKS)), states, 1)
    assert len(again.rows.ids) == 1
    torch.testing.assert_close(engine.model.forward([again.rows])[0], attached, rtol=1e-9, atol=1e-9)
    other = engine.prepare(prompt_of([*CHUNKS[:2], *CHUNKS[3:]]))  # the same up to the third packet
    warm, cold = plan_lane(engine.model, other, states, 1), plan_lane(engine.model, other, ComputedStates(1 << 24), 1)
    shared = len(engine.token_ids(HEAD)) + 2 * (2 + len(engine.token_ids(GAP)))
    assert len(cold.rows.ids) - len(warm.rows.ids) == shared
    got, want = engine.model.forward([warm.rows])[0], engine.model.forward([cold.rows])[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_prompt_that_ends_in_a_chunk_ends_in_text_and_not_in_a_link(new_engine):
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter_for(new_engine, 2, 1, link=2))
    engine.build(CHUNKS)
    prepared = engine.prepare(prompt_of(CHUNKS[:2], tail=""))
    assert [type(s) for s in prepared.segments[-4:]] == [PacketSegment, SoftSegment, TextSegment, TextSegment]
    answer = engine.generate(prompt_of(CHUNKS[:2], tail=""), max_new_tokens=3)
    assert answer.usage.computed_tokens == sum(prepared.length(s) for s in prepared.segments if not hasattr(s, "key"))
    assert answer.usage.prompt_tokens == prepared.tokens


def test_soft_segments_of_different_names_share_no_states(new_engine):
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter_for(new_engine, 0, 0, link=2))
    prepared = engine.prepare(prompt_of([]))
    texts, soft = prepared.segments, {"link": torch.zeros(2, 64), "seam": torch.ones(2, 64)}
    plans = []
    states = ComputedStates(1 << 24)
    for name in soft:
        segments = [SoftSegment(name, 2), *texts]
        mixed = dataclasses.replace(prepared, segments=segments, starts=[0, 2], soft=soft)
        plans.append(plan_lane(engine.model, mixed, states, 1))
        engine.model.forward([plans[-1].rows])
        remember(plans[-1], states, [])
    assert [plan.cached for plan in plans] == [0, 0]


def test_a_writer_and_soft_tokens_together_equal_one_pass(new_engine):
    """Packets of chunks between soft tokens, changed by the writer; links and text by the bare model."""
    adapter = adapter_for(new_engine, 3, 2, link=1, rank=2)
    engine = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter)
    engine.build(CHUNKS)
    prompt = prompt_of(CHUNKS, head="")
    attached, _ = first_logits(engine, prompt)
    prepared = engine.prepare(prompt)
    packets = [number for number, segment in enumerate(prepared.segments) if hasattr(segment, "key")]
    order = [*packets, *(n for n in range(len(prepared.segments)) if n not in packets)]  # the writer's rows first
    ends = list(accumulate(prepared.length(s) for s in prepared.segments))
    rows = [r for n in order for r in range(ends[n] - prepared.length(prepared.segments[n]), ends[n])]
    written = sum(prepared.length(prepared.segments[n]) for n in packets)
    mask = block_mask(prepared)[rows][:, rows]
    with adapter.writer.active(engine.model.linear_modules(), rows=written):
        wanted = plain_logits(engine.model, None, rows, mask, embeddings_of(engine, prepared)[rows])[-1]
    close(attached, wanted)
