"""Namespaces cannot read, replace, remove or sense one another; hostile names and files do no harm."""

import os
import tracemalloc
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_packets import IDENTITY, SCOPE, raw, toy_packet, toy_text
from xxhash import xxh3_128_hexdigest

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.matching import fingerprint
from kvrag.packet import Identity, Packet, PacketHeader, PacketKey, Recipe, Scope
from kvrag.store import PacketStore, format
from kvrag.store.format import read_header, read_packet

MINE, THEIRS = Scope(IDENTITY, Recipe(), "mine"), Scope(IDENTITY, Recipe(), "theirs")
NAMES = {
    "empty": "",
    "parent": "../../outside",
    "absolute": "/tmp/outside",
    "dots": "..",
    "slashes": "a/b\\c",
    "zero": "a\0b",
    "control characters": "\r\n\x1b[2J\x07",
    "SQL": "'; DROP TABLE packets; --",
    "long": "n" * 100_000,
    "beyond the basic plane": "\U0001f410" * 50,
    "right to left": "\u202egnp.exe",
}


def digest(number: int) -> bytes:
    known = fingerprint(toy_text(number))
    assert known
    return known.digest


def found(store: PacketStore, scope: Scope, number: int) -> list[PacketKey]:
    return [match.value for match in store.matcher(scope).find(toy_text(number), lambda d: store.find(scope, d))]


def files(store: PacketStore) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((store.root / "packets").rglob("*.safetensors"))}


def test_the_same_tokens_have_another_name_and_file_in_every_namespace(store):
    for scope in (MINE, THEIRS):
        store.put(toy_packet(scope=scope), [toy_text(0)])
    assert toy_packet(scope=MINE).key != toy_packet(scope=THEIRS).key
    assert found(store, MINE, 0) == [toy_packet(scope=MINE).key]
    assert found(store, THEIRS, 0) == [toy_packet(scope=THEIRS).key]
    assert len(files(store)) == 2


def test_nobody_can_put_register_or_replace_in_a_namespace_by_a_key_of_it(store):
    theirs = toy_packet(scope=THEIRS)
    store.put(theirs, [toy_text(0)])
    before = files(store)
    forged = Packet(theirs.key, MINE, theirs.token_ids, theirs.kv * 2)
    with pytest.raises(StoreError, match=r"use Scope\.key"):
        store.put(forged, [toy_text(0), toy_text(1)])
    with pytest.raises(StoreError, match="put it before"):
        store.register(MINE, toy_text(1), theirs.key)
    assert files(store) == before
    assert [found(store, MINE, number) for number in (0, 1)] == [[], []]
    assert found(store, THEIRS, 0) == [theirs.key]


def test_what_one_namespace_loses_or_gives_up_stays_in_the_other(store):
    for number in range(3):
        for scope in (MINE, THEIRS):
            store.put(toy_packet(number, scope=scope), [toy_text(number)])
    assert store.remove(toy_packet(0, scope=MINE).key)
    path = store._disk.path(IDENTITY.digest, toy_packet(1, scope=MINE).key)
    path.write_bytes(b"nonsense")
    assert store.get(toy_packet(1, scope=MINE).key) is None
    assert len(store.gc([toy_text(100)], grace=0, namespace="mine").removed) == 1
    assert [row.namespace for row in store.ls()] == ["theirs"] * 3
    for number in range(3):
        assert found(store, THEIRS, number) == [toy_packet(number, scope=THEIRS).key]
        assert raw(store.get(toy_packet(number, scope=THEIRS).key)) == raw(toy_packet(number, scope=THEIRS))


def test_a_file_moved_into_another_namespace_is_not_believed(store):
    mine, theirs = toy_packet(scope=MINE), toy_packet(scope=THEIRS)
    for packet in (mine, theirs):
        store.put(packet, [toy_text(0)])
    stolen = store._disk.path(IDENTITY.digest, theirs.key).read_bytes()
    store._disk.path(IDENTITY.digest, mine.key).write_bytes(stolen)
    assert store.get(mine.key) is None
    assert found(store, MINE, 0) == []


class Watched:
    """Counts what a lookup does: statements of the index, files opened and looked at."""

    def __init__(self, store: PacketStore, monkeypatch):
        self.done: Counter[str] = Counter()
        with store._index._read.use() as sqlite:
            sqlite.set_trace_callback(lambda statement: self.done.update([statement.split("'")[0]]))
        for name in ("open", "stat", "pread", "preadv", "scandir"):
            self.watch(name, monkeypatch)

    def watch(self, name: str, monkeypatch) -> None:
        call = getattr(os, name)

        def counted(*arguments, **options):
            self.done[name] += 1
            return call(*arguments, **options)

        monkeypatch.setattr(os, name, counted)

    def of(self, call, *arguments) -> dict[str, int]:
        self.done.clear()
        call(*arguments)
        return dict(self.done)


def test_a_text_of_another_namespace_costs_what_an_unknown_text_costs(store, monkeypatch):
    """Not the clock decides but the work: the same statements, and no file is touched."""
    for number in range(20):
        store.put(toy_packet(number, scope=THEIRS), [toy_text(number)])
    store.put(toy_packet(50, scope=MINE), [toy_text(50)])
    for number in (0, 99):  # both matchers are up to date
        found(store, MINE, number)
    watched = Watched(store, monkeypatch)
    theirs, unknown = (watched.of(found, store, MINE, number) for number in (0, 99))
    assert theirs == unknown
    theirs, unknown = (watched.of(store.find, MINE, digest(number)) for number in (0, 99))
    assert theirs == unknown
    assert not {"open", "pread", "preadv"} & theirs.keys()
    theirs, unknown = (watched.of(store.get, toy_packet(number, scope=MINE).key) for number in (0, 99))
    assert theirs == unknown
    mine = watched.of(store.get, toy_packet(50, scope=MINE).key)
    assert mine != unknown  # the watch sees differences where there are some


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_any_name_is_a_namespace_of_its_own_and_no_path(tmp_path, name):
    with PacketStore(tmp_path / "a" / "store") as store:
        scope = Scope(IDENTITY, Recipe(), name)
        packet = toy_packet(scope=scope)
        store.put(packet, [toy_text(0)])
        store.put(toy_packet(), [toy_text(0)])
        store._memory.discard(packet.key)
        assert raw(store.get(packet.key)) == raw(packet)
        assert found(store, scope, 0) == [packet.key]
        assert {row.namespace for row in store.ls()} == {name, "default"}
        assert {scope.namespace for scope in store.usage().scopes} == {name, "default"}
        assert list(store.verify()) == []
        assert [row.namespace for row in store.gc([toy_text(1)], grace=0, namespace=name).removed] == [name]
        assert found(store, SCOPE, 0) == [toy_packet().key]
        written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
        assert written == {("a", "store")}


def test_a_namespace_that_is_no_text_is_refused_and_leaves_nothing(store):
    scope = Scope(IDENTITY, Recipe(), "a\ud800b")
    with pytest.raises(StoreError, match="not valid Unicode"):
        store.put(toy_packet(scope=scope), [toy_text(0)])
    assert found(store, scope, 0) == []
    assert store.find(scope, digest(0)) is None
    assert files(store) == {}
    assert list(store.verify()) == []


def test_files_are_for_their_owner_alone_whatever_the_umask_allows(tmp_path):
    before = os.umask(0)
    try:
        with PacketStore(tmp_path / "new" / "store") as store:
            for number in range(3):
                store.put(toy_packet(number), [toy_text(number)])
            store._disk.path(IDENTITY.digest, toy_packet(0).key).write_bytes(b"nonsense")
            assert store.get(toy_packet(0).key) is None
            modes = {path: path.stat().st_mode & 0o777 for path in (store.root, *store.root.rglob("*"))}
    finally:
        os.umask(before)
    assert len(modes) > 8
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def header_of(shape: tuple[int, ...], codec: str, dtype: str, raw_layers: tuple[int, ...]) -> PacketHeader:
    return PacketHeader(
        key=toy_packet().key,
        identity=Identity(**IDENTITY.model_dump() | {"codec": codec, "dtype": dtype}),
        recipe=Recipe(),
        namespace="default",
        shape=shape,  # type: ignore[arg-type]
        checksums=(xxh3_128_hexdigest(b""),) * min(shape[0], 1000),
        created=0.0,
        raw_layers=raw_layers,
    )


SIZES = st.integers(1, 64) | st.sampled_from([0, -1, 1 << 20, 1 << 31, 1 << 62, 1 << 100])
SHAPES = st.tuples(st.integers(0, 8), st.sampled_from([2, 2, 2, 2, 3]), SIZES, SIZES, SIZES)
CODECS = st.sampled_from(["raw", "int8", "fp8", "int4", "zip"])


@settings(max_examples=200, deadline=None)
@given(
    SHAPES,
    CODECS,
    st.sampled_from(["float32", "float64", "bfloat16", "int4"]),
    st.lists(st.integers(-1, 8), max_size=3).map(tuple),
    st.sampled_from([0, 8, 80, -8, 3]),
)
def test_a_header_cannot_make_a_reader_allocate_more_than_its_file_deserves(
    tmp_path_factory, shape, codec, dtype, raw_layers, surplus
):
    """Well formed and of the right size wherever that is possible; int4 is up to 16 times shorter."""
    header = header_of(shape, codec, dtype, raw_layers)
    try:
        preamble = format._preamble(header.model_dump_json(), header, 5)
        size = sum(format._layer_sizes(header)) + 40 + surplus
    except Exception:  # no reader gets as far as that either: it is built with the same functions
        preamble, size = b"\xf8\x0f" + bytes(6) + b"{}".ljust(4088), 400
    path = tmp_path_factory.getbasetemp() / "hostile-header"
    path.write_bytes(preamble + bytes(min(max(0, size), 1 << 20)))
    length, allocated = path.stat().st_size, []

    def counted(nbytes):
        allocated.append(nbytes)
        assert nbytes <= 16 * length, f"{nbytes} bytes for a file of {length}"
        return torch.empty(nbytes, dtype=torch.uint8)

    tracemalloc.start()
    try:
        with pytest.raises(CorruptPacketError):
            read_packet(path, key=toy_packet().key, allocate=counted)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * length + (1 << 20)
    assert sum(allocated) <= 16 * length


def test_a_header_of_the_largest_size_is_read_in_little_memory(tmp_path):
    path = tmp_path / "packet"
    for content in (b" ", b"[", b'{"a":', b'"\\u0041'):
        text = (content * (1 << 20))[: (1 << 20) - 8]
        path.write_bytes((len(text)).to_bytes(8, "little") + text)
        tracemalloc.start()
        try:
            with pytest.raises(CorruptPacketError):
                read_header(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 32 << 20
