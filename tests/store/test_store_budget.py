"""How many bytes of packet files a store keeps, and which ones make room."""

import os
import threading

import pytest
from obstore.store import MemoryStore
from toy_packets import SCOPE, make_room_and_stop, raw, toy_packet, toy_text

from kvrag.errors import SettingsError
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


def test_the_least_recently_used_packet_makes_room_with_its_row_and_stays_known_by_its_text(open_store):
    store = open_store()
    put(store, 0, 1, 2)
    assert store.get(KEYS[0]) is not None
    put(store, 3)
    assert on_disk(store) == [0, 2, 3]
    assert store.get(KEYS[1]) is None
    assert text_key(store, 1) == KEYS[1]
    assert text_key(store, 0) == KEYS[0]
    stat = store.stat()
    assert (stat.packets, stat.texts, stat.tiers["disk"].evictions) == (3, 4, 1)
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


def use(store, **times: int) -> None:
    """Count prompts: `p0=3` are three that had packet 0."""
    for name, count in times.items():
        for _ in range(count):
            store.uses.add([KEYS[int(name[1:])]])


def test_what_prompts_use_least_makes_room_whatever_was_read_last(open_store):
    store = open_store()
    put(store, 0, 1, 2)
    use(store, p0=3, p1=1, p2=2)
    assert store.get(KEYS[1]) is not None
    put(store, 3)
    assert on_disk(store) == [0, 2, 3]
    put(store, 4)  # nobody uses 3
    assert on_disk(store) == [0, 2, 4]


def test_what_was_used_after_the_files_were_listed_is_passed_over_too(open_store, size, monkeypatch):
    store = open_store(disk_bytes=10**9)
    put(store, *range(4))
    use(store, p0=1, p1=2, p2=3, p3=4)
    budget = store._disk._budget
    budget._list()
    monkeypatch.setattr(budget, "_list", None)
    use(store, p0=9)
    budget.capacity = 3 * size
    budget.enforce()
    assert on_disk(store) == [0, 2, 3]


def test_there_is_room_for_what_is_used_more_than_what_has_to_go(open_store, size):
    store = open_store()
    put(store, 0, 1, 2)
    use(store, p0=3, p1=1, p2=3, p3=2, p4=1)
    assert store.has_room(KEYS[3], size)  # 1 would go
    assert not store.has_room(KEYS[3], 2 * size)
    assert not store.has_room(KEYS[5], size)
    use(store, p1=1)
    assert not store.has_room(KEYS[4], size)
    assert on_disk(store) == [0, 1, 2]


def test_there_is_no_room_beside_what_is_held_or_in_a_budget_smaller_than_the_packet(open_store, size):
    store = open_store(disk_bytes=size, memory_bytes=1 << 20)
    put(store, 0)
    use(store, p1=1)
    assert store.has_room(KEYS[1], size)
    assert not store.has_room(KEYS[1], size + 1)
    with store.hold([KEYS[0]]):
        assert not store.has_room(KEYS[1], size)


def test_with_a_remote_or_without_a_budget_there_is_always_room(open_store, size):
    assert open_store(disk_bytes=None).has_room(KEYS[0], 10**12)
    store = open_store(disk_bytes=1, remote=MemoryStore())
    assert store.has_room(KEYS[0], 10**12)
    assert store.room is None


def test_removing_a_packet_that_made_room_forgets_its_text_and_uses(open_store):
    store = open_store()
    put(store, 0, 1, 2, 3)
    use(store, p0=5)
    store.remove(KEYS[0])
    assert text_key(store, 0) is None
    assert store.uses.heats() == {}


def test_counts_that_cannot_be_read_leave_the_order_of_use(open_store, tmp_path, caplog):
    store = open_store()
    put(store, 0, 1, 2)
    (tmp_path / "store" / "uses.sqlite").write_bytes(b"nonsense" * 200)
    put(store, 3)
    assert on_disk(store) == [1, 2, 3]
    assert "uses.sqlite: file is not a database; delete it" in caplog.text


def test_a_negative_budget_is_refused(tmp_path):
    for disk, memory in ((-1, 0), (None, -1)):
        with pytest.raises(SettingsError, match="0 bytes or more"):
            PacketStore(tmp_path / "refused", disk_bytes=disk, memory_bytes=memory)
    assert not (tmp_path / "refused").exists()


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


@pytest.mark.parametrize("point", ["in the transaction", "file deleted"])
def test_a_process_killed_while_a_packet_makes_room_loses_no_other(open_store, size, tmp_path, child, point):
    store = open_store()
    put(store, 0, 1, 2)
    use(store, p0=1, p2=1)
    store.close()
    with child(make_room_and_stop, tmp_path / "store", 3 * size, point) as reached:
        assert reached.recv() == point
    store = open_store()
    assert {problem.key for problem in store.verify()} <= {KEYS[1]}
    assert text_key(store, 1) == KEYS[1]
    for seed in (0, 2, 9):
        packet = toy_packet(seed)
        found = store.get(packet.key)
        assert found is not None
        assert raw(found) == raw(packet)
    assert store.get(KEYS[1]) is None
    assert store.stat().tiers["disk"].bytes <= 3 * size
    put(store, 1)
    assert store.get(KEYS[1]) is not None
    assert list(store.verify()) == []
