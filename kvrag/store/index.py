"""Which packets exist and which texts lead to them: one SQLite file, built again from the packets if need be."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from sqlite3 import Connection as SQLite
from typing import NamedTuple

import numpy as np

from kvrag.errors import StoreError
from kvrag.matching import Fingerprint
from kvrag.packet import PacketKey
from kvrag.store.connection import Connection, CorruptIndexError, locked_folder
from kvrag.store.names import Names
from kvrag.store.records import PacketRow, ScopeStat, Upload

__all__ = ["Index"]

COLUMNS = "key, scope, identity, namespace, recipe, tokens, bytes, created, remote"
PAGE = 1000


class Leads(NamedTuple):
    """What leads to a packet.

    Attributes:
        texts: row and sha256 of each.
        named: whether an application calls it by a name.
    """

    texts: list[tuple[int, bytes]]
    named: bool


class Index:
    """The index file at `path`. Thread-safe; a writer that waits for the disk does not hold up readers.

    Attributes:
        names: by which applications call packets.

    Every method raises `StoreError` when the index cannot be used, `CorruptIndexError` when it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._read = Connection(path)
        self._write = Connection(path)
        self.names = Names(self._read, self._write)

    def open(self) -> None:
        """Open the index now instead of on first use."""
        with self._read.use():
            pass

    def add(self, row: PacketRow, texts: Sequence[Fingerprint]) -> None:
        """Add or replace a packet, together with texts that lead to it."""
        values = [getattr(row, column) for column in COLUMNS.split(", ")]
        marks = ", ".join("?" * len(values))
        with self._write.transaction() as sqlite:
            sqlite.execute(f"INSERT OR REPLACE INTO packets ({COLUMNS}) VALUES ({marks})", values)
            _add_texts(sqlite, row.scope, row.key, texts)

    def add_texts(self, scope: str, key: PacketKey, texts: Sequence[Fingerprint]) -> bool:
        """Add texts that lead to a packet; False when the scope has no such packet."""
        with self._write.transaction() as sqlite:
            known = sqlite.execute("SELECT 1 FROM packets WHERE key = ? AND scope = ?", (key, scope)).fetchone()
            if known:
                _add_texts(sqlite, scope, key, texts)
        return bool(known)

    def expect(self, scope: str, texts: Iterable[tuple[Fingerprint, PacketKey]]) -> None:
        """Add texts that will lead to packets which are not there yet."""
        with self._write.transaction() as sqlite:
            for text, key in texts:
                _add_texts(sqlite, scope, key, [text])

    def remove(self, key: PacketKey, *, texts: bool = True) -> bool:
        """Remove a packet and its texts, or leave these as those of a packet that is to be built; False if none."""
        with self._write.transaction() as sqlite:
            return _remove(sqlite, key, texts=texts)

    def remove_if(self, keys: Iterable[PacketKey], condemned: Callable[[PacketRow, Leads], bool]) -> list[PacketRow]:
        """Remove those of the packets that are `condemned` inside the transaction; return them."""
        with self._write.transaction() as sqlite:
            found = [_with_leads(sqlite, key) for key in keys]
            removed = [row for row, leads in found if row and condemned(row, leads)]
            for row in removed:
                _remove(sqlite, row.key)
        return removed

    def with_leads(self, key: PacketKey) -> tuple[PacketRow | None, Leads]:
        """The packet's row, and what leads to it."""
        with self._read.use() as sqlite:
            return _with_leads(sqlite, key)

    def last_text(self) -> int:
        """The row of the text that was registered last; later ones have larger numbers, even after removals."""
        with self._read.use() as sqlite:
            found = sqlite.execute("SELECT seq FROM sqlite_sequence WHERE name = 'texts'").fetchone()
        return found[0] if found else 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other thread or process changes the index during the block, nor, by agreement, deletes a packet file."""
        with self._write.transaction():
            yield

    def uploaded(self, row: PacketRow, remote: str) -> bool:
        """Note that this store has uploaded a packet, and trust it there again; False when it was removed meanwhile."""
        values = (remote, row.key, row.identity, row.namespace, row.bytes, time.time())
        with self._write.transaction() as sqlite:
            sqlite.execute("DELETE FROM distrusted WHERE remote = ? AND key = ?", (remote, row.key))
            sqlite.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?, ?)", values)
            return sqlite.execute("UPDATE packets SET remote = ? WHERE key = ?", (remote, row.key)).rowcount > 0

    def withdrawn(self, key: PacketKey, remote: str) -> None:
        """Note that a remote has the packet no more: who has it, or puts it again, is to upload it."""
        with self._write.transaction() as sqlite:
            sqlite.execute("DELETE FROM uploads WHERE remote = ? AND key = ?", (remote, key))
            sqlite.execute("UPDATE packets SET remote = '' WHERE key = ? AND remote = ?", (key, remote))

    def uploads(self, remote: str) -> list[Upload]:
        """What this store has uploaded, whatever became of it here."""
        with self._read.use() as sqlite:
            statement = "SELECT key, identity, namespace, bytes, at FROM uploads WHERE remote = ? ORDER BY key"
            return [Upload(*found) for found in sqlite.execute(statement, (remote,))]

    def pending(self, remote: str) -> list[PacketKey]:
        """The packets that a remote does not have yet."""
        with self._read.use() as sqlite:
            return [key for (key,) in sqlite.execute("SELECT key FROM packets WHERE remote != ?", (remote,))]

    def bytes_on(self, remote: str) -> int:
        """Bytes of the packets that a remote has."""
        with self._read.use() as sqlite:
            statement = "SELECT coalesce(sum(bytes), 0) FROM packets WHERE remote = ?"
            return sqlite.execute(statement, (remote,)).fetchone()[0]

    def distrust(self, key: PacketKey, remote: str) -> None:
        """Remember that what a remote has under this name is not the packet, until it is uploaded again."""
        with self._write.transaction() as sqlite:
            sqlite.execute("INSERT OR IGNORE INTO distrusted VALUES (?, ?)", (remote, key))

    def trusts(self, key: PacketKey, remote: str) -> bool:
        """Whether nothing bad was found under this name."""
        with self._read.use() as sqlite:
            statement = "SELECT 1 FROM distrusted WHERE remote = ? AND key = ?"
            return sqlite.execute(statement, (remote, key)).fetchone() is None

    def row(self, key: PacketKey) -> PacketRow | None:
        """The packet's row, without what is known of its texts."""
        with self._read.use() as sqlite:
            found = sqlite.execute(f"SELECT {COLUMNS} FROM packets WHERE key = ?", (key,)).fetchone()
        return PacketRow(*found) if found else None

    def rows(self) -> Iterator[PacketRow]:
        """All packets by key, read page by page so that nobody waits for a slow consumer."""
        key = ""
        while True:
            with self._read.use() as sqlite:
                page = sqlite.execute(
                    f"SELECT {COLUMNS}, (SELECT count(*) FROM texts WHERE texts.key = packets.key),"
                    " (SELECT ifnull(min(rowid), 0) FROM texts WHERE texts.key = packets.key)"
                    " FROM packets WHERE key > ? ORDER BY key LIMIT ?",
                    (key, PAGE),
                ).fetchall()
            if not page:
                return
            yield from (PacketRow(*columns) for columns in page)
            key = page[-1][0]

    def find(self, scope: str, digest: bytes) -> PacketKey | None:
        """The packet that a text leads to."""
        with self._read.use() as sqlite:
            found = sqlite.execute("SELECT key FROM texts WHERE scope = ? AND digest = ?", (scope, digest)).fetchone()
        return PacketKey(found[0]) if found else None

    def version(self) -> tuple[int, int]:
        """Changes whenever anybody has committed anything; comes first, before the reads it is to vouch for."""
        with self._read.use() as sqlite:
            return self._read.opened, sqlite.execute("PRAGMA data_version").fetchone()[0]

    def deletions(self) -> int:
        """How many texts were ever removed."""
        with self._read.use() as sqlite:
            return sqlite.execute("SELECT texts FROM deletions").fetchone()[0]

    def texts_after(self, scope: str, rowid: int) -> np.ndarray:
        """`[N, 4]` int64 rowid, head, hash and length of the scope's texts registered after `rowid`."""
        with self._read.use() as sqlite:
            cursor = sqlite.execute(
                "SELECT rowid, head, hash, length FROM texts WHERE scope = ? AND rowid > ? ORDER BY rowid",
                (scope, rowid),
            )
            return np.fromiter(cursor, np.dtype((np.int64, 4)))  # a list of Python's numbers takes ten times the memory

    def totals(self) -> tuple[dict[tuple[str, str], ScopeStat], int]:
        """Packets and bytes by `(namespace, identity digest)`, and the number of texts."""
        with self._read.use() as sqlite:
            groups = sqlite.execute(
                "SELECT namespace, identity, count(*), sum(bytes) FROM packets GROUP BY namespace, identity"
            ).fetchall()
            (texts,) = sqlite.execute("SELECT count(*) FROM texts").fetchone()
        return {(namespace, identity): ScopeStat(packets, size) for namespace, identity, packets, size in groups}, texts

    def usage(self) -> list[tuple[str, str, int, int, PacketKey]]:
        """Namespace, identity digest, packets, bytes and the key of some packet, of every namespace and identity."""
        with self._read.use() as sqlite:
            return sqlite.execute(
                "SELECT namespace, identity, count(*), sum(bytes), min(key) FROM packets GROUP BY namespace, identity"
            ).fetchall()

    def damage(self) -> str | None:
        """What is wrong with the index file, None when it is sound."""
        try:
            with self._read.use() as sqlite:
                sqlite.execute("SELECT 1 FROM packets, texts, deletions, distrusted, uploads, names LIMIT 1").fetchone()
                (found,) = sqlite.execute("PRAGMA integrity_check(1)").fetchone()
        except CorruptIndexError as error:
            return str(error)
        return None if found == "ok" else found

    def set_aside(self) -> Path:
        """Move the index file away and return where; the next use starts an empty one."""
        broken = self.path.with_name(f"{self.path.name}.broken-{time.time_ns()}")
        self._read.disconnect()
        self._write.disconnect()
        try:
            with locked_folder(self.path.parent):
                for suffix in ("-wal", "-shm", ""):
                    with suppress(FileNotFoundError):
                        os.replace(f"{self.path}{suffix}", f"{broken}{suffix}")
        except OSError as error:
            raise StoreError(f"cannot move the damaged index {self.path} aside: {error}") from error
        return broken

    def close(self) -> None:
        """Let go of the file for good."""
        self._read.close()
        self._write.close()


def _with_leads(sqlite: SQLite, key: PacketKey) -> tuple[PacketRow | None, Leads]:
    found = sqlite.execute(f"SELECT {COLUMNS} FROM packets WHERE key = ?", (key,)).fetchone()
    texts = sqlite.execute("SELECT rowid, digest FROM texts WHERE key = ?", (key,)).fetchall()
    named = sqlite.execute("SELECT 1 FROM names WHERE key = ? LIMIT 1", (key,)).fetchone() is not None
    return PacketRow(*found, texts=len(texts)) if found else None, Leads(texts, named)


def _remove(sqlite: SQLite, key: PacketKey, *, texts: bool = True) -> bool:
    gone = sqlite.execute("DELETE FROM texts WHERE key = ?", (key,)).rowcount if texts else 0
    if gone:
        sqlite.execute("UPDATE deletions SET texts = texts + ?", (gone,))
    return sqlite.execute("DELETE FROM packets WHERE key = ?", (key,)).rowcount > 0


def _add_texts(sqlite: SQLite, scope: str, key: PacketKey, texts: Sequence[Fingerprint]) -> None:
    for text in texts:
        found = sqlite.execute("SELECT key FROM texts WHERE scope = ? AND digest = ?", (scope, text.digest)).fetchone()
        if found != (key,):  # building a corpus again must not wait for the disk once per chunk
            sqlite.execute(
                "INSERT OR REPLACE INTO texts (scope, digest, head, hash, length, key) VALUES (?, ?, ?, ?, ?, ?)",
                (scope, text.digest, _signed(text.head), _signed(text.hash), text.length, key),
            )


def _signed(value: int) -> int:
    """SQLite's integers are signed; `int64.view(uint64)` gives the value back."""
    return value - (1 << 64) if value >> 63 else value
