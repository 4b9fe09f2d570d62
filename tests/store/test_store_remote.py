"""Packets on a remote object store: read through, written back, never trusted."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from obstore.store import LocalStore, MemoryStore
from s3 import BUCKET
from toy_packets import IDENTITY, SCOPE, put_with_remote, raw, toy_packet, toy_text

from kvrag.errors import SettingsError, StoreError
from kvrag.matching import fingerprint
from kvrag.packet import Recipe, Scope
from kvrag.store import PacketStore, objects, remote, uploads

PACKETS = [toy_packet(seed) for seed in range(4)]
KEYS = [packet.key for packet in PACKETS]


def place(packet) -> str:
    return f"packets/{packet.scope.identity.digest[:16]}/{packet.key[:2]}/{packet.key}.safetensors"


def digest(seed: int) -> bytes:
    known = fingerprint(toy_text(seed))
    assert known
    return known.digest


def build(store: PacketStore, seeds) -> list[int]:
    """What an engine does: compute what is missing, register what is there."""
    missing = [seed for seed in seeds if not store.has(toy_packet(seed).key, SCOPE)]
    for seed in seeds:
        if seed in missing:
            store.put(toy_packet(seed), [toy_text(seed)])
        else:
            store.register(SCOPE, toy_text(seed), toy_packet(seed).key)
    return missing


@pytest.fixture
def open_store(tmp_path, s3):
    """Opens stores on machines of their own that share a remote."""
    stores = []

    def make(machine: str = "a", **options) -> PacketStore:
        stores.append(PacketStore(tmp_path / machine, **s3.remote | options))
        return stores[-1]

    yield make
    s3.let_go.set()
    for store in stores:
        store.close(0)


@pytest.fixture
def shared(open_store, s3):
    """Another machine has put all packets."""
    store = open_store("another machine")
    build(store, range(4))
    assert store.flush(10) == 0
    store.close()
    s3.requests.clear()
    return s3


def test_an_object_is_the_packet_file_under_its_name(open_store, s3):
    store = open_store()
    build(store, range(2))
    assert store.flush(10) == 0
    files = {path.name: path.read_bytes() for path in (store.root / "packets").rglob("*.safetensors")}
    assert s3.objects() == {f"shared/{place(packet)}": files[f"{packet.key}.safetensors"] for packet in PACKETS[:2]}
    assert {row.remote for row in store.ls()} == {f"s3://{BUCKET}/shared"}
    assert store.stat().pending_uploads == 0


def test_a_second_machine_computes_nothing_and_lists_once(open_store, shared):
    store = open_store()
    assert build(store, range(4)) == []
    assert (shared.asked("GET"), shared.asked("HEAD"), len(shared.requests)) == (1, 0, 1)
    for seed, packet in enumerate(PACKETS):
        assert store.find(SCOPE, digest(seed)) == packet.key
        found = store.get(packet.key)
        assert found is not None
        assert raw(found) == raw(packet)
    assert len(shared.requests) == 1 + len(PACKETS)
    stat = store.stat()
    assert {name: tier.hits for name, tier in stat.tiers.items()} == {"memory": 0, "disk": 0, "remote": 4}
    assert {row.tokens for row in store.ls()} == {5}
    assert list(store.verify()) == []


def test_what_was_read_is_kept_on_disk_and_in_memory(open_store, shared, tmp_path):
    store = open_store()
    build(store, range(4))
    first = store.get(KEYS[0])
    assert store.get(KEYS[0]) is first
    store.close()
    shared.requests.clear()
    again = open_store()
    assert again.get(KEYS[0]) is not None
    assert shared.requests == []
    assert again.stat().tiers["disk"].hits == 1


def test_packets_are_checked_without_being_read(open_store, shared):
    store = open_store()
    build(store, range(4))
    with store.hold(KEYS[:2]) as hold:
        assert list(hold.packets) == KEYS[:2]
    assert sorted(problem.kind for problem in store.verify()) == []
    assert store.repair().dropped == 0
    assert store.stat().packets == 4


def test_what_vanished_from_the_remote_is_missing_and_a_miss(open_store, shared, monkeypatch):
    store = open_store()
    build(store, range(4))
    shared.ask("DELETE", f"/{BUCKET}/shared/{place(PACKETS[0])}")
    monkeypatch.setattr(remote, "LISTED_S", -1.0)
    assert [(problem.kind, problem.key) for problem in store.verify()] == [("missing", KEYS[0])]
    assert store.get(KEYS[0]) is None
    assert store.stat().remote_failures == {"gone": 1}
    assert build(store, range(4)) == [0]


def test_a_store_opened_without_its_remote_has_what_is_on_disk_and_forgets_nothing(open_store, shared, tmp_path):
    store = open_store()
    build(store, range(4))
    store.get(KEYS[0])
    store.close()
    with PacketStore(tmp_path / "a") as alone:
        assert alone.get(KEYS[0]) is not None
        assert alone.get(KEYS[1]) is None
        assert not alone.has(KEYS[1], SCOPE)
        assert list(alone.verify()) == []
        assert alone.repair().dropped == 0
    assert open_store().get(KEYS[1]) is not None


@pytest.mark.parametrize("fault", ["unavailable", "stalled", "truncated", "refused"])
def test_a_remote_that_fails_is_a_miss_and_is_left_alone_for_a_while(open_store, shared, caplog, monkeypatch, fault):
    store = open_store(remote_timeout=0.3)
    build(store, range(4))
    shared.requests.clear()
    shared.fault = fault
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING, "kvrag.store"):
        assert [store.get(key) for key in KEYS] == [None] * 4
    assert time.monotonic() - begin < 3
    assert {path for _, path in shared.requests} == {f"/{BUCKET}/shared/{place(PACKETS[0])}"}
    assert "failed and is not asked for 30 s" in caplog.text
    failures = dict(store.stat().remote_failures)
    assert failures.pop("skipped") == 3
    assert sum(failures.values()) == 1
    expected = {"unavailable": {"server"}, "stalled": {"timeout"}, "refused": {"denied"}}
    assert set(failures) <= expected.get(fault, {"connection", "server", "other"})
    assert store.stat().corrupt == 0
    assert list((store.root / "packets").rglob("*.tmp")) == []
    shared.fault = None
    monkeypatch.setattr(store._remote, "_silent_until", 0.0)
    assert store.get(KEYS[0]) is not None  # nothing was forgotten


def test_a_remote_that_cannot_be_listed_has_nothing(open_store, shared, caplog):
    shared.fault = "unavailable"
    store = open_store()
    assert build(store, range(2)) == [0, 1]
    assert shared.asked("GET") == 1
    assert store.get(KEYS[0]) is not None


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "another packet", "nonsense"])
def test_a_bad_object_is_a_miss_and_is_replaced_when_its_packet_is_built_again(
    open_store, shared, damage, caplog, tmp_path
):
    name = f"shared/{place(PACKETS[0])}"
    good = shared.objects()[name]
    bad = {
        "flipped": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
        "shorter": good[:-8],
        "longer": good + b"12345678",
        "another packet": shared.objects()[f"shared/{place(PACKETS[1])}"],
        "nonsense": b"nonsense" * 100,
    }[damage]
    store = open_store()
    build(store, range(4))
    shared.overwrite(name, bad)
    assert store.get(KEYS[0]) is None
    assert "has a bad packet" in caplog.text
    assert store.stat().tiers["remote"].corrupt == 1
    assert store.find(SCOPE, digest(0)) is None
    assert shared.objects()[name] == bad  # it is not ours to delete
    assert [path for path in store.root.rglob("*") if path.is_file() and "index" not in path.name] == []
    store.close()
    store = open_store()  # distrust outlives the process
    assert build(store, range(4)) == [0]
    assert store.flush(10) == 0
    assert len(shared.objects()[name]) == len(good)
    assert store._index.trusts(KEYS[0], store._remote.url)
    other = open_store("c")
    build(other, range(4))
    assert other.get(KEYS[0]) is not None


def test_bytes_that_change_on_the_way_are_noticed(open_store, shared):
    store = open_store()
    build(store, range(4))
    shared.fault = "wrong"
    assert store.get(KEYS[0]) is None
    assert store.stat().corrupt == 1


def test_an_object_too_large_for_any_packet_is_not_offered(open_store, shared, monkeypatch):
    monkeypatch.setattr(remote, "LARGEST", 100)
    assert build(open_store(), range(4)) == [0, 1, 2, 3]


def test_an_object_of_another_size_is_not_even_read(open_store, shared, monkeypatch):
    store = open_store()
    build(store, range(4))
    shared.overwrite(f"shared/{place(PACKETS[0])}", b"x" * 10**6)
    monkeypatch.setattr(store._disk, "receive", lambda *_: pytest.fail("it was read"))
    assert store.get(KEYS[0]) is None
    assert store.stat().corrupt == 1


def test_an_object_that_comes_in_drops_is_not_waited_for(monkeypatch):
    class Drops:
        meta = {"size": 100}

        def stream(self, _):
            for _ in range(100):
                time.sleep(0.02)
                yield b"x"

    opened = objects.Objects(MemoryStore(), None, timeout=0.05)
    monkeypatch.setattr(opened._obstore, "get", lambda *_: Drops())
    size, parts = opened.read("x")
    with pytest.raises(objects.RemoteError, match=r"expected 100 bytes within 0.1 s, found \d$") as raised:
        list(parts)
    assert (size, raised.value.reason) == (100, "timeout")


def test_an_error_does_not_wait_for_uploads(s3, tmp_path):
    s3.fault, s3.methods = "stalled", ("PUT",)
    begin = time.monotonic()

    def interrupted():
        with PacketStore(tmp_path, **s3.remote) as store:
            store.put(PACKETS[0], [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begin < 5


def test_a_packet_of_another_tenant_is_not_handed_out(open_store, shared):
    store = open_store()
    stranger = Scope(IDENTITY, Recipe(), "another tenant")
    store.register(stranger, toy_text(0), KEYS[0])  # whoever does this knows the key of a packet that is not his
    assert store.get(KEYS[0]) is None
    assert store.stat().corrupt == 1
    assert store.find(stranger, digest(0)) is None


def test_removing_takes_the_object_too(open_store, shared):
    store = open_store()
    build(store, range(4))
    assert store.get(KEYS[0]) is not None
    assert store.remove(KEYS[0])
    assert f"shared/{place(PACKETS[0])}" not in shared.objects()
    assert not store.has(KEYS[0], SCOPE)
    shared.fault = "unavailable"
    with pytest.raises(StoreError, match="cannot delete packet"):
        store.remove(KEYS[1])
    assert store.has(KEYS[1])


def test_a_packet_removed_while_it_is_uploaded_is_not_left_on_the_remote(open_store, s3, monkeypatch):
    store = open_store()
    upload = remote.RemoteTier.upload

    def slow(tier, row):
        upload(tier, row)
        store.remove(row.key)
        s3.overwrite(f"shared/{place(PACKETS[0])}", b"uploaded after it was deleted")

    monkeypatch.setattr(remote.RemoteTier, "upload", slow)
    store.put(PACKETS[0], [])
    assert store.flush(10) == 0
    assert s3.objects() == {}


def test_uploads_that_fail_are_kept_reported_and_done_later(open_store, s3, monkeypatch):
    monkeypatch.setattr(uploads, "FIRST_PAUSE_S", 600.0)
    s3.fault, s3.methods = "unavailable", ("PUT",)
    store = open_store()
    build(store, range(4))
    assert store.flush(10) == 4
    assert store.stat().pending_uploads == 4
    assert store.stat().remote_failures["server"] >= 1
    assert store.get(KEYS[0]) is not None  # failing uploads do not stop anybody from reading
    s3.fault = None
    assert store.flush(10) == 0
    assert (len(s3.objects()), store.stat().pending_uploads) == (4, 0)


def test_a_failed_upload_is_tried_again_by_itself(open_store, s3, monkeypatch):
    monkeypatch.setattr(uploads, "FIRST_PAUSE_S", 0.05)
    s3.fault = "unavailable"
    store = open_store()
    store.put(PACKETS[0], [])
    while not s3.requests:
        time.sleep(0.01)
    s3.fault = None
    deadline = time.monotonic() + 10
    while not s3.objects() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(s3.objects()) == 1


def test_what_a_killed_process_did_not_upload_is_uploaded_when_the_store_is_opened_again(s3, tmp_path, child):
    s3.fault = "unavailable"
    with child(put_with_remote, tmp_path / "store", s3.remote, range(4)) as answers:
        assert answers.recv() == 4
    assert s3.objects() == {}
    s3.fault = None
    with PacketStore(tmp_path / "store", **s3.remote) as store:
        assert store.flush(10) == 0
    assert len(s3.objects()) == 4


def test_closing_waits_for_uploads_but_not_for_ever(open_store, s3, caplog):
    store = open_store()
    build(store, range(4))
    store.close()
    assert len(s3.objects()) == 4
    s3.fault = "stalled"
    s3.methods = ("PUT",)
    store = open_store("b")
    store.put(toy_packet(9), [])
    begin = time.monotonic()
    store.close(0.2)
    assert time.monotonic() - begin < 5
    assert "1 packets are not on" in caplog.text


def test_packets_put_before_there_was_a_remote_are_uploaded(open_store, s3, tmp_path):
    with PacketStore(tmp_path / "a") as store:
        build(store, range(4))
    assert open_store().flush(10) == 0
    assert len(s3.objects()) == 4


def test_a_damaged_file_is_read_from_the_remote_again(open_store, shared):
    store = open_store(memory_bytes=0)
    build(store, range(4))
    for attempt in (store.get, lambda key: store.repair().quarantined and store.get(key)):
        assert store.get(KEYS[0]) is not None
        path = store._disk.path(IDENTITY.digest, KEYS[0])
        path.write_bytes(b"damaged")
        assert attempt(KEYS[0]) is not None
        assert store.find(SCOPE, digest(0)) == KEYS[0]
    assert len(list((store.root / "quarantine").iterdir())) == 2


def test_two_stores_that_write_and_read_at_once_agree(open_store, s3):
    a, b = open_store("a"), open_store("b")
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(build, store, range(12)) for store in (a, b)]:
            future.result()
    assert (a.flush(20), b.flush(20)) == (0, 0)
    assert len(s3.objects()) == 12
    third = open_store("c")
    assert build(third, range(12)) == []
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(third.get, [toy_packet(seed).key for seed in range(12)]))
    assert [raw(packet) if packet else None for packet in found] == [raw(toy_packet(seed)) for seed in range(12)]


@pytest.mark.parametrize("kind", ["folder", "store object", "memory"])
def test_other_remotes(tmp_path, kind):
    shared = {
        "folder": f"file://{tmp_path}/shared folder",
        "store object": LocalStore(tmp_path / "shared", mkdir=True),
        "memory": MemoryStore(),
    }[kind]
    with PacketStore(tmp_path / "a", remote=shared) as store:
        build(store, range(2))
        assert store.flush(10) == 0
    with PacketStore(tmp_path / "b", remote=shared) as store:
        assert build(store, range(3)) == [2]
        assert store.get(KEYS[0]) is not None
        assert store.remove(KEYS[0])
        assert store.remove(KEYS[2])


def test_the_environment_says_where_the_server_is_and_who_asks(s3, tmp_path, monkeypatch):
    for name in ("access_key_id", "secret_access_key", "region"):
        monkeypatch.setenv(f"AWS_{name.upper()}", s3.options[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.options["endpoint"])
    with PacketStore(tmp_path, remote=f"s3://{BUCKET}") as store:
        build(store, range(1))
        assert store.flush(10) == 0
    assert list(s3.objects()) == [place(PACKETS[0])]


def test_packets_are_held_in_one_round_of_requests(open_store, shared, monkeypatch):
    store = open_store()
    build(store, range(4))
    meeting = threading.Barrier(4, timeout=10)
    read = store._remote._objects.read
    monkeypatch.setattr(store._remote._objects, "read", lambda path: meeting.wait() >= 0 and read(path))
    with store.hold(KEYS) as hold:
        assert list(hold.packets) == KEYS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remote": "nonsense"}, r"expected a remote such as s3://.* found 'nonsense'"),
        ({"remote": "gopher://host/x"}, "expected a remote such as"),
        ({"remote": "s3://"}, "expected a remote such as"),
        ({"remote": "s3://bucket", "remote_options": {"endpiont": "x"}}, "endpiont"),
        ({"remote": "s3://user:secret@bucket", "remote_options": {"endpiont": "x"}}, "'s3://bucket'"),
        ({"remote": 7}, "found int"),
        ({"remote": MemoryStore(), "remote_options": {"region": "x"}}, "with a URL only"),
        ({"remote": "memory:///", "remote_timeout": 0}, "above 0 seconds"),
    ],
)
def test_a_remote_that_is_none_is_refused(tmp_path, options, message):
    with pytest.raises(SettingsError, match=message) as raised:
        PacketStore(tmp_path / "store", **options)
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_without_obstore_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install 'kvrag\[remote\]'"):
        PacketStore(tmp_path, remote="memory:///")
    PacketStore(tmp_path).close()
