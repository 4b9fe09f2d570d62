"""Strategies that compute packets' tokens anew: exact where they promise it, and the tokens they choose."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
import transformers

from kvrag.attach import ComputedStates, Extent, PrivatePass, Seen
from kvrag.completion import Stream
from kvrag.errors import SettingsError
from kvrag.model import Rows
from kvrag.plan import plan_lane
from kvrag.prompt import PacketSegment, SoftSegment
from kvrag.recompute import PromptLayout, RelevantBlocks
from kvrag.request import Request
from kvrag.settings import Sampling
from kvrag.strategies import (
    A3,
    CacheBlend,
    FullRecompute,
    KVPacket,
    LegoLink,
    NoRecompute,
    PrefixCache,
    ProphetKV,
    RandomRecompute,
    SamKV,
    available_strategies,
)
from kvrag.worker import step

from ..conftest import CHUNKS, TINY
from .test_exactness import plain_logits
from .test_writer import adapter_of, random_pairs

HEAD, GAP, TAIL = "Read this first.\n", "\n\n", "\nQuestion: when was it lit? Answer:"
PROMPT = HEAD + GAP.join(CHUNKS) + TAIL
FULL = FullRecompute(segmented=True)
EVERYTHING = (
    A3(ratio=1.0),
    CacheBlend(ratio=1.0),
    KVPacket(repair=1.0),
    LegoLink(tokens=1000),
    ProphetKV(ratio=1.0),
    RandomRecompute(ratio=1.0),
    SamKV(initial=2, local=2, block=4, ratio=1.0),
)
NOTHING = (A3(ratio=0.0), CacheBlend(ratio=0.0), LegoLink(tokens=0), ProphetKV(ratio=0.0), RandomRecompute(ratio=0.0))
SOME = (
    A3(),
    CacheBlend(),
    KVPacket(repair=0.2),
    LegoLink(tokens=4),
    ProphetKV(),
    RandomRecompute(),
    SamKV(initial=2, local=2, block=4),
)
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "phi3": ("Phi3Config", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.1, "embedding_multiplier": 3.0}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 2, "sliding_window": None}),
}
DEEP = transformers.LlamaConfig(**TINY | {"num_hidden_layers": 6})


def by_name(strategy):
    return strategy.name


def planned(engine, strategy, prompt=PROMPT, new_tokens=8):
    return plan_lane(engine.model, engine.prepare(prompt, strategy=strategy), ComputedStates(0), new_tokens)


def first_logits(engine, strategy, prompt=PROMPT):
    """Logits of the row the first token is sampled from."""
    return engine.model.forward([planned(engine, strategy, prompt).rows])[0]


def close(a, b):
    """Float64 leaves only what transformers' float32 angles cost; a wrong mask costs a thousand times more."""
    assert (a - b).abs().max() / b.abs().max() < 1e-4


@pytest.fixture
def exact(new_engine):
    engine = new_engine(dtype=torch.float64, config=DEEP)
    engine.build(CHUNKS)
    return engine


@pytest.fixture
def computed(monkeypatch):
    """Rows that private passes computed, by layer, pass after pass."""
    rows: dict[int, list[list[int]]] = defaultdict(list)
    attend = PrivatePass.attend

    def spy(self, layer, query, *rest):
        assert query.shape[1] == len(self._places)
        rows[layer].append(self._places.tolist())
        return attend(self, layer, query, *rest)

    monkeypatch.setattr(PrivatePass, "attend", spy)
    return rows


def packet_rows(prepared):
    """Places of each packet's rows in the prompt."""
    places, at = [], 0
    for segment in prepared.segments:
        rows = range(at, at + prepared.length(segment))
        places += [list(rows)] if hasattr(segment, "key") else []
        at = rows.stop
    return places


def among_packets(prepared, rows):
    """Those of the rows that packets have."""
    return sorted(set(rows) & {row for packet in packet_rows(prepared) for row in packet})


@pytest.mark.parametrize("strategy", EVERYTHING, ids=by_name)
@pytest.mark.parametrize("head", ["", HEAD], ids=["packets first", "text first"])
def test_recomputing_everything_equals_full_recompute(exact, strategy, head):
    prompt = head + GAP.join(CHUNKS) + TAIL
    full = first_logits(exact, FULL, prompt)
    close(first_logits(exact, strategy, prompt), full)
    assert (first_logits(exact, NoRecompute(), prompt) - full).abs().max() > 1e-2


@pytest.mark.parametrize("strategy", EVERYTHING, ids=by_name)
def test_decoding_goes_on_as_behind_full_recompute(exact, strategy):
    """For more tokens than the lane has room for."""
    answers = [exact.generate(PROMPT, strategy=s, max_new_tokens=70) for s in (strategy, FULL)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


@pytest.mark.parametrize("strategy", NOTHING, ids=by_name)
def test_recomputing_nothing_equals_no_recompute(exact, strategy):
    close(first_logits(exact, strategy), first_logits(exact, NoRecompute()))


@pytest.mark.parametrize("strategy", SOME, ids=by_name)
def test_recomputing_some_is_neither_and_leaves_packets_and_model_as_they_were(exact, strategy):
    before = {key: packet.kv.clone() for key, packet in exact.prepare(PROMPT).packets.items()}
    some, full, none = (first_logits(exact, s) for s in (strategy, FULL, NoRecompute()))
    assert (some - full).abs().max() > 1e-3
    assert (some - none).abs().max() > 1e-3
    assert all(torch.equal(packet.kv, before[key]) for key, packet in exact.prepare(PROMPT).packets.items())
    assert not any(module._forward_pre_hooks for module in exact.model.modules())


@pytest.mark.parametrize("strategy", SOME, ids=by_name)
def test_a_repaired_lane_is_what_a_scattered_mask_makes_it(exact, strategy, computed):
    """Every row that is left out keeps its packet's keys and values, re-rotated; all others are the pass's own."""
    plan = planned(exact, strategy)
    private = plan.lane.own(0, plan.prepared.tokens).clone()
    exact.model.forward([plan.rows])
    if isinstance(strategy, SamKV):
        assert plan.lane.length < plan.prepared.tokens
        return
    assert plan.lane.length == plan.prepared.tokens
    for layer, passes in computed.items():
        left = [row for packet in packet_rows(plan.prepared) for row in packet if row not in passes[-1]]
        after = plan.lane.own(0, plan.lane.length)[layer]
        assert torch.equal(after[:, :, left], private[layer][:, :, left])
        assert left or layer < 2


def test_cacheblend_goes_on_with_what_deviates_most(new_engine, computed):
    """Packets whose values are wrong in the second layer at a tenth of their tokens: those go on to the third."""
    engine = new_engine(dtype=torch.float64)
    engine.build(CHUNKS)
    prepared = engine.prepare(PROMPT, strategy=CacheBlend(ratio=0.1))
    rows = [row for packet in packet_rows(prepared) for row in packet]
    planted = rows[3::10][: round(0.1 * len(rows))]
    damaged = {}
    for segment, places in zip((s for s in prepared.segments if hasattr(s, "key")), packet_rows(prepared), strict=True):
        packet = prepared.packets[segment.key]
        kv = packet.kv.clone()
        kv[1, 1, :, [n for n, row in enumerate(places) if row in planted]] += 100
        damaged[segment.key] = replace(packet, data=kv)
    plan = plan_lane(engine.model, replace(prepared, packets=damaged), ComputedStates(0), 1)
    engine.model.forward([plan.rows])
    assert among_packets(prepared, computed[0][0]) == among_packets(prepared, computed[1][0]) == rows
    assert among_packets(prepared, computed[2][0]) == planted


def test_cacheblend_computes_fewer_tokens_from_layer_to_layer(exact, computed):
    plan = planned(exact, CacheBlend(ratio=0.3, spread=0.5))
    exact.model.forward([plan.rows])
    layers = [set(computed[layer][0]) for layer in range(6)]
    packets = {row for packet in packet_rows(plan.prepared) for row in packet}
    text = set(range(plan.prepared.tokens)) - packets
    assert all(text <= rows for rows in layers)
    assert all(later < earlier for earlier, later in zip(layers[1:], layers[2:], strict=False))
    shares = [len(rows & packets) / len(packets) for rows in layers]
    assert shares == pytest.approx([1, 1, 0.45, 0.35, 0.25, 0.15], abs=0.01)
    assert plan.computed == sum(map(len, layers)) / 6
    assert plan.cached == plan.prepared.tokens - -(-sum(map(len, layers)) // 6)


def attentions(engine, prepared, mask):
    """Attention probabilities `[L, HQ, N, N]` of transformers' own eager forward under a boolean mask."""
    model, ids = engine.model._model, torch.tensor([prepared.token_ids])
    additive = torch.zeros(mask.shape, dtype=engine.model.dtype).masked_fill(~mask, torch.finfo(engine.model.dtype).min)
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(ids, attention_mask=additive[None, None], output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(ours)
    return torch.cat(found)


@pytest.mark.parametrize("strategy", [A3(ratio=0.1), ProphetKV(ratio=0.1)], ids=by_name)
def test_tokens_are_those_that_the_question_attends_to(exact, computed, strategy):
    """By transformers' own attention: over all layers of packets as they are, or in the first layer."""
    plan = planned(exact, strategy)
    exact.model.forward([plan.rows])
    packets = packet_rows(plan.prepared)
    mask = torch.ones(plan.prepared.tokens, plan.prepared.tokens, dtype=torch.bool).tril()
    for packet in packets:
        mask[packet[0] : packet[-1] + 1, : packet[0]] = False
    found = attentions(exact, plan.prepared, mask)[:, :, packets[-1][-1] + 1 :]
    rows = [row for packet in packets for row in packet]
    mass = (found[0] if isinstance(strategy, A3) else found.mean(0)).mean((0, 1))[rows]
    wanted = sorted(rows[n] for n in mass.topk(round(0.1 * len(rows))).indices)
    assert among_packets(plan.prepared, computed[5][-1]) == wanted
    if isinstance(strategy, ProphetKV):
        assert among_packets(plan.prepared, computed[0][0]) == []  # the question alone comes first, and is counted
        text = plan.prepared.tokens - len(rows)
        assert (plan.computed, plan.cached) == (2 * text + len(wanted), len(rows) - len(wanted))


@pytest.mark.parametrize("strategy", [LegoLink(tokens=4), RandomRecompute(), ProphetKV()], ids=by_name)
def test_tokens_computed_anew_equal_one_pass_in_which_packets_tokens_come_twice(exact, computed, strategy):
    """As they were encoded, each packet alone, and behind all of them those computed anew, which replace them."""
    plan = planned(exact, strategy)
    got = exact.model.forward([plan.rows])[0]
    ids, anew = torch.tensor(plan.prepared.token_ids), torch.tensor(computed[0][-1])
    packet_of = torch.full((len(ids),), -1)
    for number, rows in enumerate(packet_rows(plan.prepared)):
        packet_of[rows] = number
    old = (packet_of >= 0).nonzero()[:, 0]
    place = torch.cat([old, anew])
    is_new = torch.arange(len(place)) >= len(old)
    mask = place <= place[:, None]
    alone = packet_of[place] == packet_of[place][:, None]
    stays = ~torch.isin(place, anew) | is_new
    mask &= torch.where(is_new[:, None], stays, alone & ~is_new)
    close(got, plain_logits(exact.model, ids[place].tolist(), place.tolist(), mask)[-1])


def test_samkv_equals_full_recompute_of_the_tokens_that_it_keeps(exact, monkeypatch):
    """At the places that they have in the prompt."""
    choices = []
    choose = RelevantBlocks.choose

    def spy(self, *rest):
        choices.append(choose(self, *rest))
        return choices[-1]

    monkeypatch.setattr(RelevantBlocks, "choose", spy)
    plan = planned(exact, SamKV(initial=2, local=2, block=4))
    got = exact.model.forward([plan.rows])[0]
    packets = [row for packet in packet_rows(plan.prepared) for row in packet]
    kept = sorted(set(range(plan.prepared.tokens)) - set(packets) | set(choices[0].kept.nonzero()[:, 0].tolist()))
    assert len(kept) == plan.lane.length < plan.prepared.tokens
    ids = torch.tensor(plan.prepared.token_ids)[kept]
    close(got, exact.model.plain_forward(ids.tolist(), kept)[-1])


def heads(rows, chosen):
    """`[1, N, 4]` keys, queries or values: zero but for those given by row."""
    made = torch.zeros(1, rows, 4)
    for row, vector in chosen.items():
        made[0, row] = torch.tensor(vector)
    return made


@pytest.mark.parametrize(("ratio", "anchor", "blocks"), [(0.1, 0.0, 1), (None, 0.0, 2), (None, 0.5, 1), (None, 2.0, 0)])
def test_samkv_keeps_what_the_question_and_the_other_packets_look_for(ratio, anchor, blocks):
    """Two packets at 4 and 16, of 12 tokens; the last token of each looks for a block of the other."""
    layout = PromptLayout(30, [(4, 16), (16, 28)], 8, torch.device("cpu"))
    selection = RelevantBlocks(1, 1, 5, ratio, 1.0)
    inquiry = selection.inquire(layout)
    assert inquiry.places.tolist() == [0, 1, 2, 3, 15, 27, 28, 29]
    assert inquiry.sees[4].nonzero()[:, 0].tolist() == list(range(4, 16))  # the last of a packet: its own packet
    assert inquiry.sees[7].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 15, 16, 27, 28, 29]  # the question: both ends
    query = heads(8, {4: [1.0, 1, 0, 0], 5: [1.0, 0, 1, 0], 6: [1.0, 0, 0, 0], 7: [1.0, 0, 0, 0]})
    first, second = dict.fromkeys(range(5, 10), [0.0, 1, 0, 0]), dict.fromkeys(range(10, 15), [0.0, 0, 1, 0])
    third, fourth = dict.fromkeys(range(17, 22), [0.0, 1, 0, 0]), dict.fromkeys(range(22, 27), [0.0, 0, 1, 0])
    ends = {4: [0.0, 0, anchor, 0], 15: [0.0, 0, anchor, 0], 16: [0.0, anchor, 0, 0], 27: [0.0, anchor, 0, 0]}
    keys = heads(30, first | second | third | fourth | ends)
    none = torch.zeros(1, 8, 4)
    for layer in range(8):  # only the last is stable; the others are filled with what must not count
        noise = torch.full_like(keys, 9.0)
        inquiry.watch(Seen(layer, inquiry.places, query, none, none, none, none, keys if layer == 7 else noise, 0.5))
    choice = selection.choose(layout, inquiry)
    wanted = {0: [], 1: [*range(10, 15), *range(17, 22)], 2: [*range(5, 15), *range(17, 27)]}[blocks]
    assert choice.kept.nonzero()[:, 0].tolist() == sorted([4, 15, 16, 27, *wanted])


def test_lego_link_computes_the_first_tokens_of_packets_behind_something(exact, computed):
    prompt = GAP.join(CHUNKS) + TAIL
    plan = planned(exact, LegoLink(tokens=3), prompt)
    exact.model.forward([plan.rows])
    assert among_packets(plan.prepared, computed[0][0]) == [
        row for packet in packet_rows(plan.prepared)[1:] for row in packet[:3]
    ]
    assert plan.computed == len(computed[0][0]) == len(computed[5][0])


def test_random_tokens_are_as_many_as_asked_for_and_the_seeds_own(exact, computed):
    for seed in (0, 0, 1):
        exact.model.forward([planned(exact, RandomRecompute(ratio=0.1, seed=seed)).rows])
    prepared = exact.prepare(PROMPT)
    same, again, other = (among_packets(prepared, rows) for rows in computed[0])
    assert same == again != other
    assert len(same) == len(other) == round(0.1 * sum(map(len, packet_rows(prepared))))


@pytest.mark.parametrize("strategy", SOME, ids=by_name)
def test_several_prompts_at_once_equal_single_ones(exact, strategy):
    """Two that compute tokens anew and two that do not, in one step."""
    prompts = [PROMPT, HEAD + GAP.join(reversed(CHUNKS[:3])) + TAIL]
    strategies = [strategy, NoRecompute(), FULL, strategy]
    every = [(s, prompts[n % 2]) for n, s in enumerate(strategies)]
    alone = [first_logits(exact, s, prompt) for s, prompt in every]
    together = exact.model.forward([planned(exact, s, prompt).rows for s, prompt in every])
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-9)


def test_the_worker_answers_both_kinds_in_one_step(exact):
    strategies = [CacheBlend(), NoRecompute(), SamKV(initial=2, local=2, block=4), FULL]
    wanted = [exact.generate(PROMPT, strategy=s, max_new_tokens=12).token_ids for s in strategies]
    streams = [Stream() for _ in strategies]
    sampling = Sampling.of(max_new_tokens=12)
    active = [
        Request(exact.prepare(PROMPT, strategy=s), sampling, stream.delivery, s.name, 0.0)
        for s, stream in zip(strategies, streams, strict=True)
    ]
    while active:
        active = step(exact.model, ComputedStates(0), active)
    assert [stream.result().token_ids for stream in streams] == wanted


class WidePass(PrivatePass):
    """Computes all rows in all layers, but writes those only that a `PrivatePass` would have computed."""

    def attend(self, layer, query, key, value, scaling):
        self.layers_seen += 1
        kept = self._among if self._among is not None else torch.arange(len(self._places))
        keys, values = self._lane.own(0, self._tokens)[layer].unbind(0)
        old = keys[:, self._places[kept]], values[:, self._places[kept]]
        keys[:, self._places[kept]], values[:, self._places[kept]] = key[:, kept], value[:, kept]
        new = query[:, kept], key[:, kept], value[:, kept]
        left = None if self._watch is None else self._watch(Seen(layer, self._places[kept], *new, *old, keys, scaling))
        self._among = kept if left is None else kept[left]
        self.computed += len(kept)
        return self._attended(query, keys, values, scaling)

    def narrow(self):
        return None, None


@pytest.mark.parametrize("strategy", [CacheBlend(ratio=0.3), A3(ratio=0.3)], ids=by_name)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_left_out_are_as_if_computed_and_not_written(new_engine, monkeypatch, computed, family, strategy):
    config, options = FAMILIES[family]
    engine = new_engine(config=getattr(transformers, config)(**TINY | {"num_hidden_layers": 5} | options))
    engine.build(CHUNKS)
    got = first_logits(engine, strategy)
    assert len(computed[4][0]) < len(computed[2][0]) or isinstance(strategy, A3)
    assert len(computed[4][0]) < len(computed[0][0])
    monkeypatch.setattr("kvrag.recompute.repair.PrivatePass", WidePass)
    torch.testing.assert_close(got, first_logits(engine, strategy), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("name", [s.name for s in SOME])
def test_families_of_models_generate(new_engine, family, name):
    config, options = FAMILIES[family]
    engine = new_engine(config=getattr(transformers, config)(**TINY | options), strategy=name)
    engine.build(CHUNKS)
    answer = engine.generate(PROMPT, max_new_tokens=5)
    assert answer.strategy == name
    assert 0 < answer.usage.cached_tokens < answer.usage.prompt_tokens
    everything = next(s for s in EVERYTHING if s.name == name)
    torch.testing.assert_close(first_logits(engine, everything), first_logits(engine, FULL), rtol=1e-3, atol=1e-3)


def test_a_prompt_without_packets_is_computed_as_ever(exact):
    prompt = HEAD + TAIL
    for strategy in SOME:
        torch.testing.assert_close(first_logits(exact, strategy, prompt), first_logits(exact, FULL, prompt))


@pytest.fixture
def with_adapter(new_engine):
    """In float64, with a header, a trailer, a link and a writer, and packets of all chunks."""
    model = new_engine(dtype=torch.float64).model
    torch.manual_seed(11)
    soft = {name: torch.randn(count, 64) for name, count in (("header", 3), ("trailer", 2), ("link", 1))}
    adapter = adapter_of(model, random_pairs(model), **soft)
    engine = new_engine(dtype=torch.float64, adapter=adapter, strategy="kv-packet")
    engine.build(CHUNKS)
    return engine


def test_soft_tokens_of_packets_stay_and_tokens_between_them_may_be_computed_anew(with_adapter, computed):
    engine = with_adapter
    prepared = engine.prepare(PROMPT, strategy=KVPacket(repair=0.3))
    as_they_are, plan = (planned(engine, KVPacket(repair=share)) for share in (0.001, 0.3))
    engine.model.forward([as_they_are.rows])
    computed.clear()
    engine.model.forward([plan.rows])
    packets = packet_rows(prepared)
    soft = {row for rows in packets for row in (*rows[:3], *rows[-2:])}
    tokens = {row for rows in packets for row in rows[3:-2]}
    for asking, repairing in computed.values():
        assert not {*asking} & tokens
        assert len({*repairing} & tokens) == round(0.3 * len(tokens))
        assert not ({*asking} | {*repairing}) & soft
    before, after = (p.lane.own(0, p.prepared.tokens) for p in (as_they_are, plan))
    assert torch.equal(before[..., sorted(soft), :], after[..., sorted(soft), :])
    anew = sorted({*computed[0][1]} & tokens)
    assert (before[-1][..., anew, :] != after[-1][..., anew, :]).any(-1).all()


def test_a_repair_of_everything_is_full_recompute_around_soft_tokens(with_adapter):
    """Whatever a packet's tokens were, they are computed as text is that stands between the same soft tokens."""
    engine = with_adapter
    repaired = planned(engine, KVPacket(repair=1.0))
    prepared = engine.prepare(PROMPT, strategy=KVPacket())
    lane = engine.model.new_lane(repaired.prepared.tokens)
    soft, ids, positions, extents = [], [], [], []
    for segment, start in zip(prepared.segments, prepared.starts, strict=True):
        length = prepared.length(segment)
        if isinstance(segment, SoftSegment):
            soft.append((len(ids), prepared.soft[segment.name]))
            ids += [0] * length
            positions += range(start, start + length)
        elif isinstance(segment, PacketSegment):
            header, _, trailer = prepared.packets[segment.key].kv.split((3, length - 5, 2), dim=3)
            extents.append(Extent(header.contiguous(), start, len(ids)))
            ids += segment.ids
            extents.append(Extent(trailer.contiguous(), start, len(ids)))
            positions += range(start + 3, start + length - 2)
        else:
            ids += segment.ids
            positions += range(start, start + length)
    lane.attach(extents)
    expected = engine.model.forward([Rows(lane, ids, positions, soft)])[0]
    close(engine.model.forward([repaired.rows])[0], expected)


def test_a_share_to_repair_is_a_share():
    with pytest.raises(SettingsError, match="repair between 0 and 1"):
        KVPacket(repair=1.5)


def test_a_sink_that_packets_left_out_is_not_computed_anew(exact):
    prepared = exact.prepare(PROMPT)
    packet = next(iter(prepared.packets.values()))
    recipe = packet.scope.recipe.model_copy(update={"ids_before": (7, 8, 9), "ids_after": (5,), "dropped": 2})
    made = replace(packet, scope=replace(packet.scope, recipe=recipe))
    assert made.encoded_ids == [9, *packet.token_ids.tolist(), 5]


@pytest.mark.parametrize("head", ["", HEAD], ids=["packet first", "text first"])
def test_a_prefix_cache_is_full_recompute_bit_for_bit(exact, head):
    prompt = head + GAP.join(CHUNKS) + TAIL
    full = first_logits(exact, FULL, prompt)
    plan = planned(exact, PrefixCache(), prompt)
    opening = 0 if head else len(packet_rows(exact.prepare(prompt))[0])
    assert plan.cached == opening
    got = exact.model.forward([plan.rows])[0]
    torch.testing.assert_close(got, full, rtol=1e-9, atol=1e-9)
    if head:
        assert torch.equal(got, full)


def test_a_prefix_cache_reuses_the_common_beginning_of_prompts(exact):
    first, second = PROMPT, HEAD + GAP.join([*CHUNKS[:2], CHUNKS[3]]) + TAIL
    exact.generate(first, strategy="prefix-cache", max_new_tokens=3)
    answer = exact.generate(second, strategy="prefix-cache", max_new_tokens=12)
    shared = sum(len(exact.token_ids(text)) for text in (HEAD, CHUNKS[0], GAP, CHUNKS[1], GAP))
    assert shared <= answer.usage.cached_tokens < shared + 5  # chunks may begin alike
    assert answer.token_ids == exact.generate(second, strategy=FULL, max_new_tokens=12).token_ids


@pytest.mark.parametrize("kind", [A3, CacheBlend, ProphetKV, RandomRecompute])
def test_shares_are_shares(kind):
    with pytest.raises(SettingsError, match="between 0 and 1, found 1.5"):
        kind(ratio=1.5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LegoLink, {"tokens": -1}), (SamKV, {"local": 0}), (SamKV, {"ratio": 2.0}), (CacheBlend, {"spread": -0.1})],
)
def test_other_options_are_checked(kind, options):
    with pytest.raises(SettingsError, match="expected .* found"):
        kind(**options)


def test_only_strategies_of_plain_packets_compute_them_anew():
    for kind in available_strategies().values():
        strategy = kind()
        assert strategy.selection is None or not strategy.recipe(None).uses_adapter
    assert KVPacket().selection is None
