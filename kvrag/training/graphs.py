"""Training steps as CUDA graphs.

A step over a small model is thousands of short kernels, and a GPU works them off faster than they can be launched. So
batches are filled up to one of a few common sizes, and each size's loss and gradients are recorded once and replayed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch

from kvrag.packed_rows import PackedRows, RowSizes
from kvrag.training.examples import Batch, BatchSizes
from kvrag.training.task import Task

__all__ = ["Graphs", "common_sizes"]

_SIZES = ((0.5, 1.0), (0.9, 1.0), (1.0, 1.25))
"""Shares of a sample that are held, and room besides."""

_WARM_UPS = 2
_READ = ("ids", "positions", "soft_rows", "soft", "answer_rows", "answer_ids", "labels")
"""What a loss reads of packed rows, besides their layout."""


def common_sizes(batches: Sequence[Batch]) -> list[BatchSizes]:
    """Sizes, smallest first, that hold half of batches like these, most of them, and nearly all.

    Args:
        batches: a sample; none gives no sizes.
    """
    found = sorted((BatchSizes.of(batch) for batch in batches), key=lambda sizes: sizes.rows)
    made: list[BatchSizes] = []
    for share, room in _SIZES if found else ():
        part = found[: max(1, round(share * len(found)))]
        students = [sizes.student for sizes in part if sizes.student is not None]
        teacher = RowSizes.covering([sizes.teacher for sizes in part], room)
        made.append(BatchSizes(teacher, RowSizes.covering(students, room) if students else None))
    return made


class Graphs:
    """Losses and gradients of filled-up batches.

    Args:
        task: whose parameters have gradients that stay where they are: graphs add to them.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._graphs: dict[BatchSizes, _Graph] = {}
        self._stream = torch.cuda.Stream(task.model.device)
        self._pool = torch.cuda.graph_pool_handle()

    def backward(self, batch: Batch) -> torch.Tensor:
        """The batch's loss, after its gradients were added to the parameters'."""
        assert batch.sizes is not None
        with torch.cuda.device(self._task.model.device):
            graph = self._graphs.get(batch.sizes)
            if graph is None:
                graph = self._graphs[batch.sizes] = _Graph(self._task, batch, self._stream, self._pool)
            return graph.replay(batch)


class _Graph:
    """One size's loss and gradients."""

    def __init__(self, task: Task, batch: Batch, stream: torch.cuda.Stream, pool: Any) -> None:
        self._batch = batch.to(task.model.device)
        gradients = [p.grad for p in task.parameters.values() if p.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._backward(task)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._loss = self._backward(task)
        for gradient, value in zip(gradients, before, strict=True):
            gradient.copy_(value)

    def _backward(self, task: Task) -> torch.Tensor:
        with task.loss(self._batch) as value:
            value.backward()
        return value.detach()

    def replay(self, batch: Batch) -> torch.Tensor:
        for mine, theirs in zip(_tensors(self._batch), _tensors(batch), strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._loss.clone()


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    rows: list[PackedRows | None] = [batch.teacher, batch.student]
    for part in rows:
        if part is not None:
            yield from (getattr(part, name) for name in _READ)
            yield from (getattr(part.layout, field.name) for field in fields(part.layout))
