"""How many prompts met a text that has no packet: a small file beside the index, shared by processes."""

import sqlite3
from pathlib import Path

from kvrag.errors import StoreError
from kvrag.packet import PacketKey

__all__ = ["UseCounts"]


class UseCounts:
    """Counts by packet in the file at `path`. For one thread at a time.

    They are not worth waiting for the disk: what was counted just before the machine lost power may be forgotten.

    Raises:
        StoreError: the file cannot be used; deleting it loses the counts and nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._sqlite = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._sqlite.execute("PRAGMA journal_mode = WAL")
            self._sqlite.execute("PRAGMA synchronous = OFF")
            self._sqlite.execute("CREATE TABLE IF NOT EXISTS uses (key TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def add(self, key: PacketKey) -> int:
        """Count one more prompt, and say how many there were."""
        try:
            rows = self._sqlite.execute(
                "INSERT INTO uses VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET count = count + 1 RETURNING count",
                (key,),
            ).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error
        return rows[0][0]

    def forget(self, key: PacketKey) -> None:
        """Begin at zero, because the packet is there now."""
        try:
            self._sqlite.execute("DELETE FROM uses WHERE key = ?", (key,))
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._sqlite.close()

    def _explained(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"cannot count uses in {self._path}: {error}; delete it, it holds nothing else")
