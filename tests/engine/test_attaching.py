"""Every strategy that only attaches: what is exact about it, against transformers' own forward in float64."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvrag.errors import AdapterError, SettingsError
from kvrag.evaluation.backends import AnswererChoice
from kvrag.evaluation.batched_answerer import BatchedAnswerer
from kvrag.evaluation.cases import Case
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.prompt import PacketSegment, SoftSegment
from kvrag.strategies import (
    APE,
    ControlChat,
    ControlPreamble,
    ControlSeparator,
    ControlSink,
    FullRecompute,
    KVLink,
    KVPacket,
    LegoLinkZero,
    NoRecompute,
    TurboRAGComposite,
    strategy_from_name,
)

from ..conftest import CHUNKS, TINY, build_model
from .test_exactness import HEAD, TAIL, adapter_for, close, first_logits, plain_logits, prompt_of

ATTACHING = [
    APE(temperature=1.0, scale=1.0),
    ControlChat(),
    ControlPreamble(),
    ControlSeparator(),
    ControlSink(),
    KVLink(),
    KVPacket(),
    LegoLinkZero(),
    NoRecompute(),
    TurboRAGComposite(),
]
BY_NAME = {"argvalues": ATTACHING, "ids": lambda strategy: strategy.name}


@pytest.fixture
def trained(new_engine):
    """An engine in float64 whose adapter has links, and nothing else."""
    return new_engine(dtype=torch.float64, adapter=adapter_for(new_engine, 0, 0, link=2))


def written_out(engine, prompt, strategy):
    """The prompt as one pass: embeddings, positions, which row sees which, and which are packets' kept tokens.

    Packets are spelled out by their recipe, those rows too that a packet leaves out, where they were encoded.
    """
    prepared = engine.prepare(prompt, strategy=strategy)
    recipe = engine.scope(strategy).recipe
    embed = engine.model._model.get_input_embeddings()
    pieces, positions, kinds = [], [], []
    for number, (segment, start) in enumerate(zip(prepared.segments, prepared.starts, strict=True), 1):
        if isinstance(segment, SoftSegment):
            piece, begin, left_out = engine.adapter.soft(segment.name)[: segment.tokens].double(), start, 0
        elif isinstance(segment, PacketSegment):
            piece = embed(torch.tensor([*recipe.ids_before, *segment.ids, *recipe.ids_after]))
            begin, left_out = start - recipe.dropped, recipe.dropped
        else:
            piece, begin, left_out = embed(torch.tensor(segment.ids)), start, 0
        pieces.append(piece)
        positions += range(begin, begin + len(piece))
        own = number if isinstance(segment, PacketSegment) else 0
        kinds += [(own, place < left_out) for place in range(len(piece))]
    span = torch.tensor([own for own, _ in kinds])
    hidden = torch.tensor([left_out for _, left_out in kinds])
    seen = (span[:, None] == span) | ((span == 0)[:, None] & ~hidden)
    return torch.cat(pieces).detach(), positions, seen.tril(), (span > 0) & ~hidden


@pytest.mark.parametrize("strategy", **BY_NAME)
def test_attaching_equals_one_pass_over_everything_written_out(trained, strategy):
    trained.build(CHUNKS, strategy=strategy)
    prompt = prompt_of(CHUNKS[:4])
    attached, plan = first_logits(trained, prompt, strategy)
    assert plan.cached > 0
    embeds, positions, mask, _ = written_out(trained, prompt, strategy)
    close(attached, plain_logits(trained.model, None, positions, mask, embeds)[-1])


@pytest.mark.parametrize("strategy", **BY_NAME)
def test_batched_answers_are_those_of_the_engine(trained, strategy):
    cases = []
    for chunks in (CHUNKS[:3], CHUNKS[2:4]):
        prompt = prompt_of(chunks)
        places = [prompt.index(chunk) for chunk in chunks]
        cases.append(Case(prompt, tuple((at, at + len(c)) for at, c in zip(places, chunks, strict=True))))
    ours = BatchedAnswerer(trained.model, trained.adapter, 4).answer(cases, strategy)
    theirs = EngineAnswerer(trained, 4).answer(cases, strategy)
    for mine, served in zip(ours, theirs, strict=True):
        assert (mine.token_ids, mine.prompt_tokens) == (served.token_ids, served.prompt_tokens)
        torch.testing.assert_close(mine.logits, served.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "strategy", [s for s in ATTACHING if type(s) in (KVLink, KVPacket, NoRecompute, TurboRAGComposite)]
)
def test_one_packet_at_position_zero_equals_full_recompute(new_engine, strategy):
    exact = new_engine(dtype=torch.float64)
    exact.build([CHUNKS[0]], strategy=strategy)
    attached, plan = first_logits(exact, CHUNKS[0] + TAIL, strategy)
    full, _ = first_logits(exact, CHUNKS[0] + TAIL, FullRecompute(segmented=True))
    assert plan.cached > 0
    torch.testing.assert_close(attached, full, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "strategy",
    [APE(temperature=1.0, scale=1.0, prefix=HEAD), ControlPreamble(preamble=HEAD), LegoLinkZero(before=())],
    ids=lambda strategy: strategy.name,
)
def test_a_chunk_encoded_behind_what_stands_before_it_is_exact(new_engine, strategy):
    """APE with one context and both factors 1, and what else encodes a chunk where it will stand."""
    exact = new_engine(dtype=torch.float64)
    head = HEAD if strategy.before is None else ""
    exact.build(CHUNKS[:1], strategy=strategy)
    attached, plan = first_logits(exact, head + CHUNKS[0] + TAIL, strategy)
    full, _ = first_logits(exact, head + CHUNKS[0] + TAIL, FullRecompute(segmented=True))
    assert plan.cached > 0
    close(attached, full)


def test_kvlink_without_links_equals_no_recompute_and_shares_its_packets(trained):
    trained.build(CHUNKS)
    none, plain = (first_logits(trained, prompt_of(CHUNKS), s)[0] for s in (KVLink(links=0), NoRecompute()))
    assert torch.equal(none, plain)
    some, _ = first_logits(trained, prompt_of(CHUNKS), KVLink())
    assert (some - plain).abs().max() > 1e-2


def test_kvlink_takes_as_many_links_as_asked_for_and_refuses_more(trained):
    trained.build(CHUNKS)
    prompt = prompt_of(CHUNKS[:3])
    links = [
        s.tokens for s in trained.prepare(prompt, strategy="kvlink:links=1").segments if isinstance(s, SoftSegment)
    ]
    assert links == [1, 1, 1]
    attached, _ = first_logits(trained, prompt, KVLink(links=1))
    embeds, positions, mask, _ = written_out(trained, prompt, KVLink(links=1))
    close(attached, plain_logits(trained.model, None, positions, mask, embeds)[-1])
    with pytest.raises(AdapterError, match="5 link tokens, found 2"):
        trained.prepare(prompt, strategy=KVLink(links=5))


def ape_by_the_paper(is_context, temperature, scale):
    """Equation (2) of the paper as an attention function: no log-sum-exp anywhere."""

    def attention(module, query, key, value, attention_mask, scaling, **_):
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling
        visible = attention_mask == 0
        context = is_context & visible & ~is_context[:, None]  # rows of packets attend as they were encoded
        own = scores.exp() * (visible & ~context)
        sharp = (scores / temperature).exp() * context
        total = sharp.sum(-1, keepdim=True)
        sharp = torch.where(total > 0, sharp * total ** (scale * temperature - 1), 0.0)
        weights = own + sharp
        return (weights / weights.sum(-1, keepdim=True) @ value).transpose(1, 2), None

    return attention


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.5, 0.7), (0.9, 0.9), (1.0, 0.4)])
def test_ape_attends_as_its_paper_says(new_engine, temperature, scale):
    exact = new_engine(dtype=torch.float64)
    strategy = APE(temperature=temperature, scale=scale, prefix=HEAD)
    exact.build(CHUNKS, strategy=strategy)
    prompt = prompt_of(CHUNKS[:4])
    attached, _ = first_logits(exact, prompt, strategy)
    embeds, positions, mask, is_context = written_out(exact, prompt, strategy)
    hidden = ~mask[-1]  # rows that packets leave out belong to packets too
    ALL_ATTENTION_FUNCTIONS.register("ape_paper", ape_by_the_paper(is_context | hidden, temperature, scale))
    paper = build_model(LlamaConfig(**TINY), torch.float64)
    paper.set_attn_implementation("ape_paper")
    added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    with torch.no_grad():
        wanted = paper(
            inputs_embeds=embeds[None], position_ids=torch.tensor([positions]), attention_mask=added[None, None]
        ).logits[0, -1]
    close(attached, wanted)


def test_ape_decodes_with_its_factors_too(new_engine):
    exact = new_engine(dtype=torch.float64)
    strategies = [APE(prefix=HEAD), APE(temperature=1.0, scale=1.0, prefix=HEAD)]
    exact.build(CHUNKS, strategy=strategies[0])
    case = Case(prompt_of(CHUNKS[:4]), (), rows=0)
    given = [list(range(20, 26))]
    first, second = (EngineAnswerer(exact, 2, builds=False).answer([case], s, given)[0].logits for s in strategies)
    assert ((first - second).abs().amax(1) > 1e-4).all()


def test_what_the_packed_pass_cannot_do_is_answered_by_the_engine(new_engine):
    engine = new_engine()
    choose = AnswererChoice(engine, "auto", 4)
    assert isinstance(choose(APE()), EngineAnswerer)
    assert isinstance(choose(APE(temperature=1.0, scale=1.0)), BatchedAnswerer)
    assert isinstance(choose(LegoLinkZero()), BatchedAnswerer)


def test_parallel_packets_share_a_place_and_text_goes_on_behind_the_longest(trained):
    for strategy, place in ((APE(), None), (TurboRAGComposite(), 0)):
        trained.build(CHUNKS, strategy=strategy)
        prepared = trained.prepare(prompt_of(CHUNKS[:3]), strategy=strategy)
        head = len(prepared.segments[0].ids)
        packets = [n for n, s in enumerate(prepared.segments) if isinstance(s, PacketSegment)]
        at = head if place is None else place
        assert {prepared.starts[n] for n in packets} == {at}
        longest = max(prepared.length(prepared.segments[n]) for n in packets)
        texts = [n for n in range(1, len(prepared.segments)) if n not in packets]
        assert prepared.starts[texts[0]] == max(head, at + longest)
        gaps = [prepared.starts[b] - prepared.starts[a] for a, b in zip(texts, texts[1:], strict=False)]
        assert gaps == [prepared.length(prepared.segments[n]) for n in texts[:-1]]


def test_options_stand_behind_a_name(trained):
    assert strategy_from_name("ape:temperature=0.5:prefix=Read this") == APE(temperature=0.5, prefix="Read this")
    with pytest.raises(SettingsError, match="temperature, scale, prefix"):
        strategy_from_name("ape:heat=1")
    with pytest.raises(SettingsError, match="above 0"):
        strategy_from_name("ape:scale=0")
    with pytest.raises(SettingsError, match="fitted"):
        LegoLinkZero().recipe(None)


def test_sinks_and_templates_are_those_of_the_model(trained):
    framing = trained.model.framing
    begin, end = trained.token_ids("<|im_start|>"), trained.token_ids("<|im_end|>")
    assert trained.scope("lego-link-0").recipe.ids_before == (*begin,) * 4
    assert trained.scope("lego-link-0").recipe.extra_tokens == 0
    assert framing.opening == "<|im_start|>user\n"
    assert framing.closing == "<|im_end|>\n"
    chat = trained.scope("control-chat").recipe
    assert (chat.ids_before[:1], chat.ids_after[:1], chat.dropped) == ((*begin,), (*end,), 0)
    assert trained.scope("control-preamble").recipe.dropped == len(chat.ids_before)
