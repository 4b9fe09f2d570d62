"""Passes of few rows as CUDA graphs.

A question over attached packets is a pass of some dozen rows through a thousand kernels, and a GPU works them off
faster than they can be launched. So the pass is recorded once per size and replayed. What changes from one prompt to
the next stands in buffers that stay where they are: token ids, positions, and the work that attention kernels read.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from kvrag_kernels.packet_attention.device import DeviceWork

from kvrag.attach import Pass
from kvrag.attach.device import SIZES, DevicePass

__all__ = ["ForwardGraphs"]

_log = logging.getLogger("kvrag")
_WARM_UPS = 2

Run = Callable[[torch.Tensor, torch.Tensor, Pass, torch.Tensor], torch.Tensor]


@dataclass
class _Graph:
    """One recorded pass.

    Attributes:
        work: whose buffers it reads.
        staged: `[2 S + W]` on the host: ids, negative where a row has an embedding of its own; positions; wanted rows.
        numbers: the same on the device, read.
        soft: `[S, hidden]` embeddings of rows that have their own, read.
        copied: when `staged` may be written again.
        logits: `[W, vocab]`, written.
        replay: does the pass.
    """

    work: DeviceWork
    staged: torch.Tensor
    numbers: torch.Tensor
    soft: torch.Tensor
    copied: torch.cuda.Event | None
    logits: torch.Tensor
    replay: Callable[[], Any]


class ForwardGraphs:
    """Records and replays the passes of one model.

    Args:
        run: the model's forward.
        embed: its input embeddings.
        record: makes something that repeats a call, with all it read and wrote staying where it is; None is a CUDA
            graph.

    Attributes:
        sizes: rows of passes that are recorded; what has fewer is filled up.
        refused: why the model cannot be recorded; empty as long as it can.
    """

    sizes = SIZES

    def __init__(
        self,
        run: Run,
        embed: Callable[[torch.Tensor], torch.Tensor],
        record: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None,
    ) -> None:
        self._run = run
        self._embed = embed
        self._record = record or _Recorder()
        self._graphs: dict[tuple[int, int, frozenset[str]], _Graph] = {}
        self.refused = ""

    def takes(self, current: Pass) -> TypeGuard[DevicePass]:
        """Whether a pass is one that is recorded."""
        return isinstance(current, DevicePass) and current.rows <= self.sizes[-1] and not self.refused

    def run(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        soft: Sequence[tuple[int, torch.Tensor]],
        current: DevicePass,
        wanted: Sequence[int],
    ) -> torch.Tensor | None:
        """Logits `[n, vocab]` of a pass, as `LanguageModel.run` gives them; None if the model cannot be recorded.

        Args:
            ids: `[S]` token ids.
            positions: `[S]`.
            soft: rows that have embeddings `[m, hidden]` of their own, by the first of them.
            current: the pass; its work is in its buffers.
            wanted: `[n]` row numbers.
        """
        size = current.work.rows, 1 << (len(wanted) - 1).bit_length(), current.work.forms
        graph = self._graphs.get(size)
        if graph is None or graph.work is not current.work:
            try:
                graph = self._graphs[size] = self._make(current.work, size[1])
            except Exception as error:  # whatever a user's model does while it is recorded
                self.refused = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                _log.warning("the model cannot be recorded as a CUDA graph, so passes are slower: %s", self.refused)
                return None
        if graph.copied is not None:
            graph.copied.synchronize()  # the last copy has read what is written over now
        numbers, rows = graph.staged.numpy(), size[0]
        numbers[: len(ids)] = ids
        numbers[rows : rows + len(positions)] = positions
        numbers[2 * rows : 2 * rows + len(wanted)] = wanted
        for first, embeddings in soft:
            numbers[first : first + len(embeddings)] = -1
            graph.soft[first : first + len(embeddings)] = embeddings
        graph.numbers.copy_(graph.staged, non_blocking=True)
        if graph.copied is not None:
            graph.copied.record()
        current.arrivals.begin()  # packets come behind what the pass reads first
        graph.replay()
        return graph.logits[: len(wanted)].clone()  # the next pass writes over them

    def clear(self) -> None:
        """Forget what was recorded: the model's weights have moved."""
        self._graphs.clear()

    def _make(self, work: DeviceWork, wanted: int) -> _Graph:
        device, on_gpu = work.anchor.device, work.anchor.device.type == "cuda"
        with torch.inference_mode(False):  # whoever comes first, everybody may write to them
            staged = torch.zeros(2 * work.rows + wanted, dtype=torch.int64, pin_memory=on_gpu)
            numbers = staged.to(device)
            soft = torch.zeros_like(self._embed(numbers[: work.rows]))
        copied = torch.cuda.Event() if on_gpu else None
        made = _Graph(work, staged, numbers, soft, copied, soft.new_empty(0), lambda: None)

        def call() -> None:
            ids, positions, rows = made.numbers.split((work.rows, work.rows, wanted))
            embeds = torch.where(ids[:, None] < 0, made.soft, self._embed(ids.clamp(min=0)))
            made.logits = self._run(embeds, positions, DevicePass.over(work), rows)

        made.replay = self._record(call)
        return made


class _Recorder:
    """Calls as CUDA graphs, with one pool of memory: passes come one after another."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Any]) -> Callable[[], Any]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                call()
        before = torch.cuda.current_stream()
        before.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                call()
        except BaseException:
            torch.cuda.set_stream(before)  # a capture that fails leaves the thread on its own stream
            raise
        return graph.replay
