"""The tables of the index, as the steps that lead from an older index to this one."""

import sqlite3
from pathlib import Path

from kvrag.errors import StoreError

__all__ = ["SCHEMA_VERSION", "migrate"]

STEPS = (
    """
    CREATE TABLE packets (
        key TEXT PRIMARY KEY, scope TEXT NOT NULL, identity TEXT NOT NULL, namespace TEXT NOT NULL,
        recipe TEXT NOT NULL, tokens INTEGER NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE texts (
        rowid INTEGER PRIMARY KEY AUTOINCREMENT,
        scope TEXT NOT NULL, digest BLOB NOT NULL, head INTEGER NOT NULL, hash INTEGER NOT NULL,
        length INTEGER NOT NULL, key TEXT NOT NULL, UNIQUE (scope, digest)
    );
    CREATE INDEX texts_in_order ON texts (scope, rowid);
    CREATE INDEX texts_of_packet ON texts (key);
    CREATE TABLE deletions (texts INTEGER NOT NULL);
    INSERT INTO deletions VALUES (0);
    """,
    """
    ALTER TABLE packets ADD COLUMN remote TEXT NOT NULL DEFAULT '';
    CREATE TABLE distrusted (remote TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (remote, key)) WITHOUT ROWID;
    """,
    """
    CREATE TABLE uploads (
        remote TEXT NOT NULL, key TEXT NOT NULL, identity TEXT NOT NULL, namespace TEXT NOT NULL,
        bytes INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (remote, key)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE names (
        namespace TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
    CREATE INDEX names_of_packet ON names (key);
    CREATE TRIGGER names_go_with_packets AFTER DELETE ON packets BEGIN DELETE FROM names WHERE key = OLD.key; END;
    """,
)
SCHEMA_VERSION = len(STEPS)


def migrate(sqlite: sqlite3.Connection, path: Path) -> None:
    """Bring an index to `SCHEMA_VERSION`, all of it or nothing; nobody else may open it meanwhile.

    Raises:
        StoreError: it comes from a newer kvrag.
    """
    (version,) = sqlite.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema {version}, this kvrag knows {SCHEMA_VERSION}: update kvrag or choose another store"
        )
    sqlite.execute("PRAGMA journal_mode = WAL")
    sqlite.execute("PRAGMA synchronous = FULL")
    if version < SCHEMA_VERSION:
        steps = "".join(STEPS[version:])
        sqlite.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
