"""Batches that are filled up to common sizes teach the same."""

import random

import pytest
import torch

from kvrag.packed_rows import Branch, PromptTree, RowSizes
from kvrag.packet import PacketKey
from kvrag.packing import pack_prompts
from kvrag.prompt import PacketSegment
from kvrag.qa.templates import TEMPLATES
from kvrag.strategies import NoRecompute
from kvrag.training import AdapterTask, ReaderTask
from kvrag.training.data import Steps
from kvrag.training.examples import BatchSizes
from kvrag.training.graphs import common_sizes
from kvrag.training.mixture import Mixture
from tests.training.toy_runs import EVERYTHING, toy_questions, toy_settings

TASKS = {
    "adapter": lambda model: AdapterTask(model, EVERYTHING, question_tokens=3),
    "labels": lambda model: AdapterTask(model, EVERYTHING, question_tokens=3, labels=0.5),
    "reader": lambda model: ReaderTask(model, rank=4),
    "bare": lambda model: ReaderTask(model, rank=4, share=0.5),
    "packets": lambda model: ReaderTask(model, rank=4, share=0.5, shape=EVERYTHING),
}


def steps_of(task) -> Steps:
    settings = toy_settings(answers="given", steps=12)
    return Steps(task, Mixture([(toy_questions(), 1.0)], settings, "training"), TEMPLATES, settings)


def learn(task, batch) -> tuple[float, list[torch.Tensor]]:
    for p in task.parameters.values():
        p.grad = None
    with task.loss(batch) as loss:
        loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in task.parameters.values()]
    return loss.item(), gradients


@pytest.mark.parametrize("kind", TASKS)
def test_filled_up_batches_have_the_same_loss_and_gradients(kind, tiny):
    task = TASKS[kind](tiny)
    tiny.freeze()
    rng = torch.Generator().manual_seed(3)
    for p in task.parameters.values():
        p.data += 0.05 * torch.randn(p.shape, generator=rng)
    steps = steps_of(task)
    plain = steps.sample(6)
    steps.sizes = common_sizes(plain)
    filled = steps.sample(6)
    assert all(batch.sizes in steps.sizes for batch in filled)
    for bare, batch in zip(plain, filled, strict=True):
        assert len(batch.teacher.ids) > len(bare.teacher.ids)
        assert batch.answer_tokens == bare.answer_tokens == len(bare.teacher.answer_ids)
        (loss, gradients), (expected, wanted) = learn(task, batch), learn(task, bare)
        assert loss == pytest.approx(expected, rel=1e-5)
        for gradient, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("kind", TASKS)
def test_batches_of_one_common_size_have_the_same_shapes(kind, tiny):
    steps = steps_of(TASKS[kind](tiny))
    steps.sizes = common_sizes(steps.sample(12))[-1:]
    batches = steps.sample(12)
    for part in ("teacher", "student"):
        rows = [getattr(batch, part) for batch in batches if getattr(batch, part) is not None]
        for name in ("ids", "positions", "soft", "soft_rows", "answer_rows", "answer_ids", "labels"):
            assert len({getattr(of, name).shape for of in rows}) <= 1, name
        for name in vars(rows[0].layout) if rows else ():
            assert len({getattr(of.layout, name).shape for of in rows}) == 1, name


def test_common_sizes_grow_and_the_smallest_that_holds_a_batch_is_taken(tiny):
    steps = steps_of(AdapterTask(tiny, EVERYTHING))
    plain = steps.sample(12)
    steps.sizes = common_sizes(plain)
    assert [sizes.rows for sizes in steps.sizes] == sorted(sizes.rows for sizes in steps.sizes)
    for bare, batch in zip(plain, steps.sample(12), strict=True):
        assert batch.sizes == next(sizes for sizes in steps.sizes if sizes.hold(BatchSizes.of(bare)))


def test_a_batch_larger_than_all_sizes_stays_as_it_is(tiny):
    steps = steps_of(AdapterTask(tiny, EVERYTHING))
    plain = sorted(steps.sample(12), key=lambda batch: len(batch.teacher.ids))
    steps.sizes = common_sizes(plain[:1])
    assert {batch.sizes for batch in steps.sample(12)} == {None, steps.sizes[0]}


def test_no_sample_gives_no_sizes():
    assert common_sizes([]) == []


@pytest.mark.parametrize("seed", range(8))
def test_what_sizes_hold_can_be_filled_up_to_exactly_these(seed):
    """Also what was in no sample."""
    rng = random.Random(seed)

    def prompts(most: int) -> list[PromptTree]:
        chunks = [
            [
                PacketSegment(PacketKey("k"), (7,) * rng.randint(1, rng.choice((3, 30))), 0, 0)
                for _ in range(rng.randint(1, 6))
            ]
            for _ in range(rng.randint(1, most))
        ]
        return [
            PromptTree(
                tuple(of),
                tuple(Branch((5,) * rng.randint(1, 9), (6,) * rng.randint(1, 4)) for _ in range(rng.randint(1, 4))),
            )
            for of in chunks
        ]

    held = 0
    for _ in range(40):
        sample = [RowSizes.of(pack_prompts(prompts(3), NoRecompute(), None)) for _ in range(3)]
        sizes = RowSizes.covering(sample, rng.choice((1.0, 1.25)))
        for _ in range(6):
            trees = prompts(3)
            if sizes.hold(RowSizes.of(pack_prompts(trees, NoRecompute(), None))):
                held += 1
                assert RowSizes.of(pack_prompts(trees, NoRecompute(), None, sizes)) == sizes
        assert all(sizes.hold(size) for size in sample)
    assert held > 20
