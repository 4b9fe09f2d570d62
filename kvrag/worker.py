"""The one thread that owns the model, and the step it repeats."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from kvrag.attach import ComputedStates, DevicePool, PoolFullError, release_helpers
from kvrag.completion import Completion, Delivery, Timings, Usage
from kvrag.errors import EngineError
from kvrag.generate import Sampler, TextStream
from kvrag.model import LanguageModel, Rows
from kvrag.plan import Plan, Prepared, plan_lane, remember
from kvrag.settings import Sampling

__all__ = ["Request", "Worker", "step"]

T = TypeVar("T")
_ROOM = 64  # rows a lane has for new tokens before it grows


@dataclass
class Request:
    """One prompt on its way to an answer. Callers fill the first fields; the worker owns the others.

    Attributes:
        prepared: the prompt.
        sampling: how to answer.
        delivery: where pieces go.
        strategy: its name, for the completion.
        started: `time.perf_counter()` when the prompt came in.
        match_ms: spent before the worker saw it.
        load_ms: likewise.
    """

    prepared: Prepared
    sampling: Sampling
    delivery: Delivery
    strategy: str
    started: float
    match_ms: float = 0.0
    load_ms: float = 0.0
    plan: Plan | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finished: bool = False
    _attach_ms: float = 0.0
    _first: float = 0.0
    _last: float = 0.0
    _sampler: Sampler | None = None
    _text: TextStream | None = None

    def next_rows(self, model: LanguageModel, states: ComputedStates, pool: DevicePool | None) -> Rows:
        """What to compute in the next pass: the prompt's missing rows first, then the token sampled last.

        Raises:
            PoolFullError: the prompt's packets have no room on the device yet.
        """
        if self.plan is None:
            begin = time.perf_counter()
            room = min(self.sampling.max_new_tokens, _ROOM)
            self.plan = plan_lane(model, self.prepared, states, room, pool)
            ids = self.prepared.token_ids
            self._sampler = Sampler(self.sampling, ids, model.device)
            self._text = TextStream(model.tokenizer, ids, self.sampling.stop)
            self._attach_ms = 1e3 * (time.perf_counter() - begin)
            return self.plan.rows
        position = self.prepared.end + len(self.tokens) - 1
        return Rows(self.plan.lane, self.tokens[-1:], [position])

    def accept(self, logits: torch.Tensor, model: LanguageModel) -> None:
        """Sample from logits `[vocab]`, deliver the new text and notice the end."""
        assert self._sampler is not None, "rows come before logits"
        assert self._text is not None
        token = self._sampler(logits)
        self.tokens.append(token)
        self._last = time.perf_counter()
        self._first = self._first or self._last
        ended = token in model.stop_ids
        self._deliver("" if ended else self._text.push(token))
        if self._text.stopped:
            self.finish("stop", model)
        elif ended or len(self.tokens) >= self.sampling.max_new_tokens:
            self._deliver(self._text.finish())
            self.finish("stop" if ended else "length", model)

    def finish(self, reason: Literal["stop", "length", "cancelled"], model: LanguageModel) -> None:
        """Deliver the completion."""
        self._end()
        self.delivery.put(self._completion(reason, model))

    def fail(self, error: BaseException) -> None:
        """Deliver an error instead of an answer."""
        self._end()
        self.delivery.put(error)

    def _end(self) -> None:
        self.finished = True
        if self.plan is not None:
            self.plan.release()

    def _deliver(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            self.delivery.put(piece)

    def _completion(self, reason: Literal["stop", "length", "cancelled"], model: LanguageModel) -> Completion:
        prompt = self.prepared.tokens
        cached = self.plan.cached if self.plan else 0
        later = len(self.tokens) - 1
        return Completion(
            text="".join(self.pieces),
            token_ids=tuple(self.tokens),
            finish_reason=reason,
            usage=Usage(prompt, cached, prompt - cached if self.plan else 0, len(self.tokens)),
            timings=Timings(
                match_ms=self.match_ms,
                load_ms=self.load_ms,
                attach_ms=self._attach_ms,
                first_token_ms=1e3 * (self._first - self.started) if self.tokens else 0.0,
                per_token_ms=1e3 * (self._last - self._first) / later if later > 0 else 0.0,
            ),
            model=model.name,
            strategy=self.strategy,
        )


def step(
    model: LanguageModel, states: ComputedStates, requests: Sequence[Request], pool: DevicePool | None = None
) -> list[Request]:
    """One pass for all requests: each gets its prompt's rows computed, or one more token. Returns the unfinished ones.

    Prompts and single tokens of different requests share the pass; a request that is cancelled or fails to attach
    leaves the others alone. One whose packets have no room on the device waits for those that have.
    """
    rows: list[Rows] = []
    running: list[Request] = []
    waiting: list[Request] = []
    for request in requests:
        if request.delivery.cancelled.is_set():
            request.finish("cancelled", model)
            continue
        try:
            rows.append(request.next_rows(model, states, pool))
            running.append(request)
        except PoolFullError as error:
            if any(other.plan is not None and not other.finished for other in requests):
                waiting.append(request)
            else:
                request.fail(error)
        except Exception as error:
            request.fail(error)
    if not running:
        return waiting
    try:
        logits = model.forward(rows)
    except Exception as error:
        for request in running:
            request.fail(error)
        return waiting
    for request, of_request in zip(running, logits, strict=True):
        try:
            request.accept(of_request, model)
            if request.finished and request.prepared.keeps_computed and request.plan is not None:
                remember(request.plan, states, request.tokens)
        except Exception as error:
            request.fail(error)
    return [request for request in running if not request.finished] + waiting


class Worker:
    """Runs steps over the active requests, and other jobs for the model between them.

    Args:
        model: owned by this worker's thread from now on.
        states: computed for earlier prompts.
        pool: of packets on the device, if they are kept there.
    """

    def __init__(self, model: LanguageModel, states: ComputedStates, pool: DevicePool | None = None) -> None:
        self._model = model
        self._states = states
        self._pool = pool
        self._inbox: queue.SimpleQueue[Request | Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="kvrag-worker", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Have a request answered.

        Raises:
            EngineError: the worker is closed.
        """
        self._send(request)

    def run(self, job: Callable[..., T], *args: Any) -> "Future[T]":
        """Have the worker's thread call `job(*args)` between two steps."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(job(*args))
            except BaseException as error:
                future.set_exception(error)

        self._send(call)
        return future

    def close(self) -> None:
        """Let the active requests fail and stop the thread."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _send(self, item: "Request | Callable[[], None]") -> None:
        if self._closed:
            raise EngineError("expected an open engine, found a closed one; create another")
        self._release_helpers()  # the caller waits now; its threads would only be in the worker's way
        self._inbox.put(item)

    def _loop(self) -> None:
        active: list[Request] = []
        while True:
            while not active or not self._inbox.empty():
                if self._inbox.empty():
                    self._release_helpers()  # while this thread waits, others compute: an embedding, another engine
                item = self._inbox.get()
                if item is None:
                    return self._end(active)
                if isinstance(item, Request):
                    active.append(item)
                else:
                    item()
            active = step(self._model, self._states, active, self._pool)

    def _release_helpers(self) -> None:
        """Have the calling thread give its OpenMP helpers back, if the model computes on the same cores."""
        if self._model.device.type == "cpu":
            release_helpers()

    def _end(self, active: list[Request]) -> None:
        """What runs fails, and so does what came too late: nobody shall wait for a closed worker."""
        for request in active:
            request.fail(EngineError("expected an open engine, found one that was closed in the middle of the answer"))
        while not self._inbox.empty():
            late = self._inbox.get()
            if isinstance(late, Request):
                late.fail(EngineError("expected an open engine, found one that was closed before the answer began"))
