"""Write-back: packets that are durable here are uploaded by a thread of their own, whatever becomes of this process."""

import logging
import threading
import time
from contextlib import suppress

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.packet import PacketKey
from kvrag.store.budget import DiskBudget
from kvrag.store.index import Index
from kvrag.store.metrics import StoreMetrics
from kvrag.store.objects import RemoteError
from kvrag.store.remote import RemoteTier

__all__ = ["Uploads"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
FAILURES = 3  # in a row, after which a round is ended: the remote is not there

logger = logging.getLogger("kvrag.store")


class Uploads:
    """The packets that are still to be uploaded. Thread-safe.

    The index knows them, so what a process leaves behind is taken up by the next one that opens the store with this
    remote. A round that fails is tried again after a pause, from a second up to a minute.
    """

    def __init__(self, remote: RemoteTier, index: Index, budget: DiskBudget, metrics: StoreMetrics):
        self._remote = remote
        self._index = index
        self._budget = budget
        self._metrics = metrics
        self._queue: dict[PacketKey, None] = {}  # in the order they came
        self._current: PacketKey | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = self._urgent = self._closing = False
        self._rounds = 0
        self._pause = FIRST_PAUSE_S
        self._not_before = 0.0

    def resume(self) -> None:
        """Begin with what the index says is missing on the remote."""
        with suppress(StoreError):  # a damaged index has been logged
            for key in self._index.pending(self._remote.url):
                self.add(key)

    def add(self, key: PacketKey) -> None:
        """Upload a packet soon."""
        with self._changed:
            self._queue[key] = None
            self._metrics.upload_queue.set(self._left())
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="kvrag-upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> int:
        """Try everything once, now; the number of packets that are still to be uploaded then.

        Args:
            timeout: seconds to wait at most.
        """
        with self._changed:
            if self._left() and not self._closing:
                self._urgent = True
                wanted = self._rounds + 1 + self._busy  # a round at work may have begun before the last packet came
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._rounds >= wanted or not (self._queue or self._busy), timeout)
            return self._left()

    def close(self, timeout: float) -> None:
        """As `flush`, and end the thread; what is left is uploaded when the store is opened again."""
        left = self.flush(timeout)
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and not left:
            thread.join()
        if left:
            logger.warning("%d packets are not on %s yet; opening the store again goes on", left, self._remote.url)

    def _run(self) -> None:
        while self._wait():
            failed = 0
            for _ in range(len(self._queue)):
                if self._closing or failed >= FAILURES:
                    break
                failed = 0 if self._upload() else failed + 1
            with self._changed:
                self._rounds += 1
                self._busy = False
                if failed:
                    self._not_before = time.monotonic() + self._pause
                    self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
                else:
                    self._pause, self._not_before = FIRST_PAUSE_S, 0.0
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Until there is something to do; False when the store is closed."""
        with self._changed:
            while not self._closing:
                rest = self._not_before - time.monotonic()
                if self._queue and (self._urgent or rest <= 0):
                    self._busy, self._urgent = True, False
                    return True
                self._changed.wait(rest if self._queue else None)
        return False

    def _left(self) -> int:
        return len(self._queue.keys() | {self._current} - {None})

    def _upload(self) -> bool:
        """Upload the first of the queue; what fails goes to its end."""
        with self._changed:
            key = next(iter(self._queue))
            del self._queue[key]
            self._current = key
        done = False
        try:
            done = self._try(key)
        except RemoteError as error:
            self._metrics.remote_failures.labels(error.reason).inc()
            logger.warning("packet %s was not uploaded to %s: %s", key, self._remote.url, error)
        except Exception as error:  # whatever it is, it must not end the thread that `flush` waits for
            if not self._closing:  # with the store went its index
                logger.warning("packet %s was not uploaded to %s: %s", key, self._remote.url, error)
        with self._changed:
            self._current = None
            if not done:
                self._queue[key] = None
            self._metrics.upload_queue.set(self._left())
        return done

    def _try(self, key: PacketKey) -> bool:
        row = self._index.row(key)
        if row is None or row.remote == self._remote.url:  # removed, or uploaded by another process
            return True
        try:
            self._remote.upload(row)
        except (CorruptPacketError, FileNotFoundError) as error:  # whoever asks for it finds out the same
            logger.warning("packet %s cannot be uploaded: %s", key, error)
            return True
        if not self._index.uploaded(row, self._remote.url):  # removed while it was uploaded
            self._remote.delete(row)
        self._budget.enforce()
        return True
