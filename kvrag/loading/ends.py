"""Threads at the two ends of a schedule."""

import threading
import time
from collections.abc import Callable, Sequence

from kvrag.loading.parts import Part
from kvrag.loading.schedule import Schedule

__all__ = ["BothEnds"]

_RECHECK = 0.02  # seconds after which a side that had nothing to do asks again: the other may have got slow


class BothEnds:
    """Brings everything in a schedule: the calling thread sees to computing, threads of their own to loading.

    A load that hangs holds nobody up: once the rest is there, its thread is left behind and what it brings is ignored.

    Args:
        schedule: of what there is to do; nobody else touches it.
        load: brings a part; True when it is there, False when the packet cannot be loaded. Called without the lock, by
            as many threads as the schedule allows loads at a time.
        compute: brings parts, in one pass. Called without the lock.
        arrived: told under the lock whenever something is there.
        clock: seconds.
    """

    def __init__(
        self,
        schedule: Schedule,
        load: Callable[[Part], bool],
        compute: Callable[[Sequence[Part]], None],
        arrived: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.Condition()
        self.ended = False
        self._schedule, self._load, self._compute = schedule, load, compute
        self._arrived, self._clock = arrived, clock
        self._error: BaseException | None = None

    def run(self) -> None:
        """Return when everything is there or lost; raises what either side raises."""
        for _ in range(self._schedule.loads):
            threading.Thread(target=self._load_all, name="kvrag-load", daemon=True).start()
        try:
            with self.lock:
                while self._going_on():
                    parts = self._schedule.next_to_compute(self._clock())
                    if not parts:
                        self.lock.wait(_RECHECK)
                        continue
                    self.lock.release()
                    try:
                        self._compute(parts)
                    finally:
                        self.lock.acquire()
                    for part in parts:
                        self._schedule.finish(part)
                    self._tell()
                if self._error is not None:
                    raise self._error
        finally:
            with self.lock:
                self.ended = True
                self.lock.notify_all()

    def _load_all(self) -> None:
        with self.lock:
            while self._going_on():
                part = self._schedule.next_to_load(self._clock())
                if part is None:
                    self.lock.wait(_RECHECK)
                    continue
                self.lock.release()
                there, error = False, None
                try:
                    there = self._load(part)
                except BaseException as raised:
                    error = raised
                finally:
                    self.lock.acquire()
                if self.ended:
                    return
                if there:
                    self._schedule.finish(part)
                elif part in part.item.parts:  # otherwise the other side does it already
                    self._schedule.fail(part)
                self._error = self._error or error
                self._tell()

    def _going_on(self) -> bool:
        return not self.ended and self._error is None and not self._schedule.finished

    def _tell(self) -> None:
        self._arrived()
        self.lock.notify_all()
