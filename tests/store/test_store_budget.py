"""How many bytes of packet files a store keeps, and which ones make room."""

import os
import threading

import pytest
from obstore.store import MemoryStore
from toy_packets import SCOPE, raw, toy_packet, toy_text

from kvrag.matching import fingerprint
from kvrag.store import PacketStore

PACKETS = [toy_packet(seed) for seed in range(6)]
KEYS = [packet.key for packet in PACKETS]


def file_of(store, packet):
    return store._disk.path(packet.scope.identity.digest, packet.key)


@pytest.fixture(scope="module")
def size(tmp_path_factory) -> int:
    """Of a packet's file, in bytes."""
    with PacketStore(tmp_path_factory.mktemp("size")) as store:
        store.put(PACKETS[0], [])
        return store.stat().bytes


@pytest.fixture
def open_store(tmp_path, size):
    """Opens stores with room for three packets on disk and none in memory."""
    stores = []

    def make(**options) -> PacketStore:
        options = {"memory_bytes": 0, "disk_bytes": 3 * size} | options
        stores.append(PacketStore(tmp_path / "store", **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def put(store, *seeds) -> None:
    for seed in seeds:
        store.put(toy_packet(seed), [toy_text(seed)])


def on_disk(store) -> list[int]:
    return [seed for seed, packet in enumerate(PACKETS) if file_of(store, packet).exists()]


def text_key(store, seed):
    known = fingerprint(toy_text(seed))
    assert known
    return store.find(SCOPE, known.digest)


def test_the_least_recently_used_packet_makes_room_with_row_and_texts(open_store):
    store = open_store()
    put(store, 0, 1, 2)
    assert store.get(KEYS[0]) is not None
    put(store, 3)
    assert on_disk(store) == [0, 2, 3]
    assert store.get(KEYS[1]) is None
    assert text_key(store, 1) is None
    assert text_key(store, 0) == KEYS[0]
    stat = store.stat()
    assert (stat.packets, stat.texts, stat.tiers["disk"].evictions) == (3, 3, 1)
    assert stat.tiers["disk"].bytes <= (stat.tiers["disk"].capacity or 0)
    assert list(store.verify()) == []


def test_what_another_process_uses_is_recently_used(open_store, tmp_path):
    store = open_store()
    put(store, 0, 1, 2)
    with PacketStore(tmp_path / "store") as other:
        assert other.get(KEYS[0]) is not None
    put(store, 3)
    assert on_disk(store) == [0, 2, 3]


def test_what_was_used_after_the_files_were_listed_is_passed_over(open_store, size, monkeypatch):
    store = open_store(disk_bytes=10**9)
    put(store, *range(5))
    made = store._disk._budget
    made._list()
    monkeypatch.setattr(made, "_list", None)  # the listing grows old
    assert store.get(KEYS[0]) is not None
    made.capacity = 3 * size
    made.enforce()
    assert on_disk(store) == [0, 3, 4]


def test_reading_sets_the_access_time_alone(open_store):
    store = open_store()
    put(store, 0)
    path = file_of(store, PACKETS[0])
    os.utime(path, ns=(10**18, 10**18))
    store.get(KEYS[0])
    assert path.stat().st_mtime_ns == 10**18
    assert path.stat().st_atime_ns > 10**18


def test_held_packets_stay(open_store):
    store = open_store()
    put(store, 0, 1, 2)
    with store.hold([KEYS[0]]):
        put(store, 3, 4, 5)
        assert on_disk(store) == [0, 4, 5]
    put(store, 1)
    assert on_disk(store) == [1, 4, 5]


def test_held_packets_stay_even_beyond_the_budget(open_store, size):
    store = open_store(disk_bytes=size)
    put(store, 0)
    with store.hold([KEYS[0]]):
        put(store, 1, 2)
        assert on_disk(store) == [0, 2]
    put(store, 3)
    assert on_disk(store) == [3]


def test_packets_in_host_memory_count_as_used(open_store, size):
    store = open_store(memory_bytes=1 << 20)
    put(store, 0, 1, 2)
    assert store.get(KEYS[0]) is not None
    os.utime(file_of(store, PACKETS[0]), ns=(0, 0))
    put(store, 3)
    assert on_disk(store) == [0, 2, 3]


def test_a_packet_larger_than_the_budget_is_kept_until_the_next_one_comes(open_store):
    store = open_store(disk_bytes=1)
    put(store, 0)
    assert store.get(KEYS[0]) is not None
    put(store, 1)
    assert on_disk(store) == [1]


def test_a_store_that_is_opened_with_a_smaller_budget_makes_room(open_store, size):
    store = open_store(disk_bytes=None)
    put(store, *range(6))
    assert on_disk(store) == [0, 1, 2, 3, 4, 5]
    store.close()
    assert len(on_disk(open_store())) == 3


def test_with_a_remote_rows_and_texts_stay_and_packets_come_back(open_store):
    store = open_store(remote=MemoryStore())
    for seed in range(6):
        put(store, seed)
        assert store.flush(10) == 0
    assert on_disk(store) == [3, 4, 5]
    assert (store.stat().packets, store.stat().texts) == (6, 6)
    assert list(store.verify()) == []
    assert text_key(store, 0) == KEYS[0]
    assert store.has(KEYS[0])
    found = store.get(KEYS[0])
    assert found is not None
    assert raw(found) == raw(PACKETS[0])
    assert on_disk(store) == [0, 4, 5]
    assert store.stat().tiers["remote"].hits == 1


def test_what_the_remote_does_not_have_yet_stays(open_store, monkeypatch):
    gate = threading.Event()
    store = open_store(remote=MemoryStore())
    write = store._remote._objects.write
    monkeypatch.setattr(store._remote._objects, "write", lambda *args: gate.wait(10) and write(*args))
    put(store, *range(6))
    assert on_disk(store) == [0, 1, 2, 3, 4, 5]
    gate.set()
    assert store.flush(10) == 0
    assert len(on_disk(store)) == 3
    assert all(store.get(key) is not None for key in KEYS)


def test_a_reader_who_finds_the_file_gone_reads_from_the_remote(open_store):
    store = open_store(remote=MemoryStore())
    put(store, 0)
    store.flush(10)
    file_of(store, PACKETS[0]).unlink()  # as another process evicts
    assert store.get(KEYS[0]) is not None
    assert on_disk(store) == [0]


def test_an_open_file_stays_readable_while_its_packet_makes_room(open_store, monkeypatch):
    store = open_store()
    put(store, 0, 1, 2)
    with file_of(store, PACKETS[0]).open("rb") as reader:
        put(store, 3)
        assert on_disk(store) == [1, 2, 3]
        assert len(reader.read()) == store.stat().bytes // 3


def test_a_packet_that_makes_room_while_it_is_put_again_is_written_again(open_store, monkeypatch):
    """Between publishing the file and writing its row, another process deletes both."""
    store = open_store()
    put(store, 0)
    file_of(store, PACKETS[0]).unlink()
    exclusive, gone = store._index.exclusive, []

    def after_eviction():
        if not gone:
            gone.append(True)
            file_of(store, PACKETS[0]).unlink()
            store._index.remove(KEYS[0])
        return exclusive()

    monkeypatch.setattr(store._index, "exclusive", after_eviction)
    put(store, 0)
    assert gone
    assert store.get(KEYS[0]) is not None
    assert list(store.verify()) == []


def test_processes_that_put_evict_and_read_leave_a_sound_store(tmp_path, size):
    stores = [PacketStore(tmp_path / "store", memory_bytes=0, disk_bytes=3 * size) for _ in range(3)]

    def work(store):
        for turn in range(20):
            put(store, turn % 6)
            store.get(KEYS[(turn * 5) % 6])

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(stores[0].verify()) == []
    assert stores[0].stat().corrupt == 0
    assert len(on_disk(stores[0])) <= 4
    for store in stores:
        store.close()
