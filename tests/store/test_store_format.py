import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from toy_packets import IDENTITY, SCOPE, raw, toy_packet
from xxhash import xxh3_128_hexdigest

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import format
from kvrag.store.codecs import CODECS
from kvrag.store.format import read_header, read_packet, write_packet

DTYPES = ["bfloat16", "float16", "float32", "float64"]
LARGE = (4, 2, 8, 256, 160)  # 10 MiB in float32: huge pages, several pieces a layer and two threads


def write(path, packet):
    with open(path, "wb") as file:
        write_packet(file.fileno(), packet)
    return path


def identity_with(**changes: str) -> Identity:
    """Built anew: `model_copy` would take the cached digest along."""
    return Identity(**IDENTITY.model_dump() | changes)


def scope_of(dtype: str) -> Scope:
    return Scope(identity_with(dtype=dtype), Recipe(ids_before=(1, 2), dropped=1), "tenant")


@pytest.fixture
def packet() -> Packet:
    return toy_packet(7, scope=scope_of("bfloat16"))


@pytest.fixture
def path(tmp_path, packet):
    return write(tmp_path / "packet", packet)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 2, 5, 4), (1, 2, 1, 1, 1), LARGE])
def test_a_packet_comes_back_bit_for_bit(tmp_path, dtype, shape):
    packet = toy_packet(scope=scope_of(dtype), shape=shape)
    found = read_packet(write(tmp_path / "packet", packet), key=packet.key)
    assert (found.key, found.scope, found.offset) == (packet.key, packet.scope, 1)
    assert found.kv.shape == packet.kv.shape
    assert found.kv.dtype == packet.kv.dtype
    assert found.kv.is_contiguous()
    assert raw(found) == raw(packet)
    assert found.token_ids.tolist() == packet.token_ids.tolist()
    assert not found.token_ids.flags.writeable


def test_views_and_tensors_with_gradient_are_written_by_value(tmp_path):
    whole = torch.randn(5, 4, 2, 2, 3, requires_grad=True)
    packet = toy_packet(shape=(3, 2, 2, 4, 5))
    packet = Packet(packet.key, packet.scope, packet.token_ids, whole.permute(4, 2, 3, 1, 0))
    found = read_packet(write(tmp_path / "packet", packet), key=packet.key)
    assert torch.equal(found.kv, packet.kv)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_safetensors_library_reads_the_file(tmp_path, dtype):
    packet = toy_packet(scope=scope_of(dtype))
    path = write(tmp_path / "packet", packet)
    with safe_open(path, "pt") as file:
        assert file.get_tensor("kv").view(torch.uint8).equal(packet.kv.view(torch.uint8))
        assert file.get_tensor("token_ids").tolist() == packet.token_ids.tolist()
        header = json.loads(file.metadata()["kvrag"])
    assert header["key"] == packet.key
    assert header == json.loads(read_header(path).model_dump_json())


@pytest.mark.parametrize("extra", [0, 1, 500, 1000, 5000])
def test_data_starts_at_a_page_with_the_keys_and_values(tmp_path, extra):
    packet = toy_packet(scope=Scope(IDENTITY, Recipe(), "n" * extra))
    data = write(tmp_path / "packet", packet).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert start % 4096 == 0
    assert data[start:] == raw(packet) + packet.token_ids.astype("<i8").tobytes()


def test_one_flipped_bit_anywhere_is_found(path, packet):
    data = path.read_bytes()
    padding = len(data[:4096].rstrip())
    for place in [*range(padding), *range(padding, 4096, 97), *range(4096, len(data))]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptPacketError):
            read_packet(path, key=packet.key)


@pytest.mark.parametrize("place", [4096, 4096 + (5 << 20), -8])
def test_one_flipped_bit_in_a_large_packet_is_found(tmp_path, place):
    packet = toy_packet(shape=LARGE)
    path = write(tmp_path / "packet", packet)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptPacketError):
        read_packet(path, key=packet.key)


def test_every_truncation_and_every_surplus_is_found(path, packet):
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptPacketError):
            read_packet(path, key=packet.key)
    for surplus in (1, 8, 4096):
        path.write_bytes(data + bytes(surplus))
        with pytest.raises(CorruptPacketError):
            read_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_found(path, packet, monkeypatch):
    def shrink(fd, header, start, allocate):
        os.truncate(path, 4200)
        return read_layers(fd, header, start, allocate)

    read_layers = format._read_layers
    monkeypatch.setattr(format, "_read_layers", shrink)
    with pytest.raises(CorruptPacketError, match="shorter"):
        read_packet(path, key=packet.key)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": identity_with(weights="others", dtype="bfloat16")},
        {"recipe": Recipe()},
        {"namespace": "another"},
    ],
    ids=["identity", "recipe", "namespace"],
)
def test_a_packet_of_another_scope_never_passes_even_under_a_forged_key(path, packet, change):
    header = read_header(path).model_copy(update=change)
    data = path.read_bytes()
    path.write_bytes(format._preamble(header.model_dump_json(), header, len(packet.token_ids)) + data[4096:])
    assert read_header(path).key == packet.key  # well formed in itself
    with pytest.raises(CorruptPacketError, match="do not give its key"):
        read_packet(path, key=packet.key)


def test_another_packet_in_its_place_is_found(tmp_path, packet):
    other = toy_packet(8, scope=packet.scope)
    with pytest.raises(CorruptPacketError, match=f"expected packet {packet.key}, found {other.key}"):
        read_packet(write(tmp_path / "packet", other), key=packet.key)


def forged(length: int | None = None, text: bytes | None = None, data: bytes = bytes(400), **changes) -> bytes:
    """A file whose outer header and packet header are what a forger wants, its checksum right."""
    packet = toy_packet()
    header = {
        "key": packet.key,
        "identity": IDENTITY.model_dump(),
        "recipe": Recipe().model_dump(),
        "namespace": "default",
        "shape": [1, 2, 1, 5, 4],
        "checksums": [xxh3_128_hexdigest(bytes(160))],
        "created": 1.0,
    } | changes.pop("header", {})
    header_json = changes.pop("header_json", json.dumps(header, separators=(",", ":")))
    entries = {
        "__metadata__": {"kvrag": header_json, "kvrag.xxh3": xxh3_128_hexdigest(str(header_json).encode())},
        "kv": {"dtype": "F32", "shape": [1, 2, 1, 5, 4], "data_offsets": [0, 160]},
        "token_ids": {"dtype": "I64", "shape": [5], "data_offsets": [160, 200]},
    } | changes
    text = json.dumps(entries).encode() if text is None else text
    padded = -(-(8 + len(text)) // 4096) * 4096 - 8
    return (padded if length is None else length).to_bytes(8, "little") + text.ljust(padded) + data


HOSTILE = {
    "empty": b"",
    "short": b"\x01",
    "length beyond the file": forged(length=(1 << 20) - 8),
    "length of 2**64 - 8": forged(length=(1 << 64) - 8),
    "length beyond the cap": forged(text=b" " * (2 << 20)),
    "length not aligned": forged(length=100),
    "not JSON": forged(text=b"{"),
    "not UTF-8": forged(text=b'{"\xff": 1}'),
    "a list": forged(text=b"[]"),
    "nested deeply": forged(text=b"[" * 500_000),
    "nested deeply inside": forged(header_json="[" * 100_000),
    "a number of a million digits": forged(text=b"1" * 1_000_000),
    "metadata is no object": forged(__metadata__=[]),
    "packet header is no string": forged(__metadata__={"kvrag": {}}),
    "packet header with lone surrogates": forged(header_json='"\\ud800"'),
    "packet header with unknown fields": forged(header={"pickle": "x"}),
    "unknown dtype": forged(header={"identity": IDENTITY.model_dump() | {"dtype": "int8"}}),
    "dtype is a torch function": forged(header={"identity": IDENTITY.model_dump() | {"dtype": "load"}}),
    "huge shape": forged(header={"shape": [1, 2, 1 << 40, 1 << 40, 1 << 40]}),
    "petabyte": forged(header={"shape": [1, 2, 1 << 20, 1 << 20, 128]}),
    "negative shape": forged(header={"shape": [1, 2, -1, -5, 4]}),
    "empty shape": forged(header={"shape": [1, 2, 0, 5, 4]}),
    "three halves": forged(header={"shape": [1, 3, 1, 5, 4]}),
    "too few checksums": forged(header={"checksums": []}),
    "negative offsets": forged(kv={"dtype": "F32", "shape": [1, 2, 1, 5, 4], "data_offsets": [-160, 0]}),
    "overlapping tensors": forged(token_ids={"dtype": "I64", "shape": [5], "data_offsets": [0, 40]}),
    "a hole": forged(token_ids={"dtype": "I64", "shape": [5], "data_offsets": [168, 208]}, data=bytes(208)),
    "a third tensor": forged(data=bytes(204), x={"dtype": "U8", "shape": [4], "data_offsets": [200, 204]}),
    "other dtype outside": forged(kv={"dtype": "I32", "shape": [1, 2, 1, 5, 4], "data_offsets": [0, 160]}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_corrupt_and_allocates_nothing(tmp_path, data):
    def allocate(nbytes):
        raise AssertionError(f"{nbytes} bytes")

    path = tmp_path / "packet"
    path.write_bytes(data)
    for read in (read_header, lambda path: read_packet(path, key=toy_packet().key, allocate=allocate)):
        with pytest.raises(CorruptPacketError, match=str(path)):
            read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (3, 2, -2, -5, 4)},
        {"shape": (3, 2, 0, 5, 4)},
        {"shape": (3, 3, 2, 5, 4)},
        {"shape": (1, 2, 6, 5, 4)},
        {"checksums": ()},
        {"namespace": "n" * (1 << 20)},
        {"raw_layers": (3,)},
        {"raw_layers": (-1,)},
    ],
    ids=[
        "negative",
        "empty",
        "three halves",
        "too many checksums",
        "too few checksums",
        "huge header",
        "raw",
        "raw -1",
    ],
)
def test_a_header_that_agrees_with_itself_must_still_make_sense(path, packet, change):
    header = read_header(path).model_copy(update=change)
    size = sum(format._layer_sizes(header))
    data = raw(packet)[: max(0, size)].ljust(size)
    preamble = format._preamble(header.model_dump_json(), header, len(packet.token_ids))
    path.write_bytes(preamble + data + packet.token_ids.tobytes())
    with pytest.raises(CorruptPacketError, match="claims|impossible|raw layers"):
        read_packet(path, key=packet.key)


def test_the_forgery_of_these_tests_passes_when_nothing_is_forged(tmp_path):
    path = tmp_path / "packet"
    path.write_bytes(forged(data=bytes(160) + toy_packet().token_ids.tobytes()))
    assert read_packet(path, key=toy_packet().key).kv.eq(0).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(["key", "identity", "recipe", "namespace", "shape", "checksums", "created", "raw_layers"])
ENTRIES = st.sampled_from(["__metadata__", "kv", "token_ids", "x"])


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300)
    | st.builds(lambda text: forged(text=text), st.binary(max_size=300))
    | st.builds(lambda value: forged(text=json.dumps(value).encode()), JSON)
    | st.builds(lambda entry, value: forged(**{entry: value}), ENTRIES, JSON)
    | st.builds(lambda field, value: forged(header={field: value}), FIELDS, JSON)
    | st.builds(lambda shape: forged(header={"shape": shape}), st.lists(st.integers(), min_size=5, max_size=5))
)
def test_no_bytes_whatsoever_do_worse_than_being_corrupt(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(data)
    with pytest.raises(CorruptPacketError):
        read_packet(path, key=toy_packet().key)


def without(packet: Packet, **changes) -> Packet:
    return Packet(
        **{"key": packet.key, "scope": packet.scope, "token_ids": packet.token_ids, "data": packet.kv} | changes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": torch.zeros(1, 2, 1, 5, 4, dtype=torch.float16)}, "float16, the identity says float32"),
        ({"data": torch.zeros(2, 1, 5, 4)}, r"shape \[L, 2, H, T, D\]"),
        ({"data": torch.zeros(1, 3, 1, 5, 4)}, r"shape \[L, 2, H, T, D\]"),
        ({"data": torch.zeros(1, 2, 1, 0, 4)}, r"shape \[L, 2, H, T, D\]"),
        ({"key": "0" * 64}, "use Scope.key"),
        ({"scope": Scope(IDENTITY, Recipe(), "another")}, "use Scope.key"),
    ],
)
def test_a_packet_that_contradicts_itself_is_not_written(tmp_path, changes, message):
    with pytest.raises(StoreError, match=message):
        write(tmp_path / "packet", without(toy_packet(), **changes))


@pytest.mark.parametrize(("namespace", "message"), [("\ud800", "Unicode"), ("n" * (1 << 20), "at most 1048576")])
def test_a_header_that_cannot_be_read_back_is_not_written(tmp_path, namespace, message):
    with pytest.raises(StoreError, match=message):
        write(tmp_path / "packet", toy_packet(scope=Scope(SCOPE.identity, SCOPE.recipe, namespace)))


def coded(codec, shape=(3, 2, 2, 40, 6), dtype="bfloat16", outlier=0.0):
    """A packet of normal numbers, and one layer with a channel that is far larger."""
    scope = Scope(identity_with(codec=codec, dtype=dtype), Recipe())
    kv = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kv[1, 0, :, :, 3] *= 1 + outlier
    ids = np.arange(shape[3])
    return Packet(scope.key(ids), scope, ids, kv.to(getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("codec", "error"), [("int8", 0.02), ("fp8", 0.05), ("int4", 0.2)])
def test_a_codec_takes_fewer_bytes_and_gives_nearly_the_same(path, codec, error, dtype):
    packet = coded(codec, dtype=dtype)
    with path.open("wb") as file:
        assert write_packet(file.fileno(), packet).raw_layers == ()
    again = read_packet(path, key=packet.key)
    assert again.kv.dtype == packet.kv.dtype
    assert (again.kv.float() - packet.kv.float()).square().mean().sqrt() < error
    assert path.stat().st_size < 4096 + 8 * 40 + 0.8 * packet.nbytes
    with safe_open(path, "pt") as file:
        assert file.get_tensor("token_ids").tolist() == packet.token_ids.tolist()


@pytest.mark.parametrize("codec", ["int8", "fp8", "int4"])
def test_a_layer_that_a_codec_would_damage_is_stored_as_it_is(path, codec):
    """As Qwen2's first and last ones: a key channel that is hundreds of times larger than the others."""
    packet = coded(codec, shape=(3, 2, 2, 40, 32), outlier=400.0)
    packet.kv[1, 0, :, :, 4] *= 400
    with path.open("wb") as file:
        assert write_packet(file.fileno(), packet).raw_layers == (1,)
    assert torch.equal(read_packet(path, key=packet.key).kv[1], packet.kv[1])


@pytest.mark.parametrize("codec", ["int8", "fp8", "int4"])
def test_numbers_that_are_not_finite_stay_what_they_are(path, codec):
    packet = coded(codec)
    packet.kv[2, 1, 0, 0, 0] = torch.inf
    with path.open("wb") as file:
        assert write_packet(file.fileno(), packet).raw_layers == (2,)
    assert torch.equal(read_packet(path, key=packet.key).kv[2], packet.kv[2])


def test_an_unknown_codec_is_refused_before_anything_is_written(path):
    with path.open("wb") as file, pytest.raises(StoreError, match="raw, int8, fp8, int4"):
        write_packet(file.fileno(), coded("zip"))


@pytest.mark.parametrize("codec", ["raw", "int8", "fp8", "int4"])
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape_survives_a_codec(codec, data):
    """Odd sizes, zeros and tiny numbers: bytes as announced, and an error within one step of the coarsest scale."""
    shape = tuple(data.draw(st.tuples(st.just(2), st.integers(1, 3), st.integers(1, 70), st.integers(1, 40))))
    size = data.draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
    layer = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9)))) * size
    stored = CODECS[codec].encode(layer)
    assert stored.numel() == CODECS[codec].nbytes(shape, layer.dtype)
    again = torch.full(shape, torch.nan)
    CODECS[codec].decode(stored, again)
    step = {"raw": 0.0, "int8": 1 / 254, "fp8": 1 / 28, "int4": 1 / 14}[codec]
    step *= 1 + 2**-10  # scales are rounded to float16
    assert (again - layer).abs().max() <= step * layer.abs().max() + (0 if codec == "raw" else 1e-4)


def test_many_readers_share_the_threads_and_a_bad_layer_ends_none_of_them(tmp_path):
    packet = toy_packet(3, shape=LARGE)
    good, bad = tmp_path / "good", tmp_path / "bad"
    for path in (good, bad):
        with path.open("wb") as file:
            write_packet(file.fileno(), packet)
    with bad.open("r+b") as file:
        file.seek(-10_000, os.SEEK_END)
        file.write(b"flipped")

    def read(number: int) -> bool:
        try:
            return raw(read_packet(bad if number % 2 else good, key=packet.key)) == raw(packet)
        except CorruptPacketError as error:
            return number % 2 == 1 and "checksum of layer" in str(error)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, range(18))) == [True] * 18
