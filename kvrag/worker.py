"""The one thread that owns the model, and the step it repeats."""

import atexit
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch

from kvrag.attach import ComputedStates, DevicePool, release_helpers
from kvrag.errors import EngineError, PoolFullError
from kvrag.model import LanguageModel, Rows
from kvrag.plan import remember
from kvrag.request import Request

__all__ = ["Worker", "step"]

T = TypeVar("T")


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
            others = any(other.plan is not None and not other.finished for other in requests)
            if others and error.needed <= error.capacity:
                waiting.append(request)
            else:
                request.fail(error)
        except Exception as error:
            request.fail(error)
    if not running:
        return waiting
    try:
        logits = model.forward(rows)
        wanted = any(request.takes_highest for request in running)
        highest = logits.argmax(-1).tolist() if wanted else [-1] * len(running)  # one wait for all of them
    except Exception as error:
        for request in running:
            request.fail(error)
        return waiting
    for request, of_request, token in zip(running, logits, highest, strict=True):
        try:
            plan = request.plan
            request.accept(of_request, token, model)
            ended = request.finished or request.plan is not plan
            if ended and plan is not None and plan.prepared.keeps_computed:
                remember(plan, states, request.tokens)
        except Exception as error:
            request.fail(error)
    return [request for request in running if not request.finished] + waiting


class Worker:
    """Runs steps over the active requests, and other jobs for the model between them.

    Args:
        model: computes in this worker's thread from now on, by turns with other workers that have it.
        states: computed for earlier prompts.
        pool: of packets on the device, if they are kept there.
    """

    def __init__(self, model: LanguageModel, states: ComputedStates, pool: DevicePool | None = None) -> None:
        self._model = model
        self._states = states
        self._pool = pool
        self._inbox: queue.SimpleQueue[Request | Callable[[], None] | None] = queue.SimpleQueue()
        self._idle: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="kvrag-worker", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that is inside PyTorch when the interpreter ends takes the process down

    def submit(self, request: Request) -> None:
        """Have a request answered.

        Raises:
            EngineError: the worker is closed.
        """
        self._send(request)

    def run(self, job: Callable[..., T], *args: Any) -> "Future[T]":
        """Have the worker's thread call `job(*args)` between two steps, unless it is cancelled before."""
        future: Future[T] = Future()
        self._send(partial(_run, future, partial(job, *args)))
        return future

    def run_when_idle(self, job: Callable[..., T], *args: Any) -> "Future[T]":
        """Have the worker's thread call `job(*args)` when no request is active; closing cancels what has not begun."""
        future: Future[T] = Future()
        self._idle.append((future, partial(job, *args)))
        self._send(lambda: None)  # wakes it up
        return future

    def close(self) -> None:
        """Let the active requests fail and stop the thread."""
        if not self._closed:
            self._closed = True
            atexit.unregister(self.close)
            self._inbox.put(None)
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _send(self, item: "Request | Callable[[], None]") -> None:
        if self._closed:
            raise EngineError("expected an open engine, found a closed one; create another")
        self._release_helpers()  # the caller waits now; its threads would only be in the worker's way
        self._inbox.put(item)

    def _loop(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.set_device(self._model.device)  # which is every thread's own
        active: list[Request] = []
        while True:
            while not active or not self._inbox.empty():
                if self._inbox.empty() and self._idle:
                    with self._model.turns:
                        _run(*self._idle.popleft())
                    continue
                if self._inbox.empty():
                    self._release_helpers()  # while this thread waits, others compute: an embedding, another engine
                item = self._inbox.get()
                if item is None:
                    return self._end(active)
                if isinstance(item, Request):
                    active.append(item)
                else:
                    with self._model.turns:
                        item()
            with self._model.turns:
                active = step(self._model, self._states, active, self._pool)

    def _release_helpers(self) -> None:
        """Have the calling thread give its OpenMP helpers back, if the model computes on the same cores."""
        if self._model.device.type == "cpu":
            release_helpers()

    def _end(self, active: list[Request]) -> None:
        """What runs fails, and so does what came too late: nobody shall wait for a closed worker."""
        for future, _ in self._idle:
            future.cancel()
        for request in active:
            request.fail(EngineError("expected an open engine, found one that was closed in the middle of the answer"))
        while not self._inbox.empty():
            late = self._inbox.get()
            if isinstance(late, Request):
                late.fail(EngineError("expected an open engine, found one that was closed before the answer began"))
            elif late is not None:
                with self._model.turns:
                    late()  # somebody waits for what it returns


def _run(future: "Future[T]", job: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
