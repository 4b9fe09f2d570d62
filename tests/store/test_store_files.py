"""Packet files that leave a store as bytes and arrive in another one."""

import stat
import threading
import time
from collections.abc import Iterator

import pytest
from obstore.store import MemoryStore
from toy_packets import IDENTITY, SCOPE, raw, toy_packet, toy_text

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.packet import Recipe, Scope
from kvrag.store import PacketStore
from kvrag.store import files as files_module


@pytest.fixture
def other(tmp_path) -> Iterator[PacketStore]:
    with PacketStore(tmp_path / "other") as store:
        yield store


def exported(store: PacketStore, seed: int, scope: Scope = SCOPE) -> bytes:
    packet = toy_packet(seed, scope=scope)
    store.put(packet, [toy_text(seed)])
    data = store.export(packet.key)
    assert data is not None
    return data


def test_an_adopted_packet_is_the_one_that_was_exported(store, other):
    packet, data = toy_packet(1), exported(store, 1)
    assert other.adopt(data) == packet.key
    assert raw(other.get(packet.key)) == raw(packet)
    assert other.export(packet.key) == data
    assert list(other.verify()) == []
    other.register(SCOPE, toy_text(1), packet.key)
    assert other.row(packet.key) == store.row(packet.key)


def test_files_are_for_their_owner_alone(store, other):
    other.adopt(exported(store, 1))
    for path in (other.root / "packets").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_what_is_there_stays_as_it_is(store, other):
    packet = toy_packet(1)
    other.put(packet, [toy_text(1)])
    (path,) = (other.root / "packets").rglob("*.safetensors")
    before = path.stat().st_ino
    assert other.adopt(exported(store, 1)) == packet.key
    assert path.stat().st_ino == before
    assert next(other.ls()).texts == 1


def test_no_damage_gets_in_and_nothing_is_left_of_it(store, other):
    data = exported(store, 1)
    for at in (0, 9, 4097, len(data) - 1):
        with pytest.raises(CorruptPacketError):
            other.adopt(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CorruptPacketError):
            other.adopt(data[:at])
    assert list(other.ls()) == []
    assert [path for path in (other.root / "packets").rglob("*") if path.is_file()] == []


def test_what_is_damaged_here_is_not_exported(store):
    packet = toy_packet(1)
    store.put(packet, [])
    (path,) = (store.root / "packets").rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.export(packet.key) is None
    assert store.export(toy_packet(2).key) is None
    assert len(list((store.root / "quarantine").iterdir())) == 1


def test_packets_of_another_namespace_stay_out_of_sight(store, other):
    mine, theirs = Scope(IDENTITY, Recipe(), "mine"), Scope(IDENTITY, Recipe(), "theirs")
    data, key = exported(store, 1, theirs), toy_packet(1, scope=theirs).key
    with pytest.raises(StoreError, match="expected a packet of namespace 'mine', found one of 'theirs'"):
        other.files("mine").put("a", data)
    other.files("theirs").put("a", data)
    other.files("mine").put("a", exported(store, 2, mine))
    assert list(other.files("mine").names()) == list(other.files("theirs").names()) == ["a"]
    assert other.files("mine").get(key) is None
    other.files("mine").delete(key)
    other.files("mine").delete("a")
    assert other.files("theirs").get("a") == data
    assert [row.key for row in other.ls()] == [key]


def test_names_that_cannot_be_meant_are_refused(store):
    data, files = exported(store, 1), store.files()
    for name in ("", "a\nb", "a\0b", "\ud800"):
        with pytest.raises(StoreError, match="printable"):
            files.put(name, data)
    with pytest.raises(StoreError, match="expected packet 0000"):
        files.put("0" * 64, data)
    for name in ("ä/../b", "x" * 5000, "'; DROP TABLE names; --", "%_*"):
        files.put(name, data)
        assert files.get(name) == data
        assert list(files.names(name[:5])) == [name]
    assert files.get("") is None


def test_a_packet_goes_with_its_last_name_unless_texts_lead_to_it(store, other):
    data, files = [exported(store, seed) for seed in range(3)], other.files()
    for name in ("a", "b"):
        files.put(name, data[0])
    files.delete("a")
    assert files.get("b") == data[0]
    files.put("b", data[1])  # the first one has no name left
    assert [row.key for row in other.ls()] == [toy_packet(1).key]

    other.register(SCOPE, toy_text(1), toy_packet(1).key)
    files.put("b", data[2])
    assert sorted(files.names()) == sorted(["b", toy_packet(1).key])
    files.delete("b")
    files.delete(toy_packet(1).key)
    assert list(other.ls()) == []


def test_a_name_leads_to_one_of_two_packets_even_if_nothing_can_be_removed(store, other, monkeypatch):
    first, second, files = exported(store, 1), exported(store, 2), other.files()
    files.put("a", first)
    with monkeypatch.context() as context:
        context.setattr(other, "remove", lambda key: (_ for _ in ()).throw(StoreError("no")))
        with pytest.raises(StoreError, match="no"):
            files.put("a", second)
    assert files.get("a") == second
    assert sorted(files.names()) == sorted(["a", toy_packet(1).key])


def test_a_packet_that_goes_another_way_takes_its_names_along(store, other):
    files = other.files()
    files.put("a", exported(store, 1))
    other.remove(toy_packet(1).key)
    assert files.get("a") is None
    assert list(files.names()) == []
    files.put("a", exported(store, 2))
    assert other.gc(None, identities=[toy_packet(2).scope.identity.digest], grace=0).removed != ()
    assert list(files.names()) == []


def test_more_names_than_a_page(store):
    data, files = exported(store, 1), store.files()
    wanted = [f"{number:04d}" for number in range(25)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvrag.store.names.PAGE", 10)
        for name in wanted:
            files.put(name, data)
        assert list(files.names()) == wanted
        assert list(files.names("001")) == wanted[10:20]


def test_names_are_there_when_the_store_is_opened_again(store, tmp_path):
    data = exported(store, 1)
    for _ in range(2):
        with PacketStore(tmp_path / "again") as again:
            files = again.files()
            assert files.get("a") in (None, data)
            files.put("a", data)
            assert list(files.names()) == ["a"]


def adopt_and_stop(root, data, reached) -> None:
    """Stop for good when the file is whole and has no row yet."""

    def stop(*_arguments):
        reached.send("here")
        time.sleep(600)

    files_module.os.replace = stop
    with PacketStore(root) as store:
        store.adopt(data)


def test_a_process_that_dies_leaves_nothing_but_what_repair_sweeps(store, tmp_path, child):
    data, root = exported(store, 1), tmp_path / "killed"
    with child(adopt_and_stop, root, data) as reached:
        assert reached.poll(60)
    with PacketStore(root) as killed:
        assert list(killed.ls()) == []
        assert killed.repair().swept == 1
        killed.adopt(data)
        assert list(killed.verify()) == []


def test_two_writers_of_one_packet_leave_one_file(store, other):
    data, files = exported(store, 1), other.files()
    threads = [threading.Thread(target=files.put, args=(name, data)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(files.names()) == list("abcd")
    assert list(other.verify()) == []


def test_remotes_get_what_is_adopted_and_give_what_is_exported(store, tmp_path):
    packet, data, objects = toy_packet(1), exported(store, 1), MemoryStore()
    with PacketStore(tmp_path / "first", remote=objects) as first:
        first.adopt(data)
        assert first.flush(10) == 0
        for path in (first.root / "packets").rglob("*.safetensors"):
            path.unlink()
        assert first.export(packet.key) == data
