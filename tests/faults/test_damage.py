"""Files that are torn, flipped, cut or gone: no wrong answer, every problem named, and repairs that mend them."""

import json
import os
import random
import shutil

import pytest
from toy_packets import SCOPE, raw, toy_packet, toy_text

from kvrag.errors import StoreError
from kvrag.matching import fingerprint
from kvrag.packet import PacketHeader
from kvrag.store import PacketStore
from tests.faults.conftest import flip

PACKETS = [toy_packet(seed) for seed in range(3)]
VICTIM = PACKETS[1]


def path_of(store, packet=VICTIM):
    return store._disk.path(packet.scope.identity.digest, packet.key)


def assert_the_others_are_there(store) -> None:
    for seed in (0, 2):
        known = fingerprint(toy_text(seed))
        assert known
        key = store.find(SCOPE, known.digest)
        assert key is not None
        packet = store.get(key)
        assert packet is not None
        assert raw(packet) == raw(PACKETS[seed])


def assert_it_is_named_mended_and_built_again(store) -> None:
    """First by `verify`, then by a reader, then by a repair of what the reader left."""
    (problem,) = store.verify()
    assert (problem.kind, problem.path, problem.key) == ("corrupt", path_of(store), VICTIM.key)
    assert store.get(VICTIM.key) is None
    assert_the_others_are_there(store)
    assert list(store.verify()) == []
    store.put(VICTIM, [toy_text(1)])
    found = store.get(VICTIM.key)
    assert raw(found) == raw(VICTIM)
    store._memory.discard(VICTIM.key)


@pytest.fixture
def store(tmp_path):
    with PacketStore(tmp_path / "store") as store:
        for seed, packet in enumerate(PACKETS):
            store.put(packet, [toy_text(seed)])
        yield store


def fields(value, name="") -> list[tuple[str, str]]:
    """Every field of a header with the JSON it is written as."""
    if isinstance(value, dict) and value:
        return [field for key, inner in value.items() for field in fields(inner, f"{name}.{key}")]
    if isinstance(value, list) and value:
        return [field for number, inner in enumerate(value) for field in fields(inner, f"{name}[{number}]")]
    return [(name, json.dumps(value, separators=(",", ":")))]


def test_a_flipped_bit_in_any_field_of_the_header(store):
    data = path_of(store).read_bytes()
    header = json.loads(json.loads(data[8:4096].decode())["__metadata__"]["kvrag"])
    assert header.keys() == PacketHeader.model_fields.keys()
    place, chance = 8, random.Random(0)
    for name, written in fields(header):
        field = name.rsplit(".", 1)[-1].split("[")[0].encode()
        place = data.index(b'\\"' + field + b'\\":', place) if not name.endswith("]") else place
        place = data.index(written.replace('"', '\\"').encode(), place)
        flip(path_of(store), 8 * place + chance.randrange(8 * len(written)))
        assert_it_is_named_mended_and_built_again(store)


def regions(data: bytes) -> dict[str, tuple[int, int]]:
    """Bytes of the file by what they hold; 3 layers of keys and values, [2, 5, 4] float32 each, and 5 ids."""
    text = len(data[:4096].rstrip())
    layers = {}
    for number in range(6):
        first = 4096 + 160 * number
        layers[f"{'values' if number % 2 else 'keys'} of layer {number // 2}"] = (first, first + 160)
    ids = 4096 + 6 * 160
    kinds = {"length": (0, 8), "entries": (8, text), "padding": (text, 4096), "ids": (ids, ids + 40)}
    return layers | kinds


def test_the_regions_are_the_whole_file(store):
    data = path_of(store).read_bytes()
    covered = sorted(regions(data).values())
    assert covered[0][0] == 0
    assert covered[-1][1] == len(data)
    assert all(end == begin for (_, end), (begin, _) in zip(covered, covered[1:], strict=False))


def test_a_flipped_bit_in_any_region(store):
    chance = random.Random(1)
    for first, last in regions(path_of(store).read_bytes()).values():
        for place in (first, last - 1, chance.randrange(first, last)):
            flip(path_of(store), 8 * place + chance.randrange(8))
            assert_it_is_named_mended_and_built_again(store)


@pytest.mark.parametrize("left", ["nothing", "zeros", "old bytes"])
def test_a_file_that_ends_early(store, left):
    """Cut, or a write that stopped anywhere and left zeros or whatever the disk held before."""
    data = path_of(store).read_bytes()
    borders = {place for region in regions(data).values() for place in region}
    for place in sorted({cut for border in borders for cut in (border - 1, border, border + 1)} & {*range(len(data))}):
        rest = {"nothing": b"", "zeros": bytes(len(data) - place), "old bytes": b"\xa5" * (len(data) - place)}[left]
        if data[:place] + rest == data:  # the last ids' upper bytes are zeros anyway
            continue
        path_of(store).write_bytes(data[:place] + rest)
        assert_it_is_named_mended_and_built_again(store)


def truncate(part: float):
    def damage(data: bytearray, chance: random.Random) -> None:
        del data[int(part * len(data)) :]

    return damage


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(8):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_header(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(100)] ^= 1 << chance.randrange(8)


def lose_a_page(data: bytearray, chance: random.Random) -> None:
    page = 4096 * chance.randrange(len(data) // 4096)
    data[page : page + 4096] = bytes(4096)


@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize(
    "damage",
    [truncate(0), truncate(1e-4), truncate(0.1), truncate(0.5), truncate(0.99), flip_bits, flip_header, lose_a_page],
    ids=["empty", "a few bytes", "a tenth", "half", "nearly all", "bits", "header", "a page of zeros"],
)
def test_an_index_that_is_not_what_it_was(store, damage, turn):
    """Every answer right or an error that names the remedy; after the repair all packets are there."""
    store.close()
    path = store.root / "index.sqlite"
    data = bytearray(path.read_bytes())
    damage(data, random.Random(turn))
    path.write_bytes(data)
    expected = {packet.key: raw(packet) for packet in PACKETS}
    try:
        again = PacketStore(store.root)
    except StoreError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:  # a flipped version number: nothing may be done to a newer index
        assert "has schema" in refused
        return
    with again:
        told = []
        for packet in PACKETS:
            try:
                found = again.get(packet.key)
            except StoreError as error:
                told.append(str(error))
            else:
                assert found is None or raw(found) == expected[packet.key]
        assert all("repair" in message for message in told)
        again.repair()
        assert list(again.verify()) == []
        present = {row.key for row in again.ls()}
        quarantined = {path.name.split(".")[0] for path in (again.root / "quarantine").iterdir()}
        assert present | quarantined == expected.keys()
        assert not quarantined
        for seed, packet in enumerate(PACKETS):
            again.put(packet, [toy_text(seed)])
            found = again.get(packet.key)
            assert found is not None
            assert raw(found) == expected[packet.key]
        assert list(again.verify()) == []


@pytest.mark.parametrize("lost", ["packets", "quarantine", "packets/*", "packets/*/*", "everything"])
def test_folders_deleted_under_a_live_store(store, lost):
    places = [store.root] if lost == "everything" else sorted(store.root.glob(lost))
    assert places
    for place in places:
        shutil.rmtree(place)
    for packet in PACKETS:
        found = store.get(packet.key)
        assert found is None if lost != "quarantine" else raw(found) == raw(packet)
    if lost == "quarantine":
        flip(path_of(store), 8 * 5000)
        store._memory.discard(VICTIM.key)
        assert store.get(VICTIM.key) is None
        assert not path_of(store).exists()
    for seed, packet in enumerate(PACKETS):
        store.put(packet, [toy_text(seed)])
    assert_the_others_are_there(store)
    assert list(store.verify()) == []


def test_a_folder_that_cannot_be_written_any_more_can_still_be_read(store, monkeypatch):
    """As root permissions mean nothing, so every call that would write says what a read-only disk says."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, *rest: (refuse if flags & os.O_CREAT else opened)(path, flags, *rest)
    )
    for name in ("replace", "unlink", "mkdir", "utime", "write"):
        monkeypatch.setattr(os, name, refuse)
    for packet in PACKETS:
        found = store.get(packet.key)
        assert found is not None
        assert raw(found) == raw(packet)
    with pytest.raises(StoreError, match="Read-only"):
        store.put(toy_packet(9), [toy_text(9)])
    store.put(PACKETS[0], [toy_text(0)])  # nothing to write
    monkeypatch.undo()
    assert list(store.verify()) == []
    assert len(list(store.ls())) == 3


@pytest.mark.parametrize("step", [-86400 * 400, 86400 * 400])
def test_a_clock_that_jumps(store, monkeypatch, step):
    import time

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + step)
    store.put(toy_packet(9), [toy_text(9)])
    flip(path_of(store), 8 * 5000)
    assert store.get(VICTIM.key) is None
    monkeypatch.undo()
    found = store.get(toy_packet(9).key)
    assert found is not None
    assert raw(found) == raw(toy_packet(9))
    report = store.gc(map(toy_text, (0, 2, 9)), grace=3600)
    assert report.removed == ()
    assert list(store.verify()) == []
