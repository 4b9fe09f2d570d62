"""Bad places to keep packets in: full, forbidden, from the future."""

import errno
import os
import sqlite3

import pytest
from toy_packets import SCOPE, open_as_somebody_else, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.store import PacketStore, format
from kvrag.store.schema import SCHEMA_VERSION


def everything(store: PacketStore) -> list[str]:
    return sorted(name for _, _, names in os.walk(store.root / "packets") for name in names)


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/nowhere"])
def test_a_root_that_is_no_folder_is_refused(tmp_path, root):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected a folder to keep packets in"):
        PacketStore(tmp_path / root)


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_of_somebody_else_is_refused(tmp_path, child, mode):
    root = tmp_path / "store"
    PacketStore(root).close()
    for folder in (root / "packets", root):
        folder.chmod(mode)
    with child(open_as_somebody_else, root) as answers:
        kind, message = answers.recv()
    for folder in (root, root / "packets"):
        folder.chmod(0o700)
    assert kind == "StoreError"
    assert str(root) in message


def test_an_index_from_a_newer_kvrag_is_refused_and_left_alone(tmp_path):
    PacketStore(tmp_path).close()
    newer = SCHEMA_VERSION + 1
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute(f"PRAGMA user_version = {newer}")
    index.close()
    with pytest.raises(StoreError, match=f"has schema {newer}, this kvrag knows {SCHEMA_VERSION}: update kvrag"):
        PacketStore(tmp_path)
    assert [path.name for path in tmp_path.glob("index*")] == ["index.sqlite"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_an_error_that_leaves_nothing_behind(store, monkeypatch, call):
    store.put(toy_packet(0), [toy_text(0)])
    before = everything(store)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(format.os, call, full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.put(toy_packet(1), [toy_text(1)])
    assert everything(store) == before
    assert list(store.verify()) == []
    store.put(toy_packet(1), [toy_text(1)])
    assert store.get(toy_packet(0).key) is not None
    assert store.get(toy_packet(1).key) is not None


def test_a_disk_too_full_for_the_index_is_an_error_and_the_packet_can_be_put_again(store):
    with store._index._write.use() as sqlite:
        (pages,) = sqlite.execute("PRAGMA page_count").fetchone()
        sqlite.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full"):
            store.put(toy_packet(), [toy_text(seed) for seed in range(500)])
        sqlite.execute("PRAGMA max_page_count = 1000000")
    assert store.stat().texts == 0
    store.put(toy_packet(), [toy_text(0)])
    assert list(store.verify()) == []
    assert store.stat().texts == 1


def test_an_index_deleted_under_a_live_store_loses_no_later_packet(store):
    store.put(toy_packet(0), [toy_text(0)])
    assert len(store.matcher(SCOPE)) == 1
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    assert len(store.matcher(SCOPE)) == 0
    store.put(toy_packet(1), [toy_text(1), toy_text(2)])
    assert len(store.matcher(SCOPE)) == 2
    with PacketStore(store.root) as other:
        assert [row.key for row in other.ls()] == [toy_packet(1).key]
        assert other.repair().adopted == 1
    assert {row.key for row in store.ls()} == {toy_packet(0).key, toy_packet(1).key}


def test_a_transaction_that_fails_half_way_leaves_no_row(store, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr("kvrag.store.index._add_texts", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            store.put(toy_packet(), [toy_text(0)])
    assert not store.has(toy_packet().key)
    store.put(toy_packet(), [toy_text(0)])
    assert list(store.verify()) == []
