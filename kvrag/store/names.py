"""Names by which applications call packets, in the index beside them."""

from collections.abc import Iterator

from kvrag.packet import PacketKey
from kvrag.store.connection import Connection

__all__ = ["Names"]

PAGE = 1000


class Names:
    """The names of packets, by namespace. A packet that goes takes its names along.

    Every method raises `StoreError` when the index cannot be used.
    """

    def __init__(self, read: Connection, write: Connection):
        self._read = read
        self._write = write

    def find(self, namespace: str, name: str) -> PacketKey | None:
        """The packet of a name, or the one whose key it is."""
        with self._read.use() as sqlite:
            found = sqlite.execute(
                "SELECT key FROM names WHERE namespace = ?1 AND name = ?2"
                " UNION ALL SELECT key FROM packets WHERE namespace = ?1 AND key = ?2",
                (namespace, name),
            ).fetchone()
        return PacketKey(found[0]) if found else None

    def give(self, namespace: str, name: str, key: PacketKey) -> None:
        """Call a packet by this name, and no other; nothing happens when there is no such packet."""
        with self._write.transaction() as sqlite:
            sqlite.execute(
                "INSERT OR REPLACE INTO names SELECT namespace, ?, key FROM packets WHERE key = ? AND namespace = ?",
                (name, key, namespace),
            )

    def take(self, namespace: str, name: str) -> None:
        """Call no packet by this name."""
        with self._write.transaction() as sqlite:
            sqlite.execute("DELETE FROM names WHERE namespace = ? AND name = ?", (namespace, name))

    def only(self, namespace: str, name: str, key: PacketKey) -> bool:
        """Whether nothing else leads to a packet: no other name and no text."""
        with self._read.use() as sqlite:
            found = sqlite.execute(
                "SELECT 1 FROM names WHERE key = ?1 AND NOT (namespace = ?2 AND name = ?3)"
                " UNION ALL SELECT 1 FROM texts WHERE key = ?1 LIMIT 1",
                (key, namespace, name),
            ).fetchone()
        return found is None

    def all(self, namespace: str, prefix: str = "") -> Iterator[str]:
        """The names of a namespace that begin like this, and the keys of packets without one, in order."""
        after = ""
        while True:
            with self._read.use() as sqlite:
                page = sqlite.execute(
                    "SELECT name FROM names WHERE namespace = ?1 AND name > ?2 AND substr(name, 1, length(?3)) = ?3"
                    " UNION ALL SELECT key FROM packets WHERE namespace = ?1 AND key > ?2"
                    " AND substr(key, 1, length(?3)) = ?3 AND key NOT IN (SELECT key FROM names)"
                    " ORDER BY 1 LIMIT ?4",
                    (namespace, after, prefix, PAGE),
                ).fetchall()
            if not page:
                return
            yield from (name for (name,) in page)
            after = page[-1][0]
