"""Packets that no text in use leads to go; nothing else does."""

import os
import tracemalloc
from threading import Thread

import pytest
from toy_packets import IDENTITY, SCOPE, put_slowly, raw, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.packet import Identity, Recipe, Scope
from kvrag.store import PacketStore, gc

OTHER_TENANT = Scope(IDENTITY, Recipe(), "another tenant")
OTHER_MODEL = Scope(Identity(**IDENTITY.model_dump() | {"weights": "others"}), Recipe())
HOUR = 3600.0


@pytest.fixture
def store(store):
    """Packets 0 to 3, each found by its own text."""
    for seed in range(4):
        store.put(toy_packet(seed), [toy_text(seed)])
    return store


def later(monkeypatch, seconds: float) -> None:
    now = gc.time.time() + seconds
    monkeypatch.setattr(gc.time, "time", lambda: now)


def removed(report) -> set[str]:
    return {row.key for row in report.removed}


def keys(*seeds, scope=SCOPE) -> set[str]:
    return {toy_packet(seed, scope=scope).key for seed in seeds}


def there(store) -> set[str]:
    return {row.key for row in store.ls()}


def test_packets_without_a_text_in_use_go_with_file_row_and_memory(store):
    held = store.get(toy_packet(2).key)
    report = store.gc([toy_text(0), f"\n {toy_text(1)} ", "short"], grace=0)
    assert removed(report) == keys(2, 3)
    assert (report.marked, report.packets, report.alive, report.young) == (2, 4, 2, 0)
    assert report.bytes == sum(row.bytes for row in report.removed) > 0
    assert there(store) == keys(0, 1)
    assert store.get(toy_packet(2).key) is None
    assert raw(held) == raw(toy_packet(2))
    assert list(store.verify()) == []
    assert len(list((store.root / "packets").rglob("*.safetensors"))) == 2


def test_a_packet_lives_as_long_as_any_of_its_texts_is_in_use(store):
    store.register(SCOPE, toy_text(100), toy_packet(3).key)
    assert removed(store.gc([toy_text(100)], grace=0)) == keys(0, 1, 2)


def test_a_packet_whose_text_leads_to_another_one_now_is_dead(store):
    store.put(toy_packet(7), [toy_text(0)])
    assert removed(store.gc(map(toy_text, range(4)), grace=0)) == keys(0)


def test_a_text_in_use_keeps_its_packets_in_every_scope(store):
    store.put(toy_packet(0, scope=OTHER_TENANT), [toy_text(0)])
    store.put(toy_packet(0, scope=OTHER_MODEL), [toy_text(0)])
    store.gc([toy_text(0)], grace=0)
    assert there(store) == keys(0) | keys(0, scope=OTHER_TENANT) | keys(0, scope=OTHER_MODEL)


def test_a_packet_with_a_name_lives_until_the_name_is_taken_away(store):
    files, named = store.files(), toy_packet(3).key
    files.put("mine", store.export(named))
    assert removed(store.gc([toy_text(0)], grace=0, dry_run=True)) == keys(1, 2)
    assert removed(store.gc([toy_text(0)], grace=0)) == keys(1, 2)
    store.gc(None, grace=0, identities=["another"])
    assert there(store) == keys(0, 3)
    files.delete("mine")
    assert removed(store.gc([toy_text(0)], grace=0)) == keys(3)


def test_a_dry_run_removes_nothing_and_names_the_same(store):
    planned = store.gc([toy_text(0)], grace=0, dry_run=True)
    assert planned.dry_run
    assert there(store) == keys(0, 1, 2, 3)
    assert store.gc([toy_text(0)], grace=0).removed == planned.removed


def test_only_the_namespace_asked_for_is_swept(store):
    store.put(toy_packet(1, scope=OTHER_TENANT), [toy_text(1)])
    report = store.gc([toy_text(0)], grace=0, namespace="another tenant")
    assert removed(report) == keys(1, scope=OTHER_TENANT)
    assert report.packets == 1
    assert keys(0, 1, 2, 3) == there(store)


def test_young_packets_stay_until_the_grace_period_is_over(store, monkeypatch):
    report = store.gc([toy_text(0)], grace=HOUR)
    assert (removed(report), report.young) == (set(), 3)
    later(monkeypatch, HOUR + 2)
    assert removed(store.gc([toy_text(0)], grace=HOUR)) == keys(1, 2, 3)


def test_a_packet_that_a_build_relies_upon_is_young_again(store, monkeypatch):
    for seed in range(4):
        os.utime(store._disk.path(IDENTITY.digest, toy_packet(seed).key), (0, 0))
    store.put(toy_packet(1), [toy_text(1)])
    store.register(SCOPE, toy_text(2), toy_packet(2).key)
    with store._index._write.transaction() as sqlite:
        sqlite.execute("UPDATE packets SET created = 0")
    assert removed(store.gc([toy_text(0)], grace=HOUR)) == keys(3)


@pytest.mark.parametrize("grace", [0.0, HOUR])
def test_a_clock_that_went_backwards_makes_no_packet_old(store, monkeypatch, grace):
    later(monkeypatch, -1e6)
    report = store.gc([toy_text(0)], grace=grace)
    assert (removed(report), report.young) == (set(), 3)


@pytest.mark.parametrize(
    ("moment", "seed"),
    [("while texts are marked", 3), ("while texts are marked", 9), ("just before the transaction", 3)],
)
def test_a_text_registered_during_the_collection_saves_its_packet(store, monkeypatch, moment, seed):
    store.register(SCOPE, toy_text(50), toy_packet(2).key)  # a text may also change hands
    exclusive = store._index.exclusive

    def build():
        with PacketStore(store.root) as other:
            other.put(toy_packet(seed), [toy_text(50)])

    def texts():
        yield toy_text(0)
        if moment == "while texts are marked":
            build()

    def just_before():
        build()
        return exclusive()

    if moment == "just before the transaction":
        monkeypatch.setattr(store._index, "exclusive", just_before)
    store.gc(texts(), grace=0)
    assert there(store) == keys(0, seed)
    assert list(store.verify()) == []


def test_a_packet_that_is_just_being_put_is_not_taken_away(store, child):
    """The collection waits for the writer, whose packet then has a text of its own."""
    with child(put_slowly, store.root, 9) as events:
        assert events.recv() == "renamed"
        store.gc([toy_text(0)], grace=0)
        assert events.recv() == "put"
    assert toy_packet(9).key in there(store)
    assert list(store.verify()) == []


def test_packets_that_a_repair_adopted_are_young(store):
    for seed in range(4):
        os.utime(store._disk.path(IDENTITY.digest, toy_packet(seed).key), (0, 0))
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    assert store.repair().adopted == 4
    with store._index._write.transaction() as sqlite:
        sqlite.execute("UPDATE packets SET created = 0")
    assert store.gc([toy_text(0)], grace=HOUR).removed == ()


def test_superseded_identities_go_whatever_leads_to_them(store):
    store.put(toy_packet(0, scope=OTHER_MODEL), [toy_text(0)])
    report = store.gc(None, grace=0, identities=[OTHER_MODEL.identity.digest])
    assert removed(report) == keys(0, scope=OTHER_MODEL)
    assert there(store) == keys(0, 1, 2, 3)  # nothing said that they are not in use


def test_a_quarantined_file_goes_when_it_is_old_enough(store, monkeypatch):
    path = store._disk.path(IDENTITY.digest, toy_packet(0).key)
    path.write_bytes(b"nonsense")
    assert store.get(toy_packet(0).key) is None
    (store.root / "quarantine" / "notes.txt").write_text("mine")
    assert store.gc(None, quarantined=HOUR).emptied == ()
    later(monkeypatch, HOUR + 2)
    assert store.gc(None, quarantined=HOUR, dry_run=True).emptied_bytes == 8
    (gone,) = store.gc(None, quarantined=HOUR).emptied
    assert (gone.name.split(".")[0], gone.exists()) == (toy_packet(0).key, False)
    assert [path.name for path in (store.root / "quarantine").iterdir()] == ["notes.txt"]
    assert there(store) == keys(1, 2, 3)


def broken_source():
    yield toy_text(0)
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("texts", "options", "error"),
    [
        (None, {}, "found neither; nothing was removed"),
        ([], {}, "found none; nothing was removed"),
        (["short"], {}, "found none; nothing was removed"),
        (broken_source(), {}, "Input/output error"),
        ([toy_text(0)], {"grace": -1.0}, "found -1.0"),
        ([toy_text(0)], {"grace": float("nan")}, "found nan"),
        (None, {"quarantined": -1.0}, "found -1.0"),
    ],
)
def test_what_does_not_say_what_is_in_use_removes_nothing(store, texts, options, error):
    with pytest.raises((StoreError, OSError), match=error):
        store.gc(texts, **{"grace": 0.0} | options)
    assert there(store) == keys(0, 1, 2, 3)


def test_texts_are_read_once_and_not_kept(store):
    """200 texts of 100 kB: of each, a digest stays."""
    tracemalloc.start()
    try:
        report = store.gc((toy_text(seed) * 1600 for seed in range(200)), grace=0, dry_run=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.marked == 200
    assert peak < 200 * 100_000 / 2


def test_packets_without_files_and_without_texts_go_too(store):
    store._disk.path(IDENTITY.digest, toy_packet(1).key).unlink()
    store.put(toy_packet(8), [])
    assert removed(store.gc([toy_text(0)], grace=0)) == keys(1, 2, 3, 8)
    assert list(store.verify()) == []


def test_a_packet_put_again_while_it_is_removed_stays(store, monkeypatch):
    remove, put = store._index.remove, Thread(target=PacketStore(store.root).put, args=(toy_packet(0), [toy_text(0)]))

    def meanwhile(key):
        put.start()
        put.join(0.2)
        return remove(key)

    monkeypatch.setattr(store._index, "remove", meanwhile)
    assert store.remove(toy_packet(0).key)
    put.join()
    assert store.get(toy_packet(0).key) is not None
    assert list(store.verify()) == []


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_reader_who_met_a_bad_file_does_not_take_away_its_successor(store, monkeypatch, damage):
    damage(store._disk.path(IDENTITY.digest, toy_packet(0).key))
    read = store._disk.read

    def meanwhile(row):
        try:
            return read(row)
        finally:
            with PacketStore(store.root) as other:
                assert other.get(row.key) is None
                other.put(toy_packet(0), [toy_text(0)])

    monkeypatch.setattr(store._disk, "read", meanwhile)
    assert store.get(toy_packet(0).key) is None
    monkeypatch.undo()
    assert store.get(toy_packet(0).key) is not None
    assert list(store.verify()) == []


def test_usage_tells_namespaces_identities_and_what_else_takes_room(store):
    big = toy_packet(0, scope=OTHER_TENANT, shape=(3, 2, 2, 500, 4))
    store.put(big, [])
    folder = store._disk.path(IDENTITY.digest, big.key).parent
    (folder / ".abc.tmp").write_bytes(b"12345")
    (store.root / "quarantine" / "x.1.safetensors").write_bytes(b"123")
    found = store.usage()
    assert [(scope.namespace, scope.packets, scope.of) for scope in found.scopes] == [
        ("another tenant", 1, IDENTITY),
        ("default", 4, IDENTITY),
    ]
    assert [scope.bytes for scope in found.scopes] == [
        store.stat().scopes[namespace, IDENTITY.digest].bytes for namespace in ("another tenant", "default")
    ]
    assert (found.temporary.bytes, found.quarantine.files, found.quarantine.bytes) == (5, 1, 3)
    assert found.index.files >= 1
    assert found.bytes == sum(os.path.getsize(path) for path in store.root.rglob("*") if path.is_file())
