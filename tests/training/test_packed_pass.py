"""The pass that training differentiates is the one that serving computes."""

import random
from collections.abc import Callable

import pytest
import torch

from kvrag import PacketEngine
from kvrag.adapter import Adapter, AdapterHeader
from kvrag.attach import ComputedStates
from kvrag.batched import compute_rows, generate_greedily, soft_table, writing
from kvrag.packed_rows import Branch, PromptTree
from kvrag.packing import pack_prompts
from kvrag.plan import plan_lane
from kvrag.prompt import TextSegment
from kvrag.qa import Context, Question
from kvrag.qa.templates import TEMPLATES
from kvrag.strategies import FullRecompute, KVPacket, NoRecompute
from kvrag.training.examples import Grower, micro_batches
from tests.conftest import CHUNKS

QUESTIONS = ("How many goats?", "When does the last boat leave, and from where does it leave?", "Why?")
PLAIN = [t for t in TEMPLATES if t.name in ("chat", "raw", "numbered", "system-context")]


def make_adapter(model, *, header=3, trailer=2, link=0, rank=0, sink=0, seed=0) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.3 * torch.randn(count, model.hidden_size, generator=rng)
        for name, count in (("header", header), ("trailer", trailer), ("link", link))
        if count
    }
    if rank:
        for path, module in model.linear_modules().items():
            tensors[f"writer.{path}.lora_A.weight"] = 0.2 * torch.randn(rank, module.in_features, generator=rng)
            tensors[f"writer.{path}.lora_B.weight"] = 0.2 * torch.randn(module.out_features, rank, generator=rng)
    identity = model.identity
    told = {"weights": identity.weights, "config": identity.config, "sink": model.prompt_beginning(sink)}
    return Adapter(AdapterHeader(**told, writer_scale=1.5), tensors)


def trees_of(model, contexts) -> list[PromptTree]:
    grower = Grower(model, 4000, 8)
    return [tree for context, template in contexts for tree in grower.trees(context, template, answers=False)]


def some_contexts() -> list[tuple[Context, object]]:
    rng = random.Random(0)
    return [
        (Context(tuple(rng.sample(CHUNKS, count)), tuple(Question(q) for q in QUESTIONS[:asked])), template)
        for count, asked, template in ((3, 3, PLAIN[0]), (1, 1, PLAIN[1]), (4, 2, PLAIN[2]), (2, 3, PLAIN[3]))
    ]


def served_logits(engine: PacketEngine, tree: PromptTree, branch: Branch) -> torch.Tensor:
    """Logits behind the prompt, by the very parts that serve it."""
    segments = [*tree.trunk, TextSegment(branch.ids, 0, 0)]
    prompt = "".join(
        segment.key if not isinstance(segment, TextSegment) else engine.model.tokenizer.decode(segment.ids)
        for segment in segments
    )
    prepared = engine.prepare(prompt)
    assert prepared.token_ids == [i for segment in segments for i in segment.ids]
    plan = plan_lane(engine.model, prepared, ComputedStates(0), 1)
    return engine.model.forward([plan.rows])[0]


FORMS = {
    "nothing": None,
    "soft": {},
    "links": {"link": 2},
    "writer": {"header": 0, "trailer": 0, "rank": 3},
    "sink": {"sink": 2},
    "everything": {"link": 2, "rank": 3, "sink": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_students_block_diagonal_pass_equals_build_then_attach(form, new_engine: Callable[..., PacketEngine]):
    model = new_engine().model
    adapter = None if FORMS[form] is None else make_adapter(model, **FORMS[form])
    engine = new_engine(adapter=adapter or "none", strategy="kv-packet", folder="packets")
    engine.build(CHUNKS)
    trees = trees_of(engine.model, some_contexts())
    rows = pack_prompts(trees, KVPacket(), adapter)
    writer = adapter.writer if adapter is not None and adapter.rank else None
    with torch.no_grad(), writing(engine.model, writer, rows):
        logits, _ = compute_rows(engine.model, rows, soft_table(adapter, engine.model.device), rows.last_rows.flatten())
    logits = logits.unflatten(0, rows.last_rows.shape)
    for number, tree in enumerate(trees):
        for which, branch in enumerate(tree.branches):
            expected = served_logits(engine, tree, branch)
            torch.testing.assert_close(logits[number, which], expected, atol=2e-4, rtol=1e-4)


def test_the_teachers_pass_equals_full_attention(tiny):
    trees = trees_of(tiny, some_contexts())
    rows = pack_prompts(trees, FullRecompute(segmented=True), None)
    with torch.no_grad():
        logits, _ = compute_rows(tiny, rows, None, rows.last_rows.flatten())
    logits = logits.unflatten(0, rows.last_rows.shape)
    for number, tree in enumerate(trees):
        for which, branch in enumerate(tree.branches):
            ids = [i for s in [*tree.trunk, TextSegment(branch.ids, 0, 0)] for i in s.ids]
            expected = tiny.plain_forward(ids, range(len(ids)))[-1]
            torch.testing.assert_close(logits[number, which], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", [FullRecompute(segmented=True), NoRecompute()])
def test_answers_of_many_prompts_equal_those_of_the_engine(strategy, engine):
    engine.build(CHUNKS)
    trees = trees_of(engine.model, some_contexts())
    rows = pack_prompts(trees, strategy, None)
    answers = generate_greedily(engine.model, rows, None, None, 6).tokens
    for tree, of_tree in zip(trees, answers, strict=True):
        for branch, answer in zip(tree.branches, of_tree, strict=False):
            segments = [*tree.trunk, TextSegment(branch.ids, 0, 0)]
            prompt = "".join(
                s.key if not isinstance(s, TextSegment) else engine.model.tokenizer.decode(s.ids) for s in segments
            )
            served = engine.generate(prompt, strategy=strategy, max_new_tokens=6, temperature=0)
            assert list(served.token_ids) == answer


def test_answer_rows_predict_the_answer(tiny):
    branches = (Branch((5, 6, 7), (8, 9, 2)), Branch((5, 11), (12, 2)))
    rows = pack_prompts([PromptTree((TextSegment((3, 4), 0, 0),), branches)], FullRecompute(segmented=True), None)
    assert rows.answer_ids.tolist() == [8, 9, 2, 12, 2]
    assert rows.ids[rows.answer_rows].tolist() == [7, 8, 9, 11, 12]
    assert rows.positions[rows.answer_rows].tolist() == [4, 5, 6, 3, 4]


def test_groups_of_prompts_hold_all_of_them_and_no_more_tokens_than_asked_for():
    trees = [PromptTree((), (Branch(tuple(range(n + 1))),)) for n in (5, 50, 7, 7, 120, 9)]
    groups = micro_batches(trees, 60)
    assert sorted(t.tokens for g in groups for t in g) == sorted(t.tokens for t in trees)
    assert all(len(g) == 1 or sum(t.tokens for t in g) <= 60 for g in groups)
