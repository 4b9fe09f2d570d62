import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from toy_packets import IDENTITY, SCOPE, raw, toy_packet, toy_text

import kvrag.store
from kvrag.errors import StoreError
from kvrag.matching import fingerprint
from kvrag.packet import Identity, Recipe, Scope
from kvrag.store import PacketStore, ScopeStat, disk, packet_store

OTHER_TENANT = Scope(IDENTITY, Recipe(), "another tenant")


def digest(text: str) -> bytes:
    known = fingerprint(text)
    assert known
    return known.digest


def file_of(store: PacketStore, packet):
    return store._disk.path(packet.scope.identity.digest, packet.key)


def found_in(store: PacketStore, prompt: str, scope: Scope = SCOPE) -> list[str]:
    matches = store.matcher(scope).find(prompt, lambda span: store.find(scope, span))
    return [match.value for match in matches]


def test_the_public_names_are_sorted_and_there():
    assert kvrag.store.__all__ == sorted(kvrag.store.__all__)
    assert all(hasattr(kvrag.store, name) for name in kvrag.store.__all__)


def test_a_packet_survives_the_process_that_put_it(tmp_path):
    packet = toy_packet()
    with PacketStore(tmp_path) as store:
        store.put(packet, [toy_text(0)])
    with PacketStore(tmp_path) as store:
        found = store.get(packet.key)
        assert found is not None
        assert raw(found) == raw(packet)
        assert store.get(packet.key) is found  # from host memory now
        assert store.find(SCOPE, digest(toy_text(0))) == packet.key


def test_folders_and_files_are_for_their_owner_alone(store):
    store.put(toy_packet(), [toy_text(0)])
    for folder, folders, files in os.walk(store.root):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert [os.stat(os.path.join(folder, name)).st_mode & 0o777 for name in files] == [0o600] * len(files)
        assert folders or files or folder.endswith("quarantine")


def test_file_and_folders_reach_the_disk_before_the_row(store, monkeypatch):
    packet, events = toy_packet(), []
    root = os.path.realpath(store.root)

    def recorded(name, call):
        def wrapper(*arguments):
            place = arguments[0]
            place = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
            events.append((name, os.path.relpath(place, root).replace(packet.scope.identity.digest[:16], "I")))
            return call(*arguments)

        return wrapper

    monkeypatch.setattr(disk.os, "fsync", recorded("fsync", os.fsync))
    monkeypatch.setattr(disk.os, "replace", recorded("replace", os.replace))
    add = store._index.add
    monkeypatch.setattr(store._index, "add", lambda *arguments: (events.append(("row", "")), add(*arguments)))
    store.put(packet, [])
    bucket = packet.key[:2]
    temporary = events[2][1]
    assert temporary.startswith(f"packets/I/{bucket}/.")
    assert events == [
        ("fsync", "packets"),
        ("fsync", "packets/I"),
        ("fsync", temporary),
        ("replace", temporary),
        ("fsync", f"packets/I/{bucket}"),
        ("row", ""),
    ]


def test_texts_are_found_without_their_white_space_and_short_ones_are_skipped(store):
    store.put(toy_packet(), [f"\n {toy_text(0)} ", "too short", ""])
    assert store.find(SCOPE, digest(toy_text(0))) == toy_packet().key
    assert store.stat().texts == 1
    store.register(SCOPE, "also too short", toy_packet().key)
    assert store.stat().texts == 1


def test_putting_again_only_adds_texts(store):
    packet = toy_packet()
    store.put(packet, [toy_text(0)])
    before = file_of(store, packet).stat()
    store.put(packet, [toy_text(0), toy_text(1)])
    after = file_of(store, packet).stat()
    assert before.st_ino == after.st_ino
    assert store.find(SCOPE, digest(toy_text(1))) == packet.key
    assert store.stat().texts == 2


def test_registering_a_text_is_idempotent_and_needs_its_packet(store):
    packet = toy_packet()
    with pytest.raises(StoreError, match="put it before"):
        store.register(SCOPE, toy_text(0), packet.key)
    store.put(packet, [])
    for _ in range(2):
        store.register(SCOPE, toy_text(0), packet.key)
    with pytest.raises(StoreError, match="put it before"):
        store.register(OTHER_TENANT, toy_text(0), packet.key)
    assert found_in(store, f"... {toy_text(0)} ...") == [packet.key]
    assert store.stat().texts == 1


def test_a_text_leads_to_the_packet_it_was_registered_for_last(store):
    for seed in (0, 1):
        store.put(toy_packet(seed), [toy_text(0)])
    assert found_in(store, toy_text(0)) == [toy_packet(1).key]


@pytest.mark.parametrize(
    "other",
    [
        OTHER_TENANT,
        Scope(IDENTITY, Recipe(ids_before=(1,))),
        Scope(Identity(**IDENTITY.model_dump() | {"weights": "x"}), Recipe()),
    ],
    ids=["namespace", "recipe", "identity"],
)
def test_a_scope_sees_nothing_of_another(store, other):
    store.put(toy_packet(0), [toy_text(0), toy_text(1)])
    store.put(toy_packet(0, scope=other), [toy_text(0)])
    prompt = f"{toy_text(0)} and {toy_text(1)}"
    assert store.find(other, digest(toy_text(1))) is None
    assert len(store.matcher(other)) == 1
    assert found_in(store, prompt, other) == [toy_packet(0, scope=other).key]
    assert found_in(store, prompt) == [toy_packet(0).key] * 2


def test_what_is_not_there_is_a_miss(store):
    assert store.get(toy_packet().key) is None
    assert not store.has(toy_packet().key)
    assert not store.remove(toy_packet().key)
    assert store.find(SCOPE, b"0" * 32) is None
    assert found_in(store, toy_text(0)) == []
    assert (store.stat().hits, store.stat().misses, store.stat().corrupt) == (0, 1, 0)


@pytest.mark.parametrize("place", [0, 100, 4096, -1], ids=["length", "header", "kv", "token ids"])
def test_a_corrupt_file_is_a_miss_counted_logged_and_quarantined(store, caplog, place):
    packet = toy_packet()
    store.put(packet, [toy_text(0)])
    path = file_of(store, packet)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "kvrag.store"):
        assert store.get(packet.key) is None
    assert packet.key in caplog.text
    assert [moved.read_bytes() for moved in (store.root / "quarantine").iterdir()] == [data]
    assert (store.stat().hits, store.stat().misses, store.stat().corrupt) == (0, 1, 1)
    assert not store.has(packet.key)
    assert store.find(SCOPE, digest(toy_text(0))) is None
    assert list(store.verify()) == []
    store.put(packet, [toy_text(0)])
    assert store.get(packet.key) is not None


def test_swapped_files_are_misses(store):
    packets = [toy_packet(seed) for seed in (0, 1)]
    for packet in packets:
        store.put(packet, [])
    first, second = (file_of(store, packet) for packet in packets)
    both = first.read_bytes(), second.read_bytes()
    first.write_bytes(both[1])
    second.write_bytes(both[0])
    assert [store.get(packet.key) for packet in packets] == [None, None]
    assert store.stat().corrupt == 2


def test_a_file_deleted_under_a_live_store_is_a_miss_and_can_be_put_again(store):
    packet = toy_packet()
    store.put(packet, [toy_text(0)])
    file_of(store, packet).unlink()
    assert not store.has(packet.key)
    store.put(packet, [])
    assert store.has(packet.key)
    file_of(store, packet).unlink()
    assert store.get(packet.key) is None
    assert store.stat().packets == 0
    assert store.stat().corrupt == 0


def test_a_disk_that_does_not_answer_is_a_miss_and_costs_no_packet(store, monkeypatch, caplog):
    packet = toy_packet()
    store.put(packet, [])
    with monkeypatch.context() as broken:
        broken.setattr(disk, "read_packet", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert store.get(packet.key) is None
    assert "Input/output error" in caplog.text
    assert store.get(packet.key) is not None


def test_removing_takes_the_file_the_row_and_the_texts(store):
    packet = toy_packet()
    store.put(packet, [toy_text(0)])
    store.get(packet.key)
    assert store.remove(packet.key)
    assert store.get(packet.key) is None
    assert found_in(store, toy_text(0)) == []
    assert not file_of(store, packet).exists()
    stat = store.stat()
    assert (stat.packets, stat.bytes, stat.texts, stat.memory_bytes) == (0, 0, 0, 0)


def test_the_matcher_forgets_removed_texts_and_learns_new_ones(store):
    for seed in range(10):
        store.put(toy_packet(seed), [toy_text(seed)])
    assert len(store.matcher(SCOPE)) == 10
    for seed in range(5):
        store.remove(toy_packet(seed).key)
    assert len(store.matcher(SCOPE)) == 5
    store.put(toy_packet(0), [toy_text(0)])
    matcher = store.matcher(SCOPE)
    assert len(matcher) == 6
    assert store.matcher(SCOPE) is matcher
    assert found_in(store, "".join(map(toy_text, range(10)))) == [toy_packet(seed).key for seed in (0, 5, 6, 7, 8, 9)]


def test_held_packets_are_loaded_and_stay(tmp_path):
    packets = [toy_packet(seed) for seed in range(3)]
    with PacketStore(tmp_path, memory_bytes=packets[0].nbytes) as store:
        for packet in packets:
            store.put(packet, [])
        keys = [packet.key for packet in packets]
        with store.hold([*keys, keys[0], "0" * 64]) as hold:
            assert list(hold.packets) == keys
            assert store.stat().memory_bytes == 3 * packets[0].nbytes
            assert [store.get(key) for key in keys] == list(hold.packets.values())
        assert store.stat().memory_bytes == packets[0].nbytes


def test_ls_and_stat_tell_what_is_there(store, monkeypatch):
    monkeypatch.setattr("kvrag.store.index.PAGE", 2)
    mine = [toy_packet(seed) for seed in range(4)]
    theirs = toy_packet(0, scope=OTHER_TENANT)
    for packet in (*mine, theirs):
        store.put(packet, [toy_text(0), toy_text(1)])
    rows = {row.key: row for row in store.ls()}
    assert list(rows) == sorted(packet.key for packet in (*mine, theirs))
    row = rows[theirs.key]
    assert (row.namespace, row.identity, row.recipe) == (
        "another tenant",
        IDENTITY.digest,
        OTHER_TENANT.recipe.digest,
    )
    assert (row.scope, row.tokens, row.texts) == (OTHER_TENANT.digest, 5, 2)
    assert row.bytes == file_of(store, theirs).stat().st_size
    stat = store.stat()
    assert (stat.packets, stat.texts, stat.bytes) == (5, 4, 5 * row.bytes)
    assert stat.scopes["another tenant", IDENTITY.digest] == ScopeStat(1, row.bytes)
    assert stat.scopes["default", IDENTITY.digest] == ScopeStat(4, 4 * row.bytes)


def test_a_packet_is_read_once_however_many_threads_ask(store, monkeypatch):
    packet, reads, go = toy_packet(), [], threading.Event()
    store.put(packet, [])
    read_packet = disk.read_packet

    def slow(path, *, key, **options):
        reads.append(key)
        go.wait(10)
        return read_packet(path, key=key, **options)

    monkeypatch.setattr(disk, "read_packet", slow)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(store.get, packet.key) for _ in range(8)]
        while not reads:
            pass
        go.set()
        assert len({id(future.result()) for future in futures}) == 1
    assert len(reads) == 1


def test_many_threads_put_find_and_get(tmp_path):
    with PacketStore(tmp_path, memory_bytes=3 * toy_packet().nbytes) as store:

        def work(worker):
            for seed in range(12):
                packet = toy_packet(seed)
                store.put(packet, [toy_text(seed), toy_text(1000 * worker + seed)])
                with store.hold([packet.key]) as hold:
                    assert raw(hold.packets[packet.key]) == raw(packet)
                assert found_in(store, toy_text(seed)) == [packet.key]

        with ThreadPoolExecutor(6) as pool:
            for future in [pool.submit(work, worker) for worker in range(1, 7)]:
                future.result()
        assert (store.stat().packets, store.stat().texts) == (12, 12 * 7)
        assert list(store.verify()) == []


def test_a_closed_store_says_so(tmp_path):
    store = PacketStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.find(SCOPE, b"0" * 32)


def test_an_error_while_loading_reaches_every_thread_and_is_forgotten(store, monkeypatch):
    store.put(toy_packet(), [])
    with monkeypatch.context() as broken:
        broken.setattr(packet_store.DiskTier, "read", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            store.get(toy_packet().key)
    assert store.get(toy_packet().key) is not None


def test_putting_what_is_there_already_writes_nothing(store):
    store.put(toy_packet(), [toy_text(0)])
    before = store._index.version()
    store.put(toy_packet(), [toy_text(0)])
    store.register(SCOPE, toy_text(0), toy_packet().key)
    assert store._index.version() == before
