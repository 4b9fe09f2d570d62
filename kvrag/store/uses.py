"""How often and how lately prompts met known texts: a small file beside the index, shared by processes."""

import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvrag.errors import StoreError
from kvrag.packet import PacketKey

__all__ = ["NEVER", "UseCounts"]

HALF_LIFE_S = 7 * 86400.0
NEVER = -math.inf
"""The heat of what no prompt has met."""

_TABLE = "CREATE TABLE IF NOT EXISTS used (key TEXT PRIMARY KEY, count INTEGER, heat REAL) WITHOUT ROWID"
_FORGOTTEN = 30.0  # half-lives, after which a use has no weight


class UseCounts:
    """Uses by packet in the file at `path`, which the first use makes. Thread-safe.

    A packet's *heat* is the binary logarithm of the sum over its uses of 2^t, t being when the use was, in half-lives
    since the epoch (LRFU, https://doi.org/10.1109/TC.2001.970573). A use thus weighs half as much a week later, and the
    order of two packets changes only when one of them is used: nothing has to be aged.

    Counts are not worth waiting for the disk: those just before the machine lost power may be forgotten.

    Methods raise `StoreError` when the file cannot be used; deleting it loses the counts and nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sqlite: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        self._owner = 0
        self._closed = False

    def add(self, keys: Iterable[PacketKey]) -> dict[PacketKey, int]:
        """Count one more prompt for each of the packets, and say how many there were."""
        now = time.time() / HALF_LIFE_S
        with self._opened() as sqlite:
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                counts = {key: _add(sqlite, key, now) for key in keys}
                sqlite.execute("COMMIT")
            except BaseException:
                sqlite.execute("ROLLBACK")
                raise
        return counts

    def heat(self, key: PacketKey) -> float:
        """How much a packet is used; says nothing by itself, only beside another's."""
        if not self._path.exists():
            return NEVER
        with self._opened() as sqlite:
            found = sqlite.execute("SELECT heat FROM used WHERE key = ?", (key,)).fetchone()
        return found[0] if found else NEVER

    def heats(self) -> dict[PacketKey, float]:
        """The same of all packets that prompts have met."""
        if not self._path.exists():
            return {}
        with self._opened() as sqlite:
            return dict(sqlite.execute("SELECT key, heat FROM used").fetchall())

    def forget(self, keys: Iterable[PacketKey]) -> None:
        """Begin at zero for packets that were taken away; a file that cannot be used is no reason to fail then."""
        if self._path.exists():
            with suppress(StoreError), self._opened() as sqlite:
                sqlite.executemany("DELETE FROM used WHERE key = ?", [(key,) for key in keys])

    def close(self) -> None:
        """Let go of the file for good."""
        with self._lock:
            self._closed = True
            if self._sqlite is not None and self._owner == os.getpid():
                self._sqlite.close()
            self._sqlite = None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._sqlite is None or self._owner != os.getpid():
                    self._open()
                assert self._sqlite is not None
                yield self._sqlite
            except sqlite3.Error as error:
                raise StoreError(
                    f"cannot count uses in {self._path}: {error}; delete it, it holds nothing else"
                ) from error

    def _open(self) -> None:
        if self._closed:
            raise StoreError(f"the packet store at {self._path.parent} is closed; open it again")
        if self._sqlite is not None:
            self._inherited.append(self._sqlite)  # SQLite forbids to close what was opened before a fork
        self._sqlite = None
        sqlite = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            sqlite.execute("PRAGMA synchronous = OFF")  # no WAL: several who change to it at once find the file locked
            sqlite.execute(_TABLE)
            sqlite.execute("DELETE FROM used WHERE heat < ?", (time.time() / HALF_LIFE_S - _FORGOTTEN,))
        except BaseException:
            sqlite.close()
            raise
        self._sqlite, self._owner = sqlite, os.getpid()


def _add(sqlite: sqlite3.Connection, key: PacketKey, now: float) -> int:
    found = sqlite.execute("SELECT count, heat FROM used WHERE key = ?", (key,)).fetchone()
    count, heat = (found[0] + 1, _sum(found[1], now)) if found else (1, now)
    sqlite.execute("INSERT OR REPLACE INTO used VALUES (?, ?, ?)", (key, count, heat))
    return count


def _sum(a: float, b: float) -> float:
    """log2(2^a + 2^b)."""
    return max(a, b) + math.log2(1 + 2 ** -abs(a - b))
