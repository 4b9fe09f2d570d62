import os
import random
import shutil
import sqlite3

import pytest
from toy_packets import SCOPE, raw, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.store import PacketStore, RepairReport

PACKETS = [toy_packet(seed) for seed in range(3)]


@pytest.fixture
def store(store):
    for seed, packet in enumerate(PACKETS):
        store.put(packet, [toy_text(seed)])
    return store


def file_of(store, packet):
    return store._disk.path(packet.scope.identity.digest, packet.key)


def change(store, statement, *values):
    with store._index._write.transaction() as sqlite:
        sqlite.execute(statement, values)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def problems(store, **options):
    return [(problem.kind, problem.path) for problem in store.verify(**options)]


def test_a_sound_store_has_no_problems_and_needs_no_repair(store):
    assert problems(store) == problems(store, deep=False) == []
    assert store.repair() == RepairReport()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: flip(path, 4096), "checksum of layer 0"),
        (lambda path: flip(path, 8), "header cannot be read"),
        (lambda path: flip(path, -1), "do not give its key"),
        (lambda path: os.truncate(path, 5000), "file of 5000 bytes"),
        (lambda path: os.truncate(path, 100), "the file has 100"),
        (lambda path: path.write_bytes(file_of_first.read_bytes()), "it holds packet"),
    ],
    ids=["kv", "header", "token ids", "truncated", "header truncated", "swapped"],
)
def test_a_bad_file_is_explained_quarantined_and_its_row_dropped(store, damage, message):
    global file_of_first
    file_of_first = file_of(store, PACKETS[0])
    path = file_of(store, PACKETS[1])
    damage(path)
    (problem,) = store.verify()
    assert (problem.kind, problem.path, problem.key) == ("corrupt", path, PACKETS[1].key)
    assert message in problem.message
    assert str(path) in str(problem)
    assert path.exists()
    assert store.repair() == RepairReport(quarantined=1)
    assert problems(store) == []
    assert not path.exists()
    assert len(list((store.root / "quarantine").iterdir())) == 1
    assert store.stat().packets == store.stat().texts == 2


def test_a_shallow_check_reads_headers_only(store):
    flip(file_of(store, PACKETS[0]), 4096)
    os.truncate(file_of(store, PACKETS[1]), 5000)
    assert problems(store, deep=False) == [("corrupt", file_of(store, PACKETS[1]))]


def test_a_row_without_its_file_is_dropped(store):
    path = file_of(store, PACKETS[0])
    path.unlink()
    assert problems(store) == [("missing", path)]
    assert store.repair() == RepairReport(dropped=1)
    assert problems(store) == []


def test_a_file_without_its_row_is_adopted_and_reached_by_key(store):
    change(store, "DELETE FROM packets WHERE key = ?", PACKETS[0].key)
    change(store, "DELETE FROM texts WHERE key = ?", PACKETS[0].key)
    assert problems(store) == [("orphan", file_of(store, PACKETS[0]))]
    assert store.get(PACKETS[0].key) is None
    assert store.repair() == RepairReport(adopted=1)
    found = store.get(PACKETS[0].key)
    assert found is not None
    assert raw(found) == raw(PACKETS[0])
    store.register(SCOPE, toy_text(0), PACKETS[0].key)
    assert problems(store) == []


def test_a_row_that_contradicts_its_file_is_written_again_without_its_texts(store):
    change(store, "UPDATE packets SET namespace = 'forged', tokens = 7 WHERE key = ?", PACKETS[0].key)
    (problem,) = store.verify()
    assert (problem.kind, problem.message) == ("mismatch", "the index and the file disagree about namespace, tokens")
    assert store.repair() == RepairReport(adopted=1)
    assert {row.namespace for row in store.ls()} == {"default"}
    assert store.stat().texts == 2


def test_a_row_that_sends_readers_to_another_identity_is_mended(store):
    change(store, "UPDATE packets SET identity = 'abc' WHERE key = ?", PACKETS[0].key)
    assert [kind for kind, _ in problems(store)] == ["missing", "orphan"]
    assert store.repair() == RepairReport(dropped=1, adopted=1)
    assert store.get(PACKETS[0].key) is not None


def test_an_orphan_that_is_bad_or_in_the_wrong_place_goes_into_quarantine(store):
    copy = file_of(store, PACKETS[0]).parent.parent / "zz" / file_of(store, PACKETS[0]).name
    copy.parent.mkdir()
    shutil.copy(file_of(store, PACKETS[0]), copy)
    bad = copy.with_name("a" * 64 + ".safetensors")
    bad.write_bytes(b"nonsense")
    assert sorted(problems(store)) == sorted([("corrupt", copy), ("corrupt", bad)])
    assert store.repair() == RepairReport(quarantined=2)
    assert store.stat().packets == 3


def test_temporary_files_of_the_dead_are_swept_and_files_of_others_left_alone(store):
    folder = file_of(store, PACKETS[0]).parent
    (folder / ".0123.tmp").write_bytes(b"half a packet")
    (folder / "notes.txt").write_text("mine")
    assert sorted(kind for kind, _ in problems(store)) == ["stray", "temporary"]
    assert store.repair() == RepairReport(swept=1)
    assert problems(store) == [("stray", folder / "notes.txt")]


def test_a_file_that_cannot_be_read_is_reported_and_left_alone(store, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("kvrag.store.disk.read_header", refuse)
    assert {problem.kind for problem in store.verify()} == {"unreadable"}
    assert store.repair() == RepairReport()
    monkeypatch.undo()
    assert problems(store) == []


@pytest.mark.parametrize("damage", ["no database", "schema page", "every page"])
def test_a_damaged_index_names_the_remedy_and_is_rebuilt(tmp_path, damage, caplog):
    with PacketStore(tmp_path) as store:
        for seed in range(20):
            store.put(toy_packet(seed), [toy_text(seed)])
    path = tmp_path / "index.sqlite"
    data = bytearray(path.read_bytes())
    if damage == "no database":
        data = random.Random(0).randbytes(len(data))
    else:
        start = 100 if damage == "schema page" else 4096
        data[start:] = random.Random(0).randbytes(len(data) - start)
    path.write_bytes(data)
    with PacketStore(tmp_path) as store:
        with pytest.raises(StoreError, match="kvrag store repair"):
            store.put(toy_packet(0), [toy_text(0)])
        assert [kind for kind, _ in problems(store)] == ["index"]
        report = store.repair()
        assert report.adopted == 20
        assert report.broken_index is not None
        assert report.broken_index.read_bytes() == data
        assert problems(store) == []
        assert store.get(toy_packet(3).key) is not None
        store.put(toy_packet(3), [toy_text(3)])
        assert len(store.matcher(SCOPE)) == 1


def test_a_deleted_index_is_rebuilt(tmp_path):
    with PacketStore(tmp_path) as store:
        store.put(toy_packet(), [toy_text(0)])
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    with PacketStore(tmp_path) as store:
        assert store.get(toy_packet().key) is None
        assert store.repair() == RepairReport(adopted=1)
        assert store.get(toy_packet().key) is not None


def test_an_index_that_lost_its_tables_is_rebuilt(tmp_path):
    PacketStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("DROP TABLE texts")
    index.close()
    with PacketStore(tmp_path) as store:
        assert [kind for kind, _ in problems(store)] == ["index"]
        assert store.repair().broken_index is not None
        store.put(toy_packet(), [toy_text(0)])
