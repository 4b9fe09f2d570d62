"""Objects on a remote go on request, and only those that this store has uploaded and has no packet for any more."""

import pytest
from toy_packets import IDENTITY, SCOPE, collect_and_stop, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.packet import Identity, Recipe, Scope
from kvrag.store import PacketStore, gc

HOUR = 3600.0
OTHER_TENANT = Scope(IDENTITY, Recipe(), "another tenant")
OTHER_MODEL = Scope(Identity(config="c", weights="others", tokenizer="t", rope="r", dtype="float32"), Recipe())


@pytest.fixture
def open_store(tmp_path, s3):
    stores = []

    def make(machine: str = "a", **options) -> PacketStore:
        stores.append(PacketStore(tmp_path / machine, **s3.remote | {"remote_timeout": 10.0} | options))
        return stores[-1]

    yield make
    for store in stores:
        store.close(0)


def put(store, *seeds, scope=SCOPE) -> None:
    for seed in seeds:
        store.put(toy_packet(seed, scope=scope), [toy_text(seed)])
    assert store.flush(20) == 0


def keys(*seeds, scope=SCOPE) -> set[str]:
    return {toy_packet(seed, scope=scope).key for seed in seeds}


def objects(s3) -> set[str]:
    return {name.rsplit("/", 1)[-1].removesuffix(".safetensors") for name in s3.objects()}


def withdrawn(report) -> set[str]:
    return {upload.key for upload in report.withdrawn}


def in_use(*seeds) -> list[str]:
    return [toy_text(seed) for seed in seeds]


def test_objects_stay_unless_they_are_asked_for(open_store, s3):
    store = open_store()
    put(store, 0, 1, 2)
    assert store.gc(in_use(0), grace=0).withdrawn == ()
    assert objects(s3) == keys(0, 1, 2)
    report = store.gc(in_use(0), grace=0, uploads=True)  # those of the collection before
    assert withdrawn(report) == keys(1, 2)
    assert sum(upload.bytes for upload in report.withdrawn) > 0
    assert objects(s3) == keys(0)
    assert store.gc(in_use(0), grace=0, uploads=True).withdrawn == ()
    assert list(store.verify()) == []


def test_a_dry_run_names_the_same_and_asks_the_remote_nothing(open_store, s3):
    store = open_store()
    put(store, 0, 1, 2)
    s3.requests.clear()
    planned = store.gc(in_use(0), grace=0, uploads=True, dry_run=True)
    assert s3.requests == []
    assert objects(s3) == keys(0, 1, 2)
    assert store.gc(in_use(0), grace=0, uploads=True).withdrawn == planned.withdrawn


def test_what_another_machine_uploaded_stays(open_store, s3):
    put(open_store("b"), 1, 2)
    store = open_store("a")
    put(store, 0)
    store.register(SCOPE, toy_text(1), toy_packet(1).key)
    store.register(SCOPE, toy_text(2), toy_packet(2).key)
    assert store.get(toy_packet(1).key) is not None
    assert {row.key for row in store.gc([toy_text(9)], grace=0, uploads=True).removed} == keys(0, 1, 2)
    assert objects(s3) == keys(1, 2)


def test_a_machine_that_still_wanted_an_object_computes_it_again(open_store, s3):
    a, b = open_store("a"), open_store("b")
    put(a, 0)
    b.register(SCOPE, toy_text(0), toy_packet(0).key)
    a.gc([toy_text(9)], grace=0, uploads=True)
    assert b.get(toy_packet(0).key) is None
    assert not b.has(toy_packet(0).key)
    put(b, 0)
    assert objects(s3) == keys(0)
    a.gc([toy_text(9)], grace=0, uploads=True)
    assert objects(s3) == keys(0)  # it is b's now


def test_uploads_within_the_grace_period_stay(open_store, s3, monkeypatch):
    store = open_store()
    put(store, 0, 1)
    store._index.remove(toy_packet(1).key)  # whatever took it away, nothing here leads to it
    assert store.gc(in_use(0), grace=HOUR, uploads=True).withdrawn == ()
    now = gc.time.time() + HOUR + 2
    monkeypatch.setattr(gc.time, "time", lambda: now)
    assert withdrawn(store.gc(in_use(0), grace=HOUR, uploads=True)) == keys(1)


def test_namespaces_and_identities_bound_it(open_store, s3):
    store = open_store()
    put(store, 0, 1)
    put(store, 0, 1, scope=OTHER_TENANT)
    put(store, 0, scope=OTHER_MODEL)
    store.gc([toy_text(0)], grace=0)  # takes both packets 1, and leaves the objects
    report = store.gc([toy_text(0)], grace=0, namespace="another tenant", uploads=True)
    assert withdrawn(report) == keys(1, scope=OTHER_TENANT)
    report = store.gc(None, grace=0, identities=[OTHER_MODEL.identity.digest], uploads=True)
    assert withdrawn(report) == keys(0, scope=OTHER_MODEL)
    assert objects(s3) == keys(0, 1) | keys(0, scope=OTHER_TENANT)
    assert store.gc(None, quarantined=0, grace=0, uploads=True).withdrawn == ()


def test_a_packet_that_only_the_remote_has_stays(open_store, s3, tmp_path):
    store = open_store(disk_bytes=1)
    put(store, 0, 1, 2)
    assert list((tmp_path / "a" / "packets").rglob("*.safetensors")) == []
    assert store.gc(in_use(0, 1, 2), grace=0, uploads=True).withdrawn == ()
    assert objects(s3) == keys(0, 1, 2)


def test_a_packet_that_is_put_again_meanwhile_is_uploaded_again(open_store, s3, monkeypatch):
    store = open_store()
    put(store, 0, 1)
    store.gc(in_use(0), grace=0)
    delete = store._remote._objects.delete

    def late(path):
        put(store, 1)
        delete(path)

    monkeypatch.setattr(store._remote._objects, "delete", late)
    store.gc(in_use(0), grace=0, uploads=True)
    assert store.flush(20) == 0
    assert objects(s3) == keys(0, 1)
    assert store.stat().pending_uploads == 0


def test_a_remote_that_fails_keeps_its_objects_until_the_next_collection(open_store, s3, caplog):
    store = open_store()
    put(store, *range(6))
    s3.fault, s3.methods = "unavailable", ("POST",)  # which is how objects are deleted
    report = store.gc(in_use(0), grace=0, uploads=True)
    assert (len(report.removed), report.withdrawn, report.kept_back) == (5, (), gc.FAILURES)
    assert s3.asked("POST") == gc.FAILURES
    assert "cannot delete packet" in caplog.text
    s3.fault = None
    assert withdrawn(store.gc(in_use(0), grace=0, uploads=True)) == keys(1, 2, 3, 4, 5)
    assert objects(s3) == keys(0)


@pytest.mark.parametrize("point", ["before the rows", "before the objects", "object deleted", "among the objects"])
def test_a_collection_that_is_killed_is_completed_by_the_next(open_store, s3, tmp_path, child, point):
    store = open_store()
    put(store, *range(4))
    store.close()
    with child(collect_and_stop, tmp_path / "a", s3.remote | {"remote_timeout": 10.0}, 0, point) as reached:
        assert reached.recv() == point
    store = open_store()
    assert store.flush(20) == 0
    assert list(store.verify()) == []
    assert store.get(toy_packet(0).key) is not None
    store.gc(in_use(0), grace=0, uploads=True)
    assert objects(s3) == keys(0)
    assert store._index.uploads(store._remote.url)[0].key == toy_packet(0).key
    assert list(store.verify()) == []


def test_without_a_remote_there_is_nothing_to_delete_from(tmp_path):
    with PacketStore(tmp_path) as store:
        store.put(toy_packet(0), [toy_text(0)])
        with pytest.raises(StoreError, match="expected a store with a remote to delete uploads from"):
            store.gc(in_use(9), grace=0, uploads=True)
        assert len(list(store.ls())) == 1
