"""Indexes of older versions are brought up to date and lose nothing."""

import sqlite3

import pytest
from obstore.store import MemoryStore
from toy_packets import SCOPE, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.matching import fingerprint
from kvrag.store import PacketStore, schema

FIRST_SCHEMA = """
CREATE TABLE packets (
    key TEXT PRIMARY KEY, scope TEXT NOT NULL, identity TEXT NOT NULL, namespace TEXT NOT NULL, recipe TEXT NOT NULL,
    tokens INTEGER NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE texts (
    rowid INTEGER PRIMARY KEY AUTOINCREMENT,
    scope TEXT NOT NULL, digest BLOB NOT NULL, head INTEGER NOT NULL, hash INTEGER NOT NULL, length INTEGER NOT NULL,
    key TEXT NOT NULL, UNIQUE (scope, digest)
);
CREATE INDEX texts_in_order ON texts (scope, rowid);
CREATE INDEX texts_of_packet ON texts (key);
CREATE TABLE deletions (texts INTEGER NOT NULL);
"""


@pytest.fixture
def old(tmp_path):
    """A store of three packets as the first version of kvrag wrote it."""
    root = tmp_path / "store"
    with PacketStore(root) as store:
        for seed in range(3):
            store.put(toy_packet(seed), [toy_text(seed)])
    index = sqlite3.connect(root / "index.sqlite", isolation_level=None)
    tables = {name: index.execute(f"SELECT * FROM {name}").fetchall() for name in ("packets", "texts", "deletions")}
    index.close()
    for path in root.glob("index.sqlite*"):
        path.unlink()
    index = sqlite3.connect(root / "index.sqlite", isolation_level=None)
    index.execute("PRAGMA journal_mode = WAL")
    index.executescript(FIRST_SCHEMA)
    index.executemany("INSERT INTO packets VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [row[:8] for row in tables["packets"]])
    index.executemany("INSERT INTO texts VALUES (?, ?, ?, ?, ?, ?, ?)", tables["texts"])
    index.executemany("INSERT INTO deletions VALUES (?)", tables["deletions"])
    index.execute("PRAGMA user_version = 1")
    index.close()
    return root


def tables_of(root):
    index = sqlite3.connect(root / "index.sqlite")
    found = index.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    index.close()
    return [name for name, _ in found], [" ".join(sql.split()) for _, sql in found if sql]


def test_an_index_of_the_first_version_serves_as_before(old, tmp_path):
    with PacketStore(old) as store:
        for seed in range(3):
            known = fingerprint(toy_text(seed))
            assert known
            assert store.find(SCOPE, known.digest) == toy_packet(seed).key
            assert store.get(toy_packet(seed).key) is not None
        store.put(toy_packet(3), [toy_text(3)])
        assert list(store.verify()) == []
        assert store.stat().packets == 4
    PacketStore(tmp_path / "new").close()
    assert tables_of(old) == tables_of(tmp_path / "new")


def test_what_an_old_store_has_is_uploaded_when_it_gets_a_remote(old, tmp_path):
    objects = MemoryStore()
    with PacketStore(old, remote=objects) as store:
        assert store.flush(10) == 0
    with PacketStore(tmp_path / "other", remote=objects) as other:
        assert all(other.has(toy_packet(seed).key, SCOPE) for seed in range(3))


def test_a_step_that_fails_leaves_the_index_as_it_was(old, monkeypatch):
    before = tables_of(old)
    broken = (*schema.STEPS[:1], schema.STEPS[1] + "CREATE TABLE packets (again TEXT);")
    with monkeypatch.context() as context:
        context.setattr(schema, "STEPS", broken)
        with pytest.raises(StoreError):
            PacketStore(old).stat()
    assert tables_of(old) == before
    with PacketStore(old) as store:
        assert store.stat().packets == 3
