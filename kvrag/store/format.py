"""The packet file: a safetensors file of which every byte is checked.

    8 bytes     length of the JSON that follows, little endian
    JSON        {"__metadata__": {"kvrag": PacketHeader, "kvrag.xxh3": its checksum}, "kv": ..., "token_ids": ...}
    spaces      up to a multiple of 4096, so that the data can be read with direct I/O and mapped
    kv          [L, 2, H, T, D], layer by layer as the identity's codec stores it (`raw`: the bytes as they are in
                memory); one xxh3-128 per layer in the header, and for `raw` one per token segment
    token_ids   [T_chunk] int64; the packet's key follows from them

A reader builds the bytes in front of the data again from the header it found and demands exactly these, so overlapping
tensors, holes, strange offsets or additional entries need no rules of their own.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import torch
from xxhash import xxh3_128_hexdigest

from kvrag.errors import StoreError
from kvrag.packet import Packet, PacketHeader, PacketKey
from kvrag.store.blocks import Allocator, BlockArena
from kvrag.store.bytes import PIECE, bytes_of, corrupt, opened, read_exactly, read_hashed, write_all
from kvrag.store.checksums import SEGMENT, segment_checksums
from kvrag.store.codecs import CODECS
from kvrag.store.threads import THREADS, share

__all__ = ["new_packet", "read_header", "read_packet", "write_packet"]

ALIGNMENT = 4096
MAX_HEADER = 1 << 20
LAYER = 16  # bytes; encoded layers in memory begin at multiples, as kernels want it
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}

StrPath = str | os.PathLike[str]


def write_packet(fd: int, packet: Packet) -> PacketHeader:
    """Write `packet` to the empty file `fd`; making it durable is the caller's part.

    Raises:
        StoreError: the packet's key, dtype or shape contradict each other.
        OSError: the file cannot be written.
    """
    kv = packet.kv.detach().cpu().contiguous()
    ids = np.ascontiguousarray(packet.token_ids, dtype="<i8")
    _check_writable(packet, ids)
    layer_count, _, heads, rows, channels = kv.shape
    codec = CODECS[packet.scope.identity.codec]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="kvrag-write") as pool:
        encoded = list(pool.map(codec.encode_intact, kv))
    raw_layers = tuple(number for number, layer in enumerate(encoded) if layer is None)
    layers = [bytes_of(raw if layer is None else layer) for raw, layer in zip(kv, encoded, strict=True)]
    header = PacketHeader(
        key=packet.key,
        identity=packet.scope.identity,
        recipe=packet.scope.recipe,
        namespace=packet.scope.namespace,
        shape=(layer_count, 2, heads, rows, channels),
        checksums=tuple(xxh3_128_hexdigest(layer) for layer in layers),
        created=float(int(time.time())),  # of constant length, so that equal packets give files of equal size
        raw_layers=raw_layers,
        segments=segment_checksums(kv) if codec.name == "raw" else (),
    )
    try:
        preamble = _preamble(header.model_dump_json(), header, len(ids))
    except ValueError as error:  # a namespace with lone surrogates
        raise StoreError(f"the packet's header is not valid Unicode: {error}; choose another namespace") from error
    if len(preamble) > MAX_HEADER:
        raise StoreError(f"the packet's header takes {len(preamble)} bytes, at most {MAX_HEADER} can be stored")
    for part in (memoryview(preamble), *layers, ids.data.cast("B")):
        write_all(fd, part)
    return header


def read_header(path: StrPath) -> PacketHeader:
    """What the packet file at `path` says about itself, checked against its size; keys and values are not read.

    Raises:
        CorruptPacketError: it is not a packet file, or not a whole one.
        OSError: it cannot be read.
    """
    with opened(path) as fd:
        return _read_header(fd)[0]


def read_packet(path: StrPath, *, key: PacketKey, allocate: Allocator | None = None, encoded: bool = False) -> Packet:
    """Read and check the packet file at `path`, which must hold `key`, into memory of its own or what `allocate` gives.

    With `encoded` its layers stay in their codec's bytes, if kernels read those and no layer is stored as it is.

    Raises:
        CorruptPacketError: any byte is not what was written, or it is another packet.
        OSError: it cannot be read.
    """
    with opened(path) as fd:
        header, start, tokens = _read_header(fd)
        if header.key != key:
            corrupt(f"expected packet {key}, found {header.key}")
        ids = np.empty(tokens, dtype="<i8")
        packet = new_packet(header, ids, allocate or BlockArena(0), encoded=encoded)
        _read_layers(fd, header, start, packet)
        read_exactly(fd, ids.data.cast("B"), start + sum(_layer_sizes(header)))
        if header.scope.key(ids) != key:
            corrupt(f"its identity, recipe, namespace and token ids do not give its key {key}")
    ids.flags.writeable = False
    return packet


def new_packet(header: PacketHeader, token_ids: np.ndarray, allocate: Allocator, *, encoded: bool) -> Packet:
    """A packet whose numbers are still to be read; `encoded` as for `read_packet`."""
    key, dtype, shape = PacketKey(header.key), getattr(torch, header.identity.dtype), torch.Size(header.shape)
    codec = CODECS[header.identity.codec]
    if not (encoded and codec.attended) or header.raw_layers:
        data = allocate(shape.numel() * dtype.itemsize).view(dtype).view(shape)
        return Packet(key, header.scope, token_ids, data)
    layer = -(-codec.nbytes(shape[1:], dtype) // LAYER) * LAYER
    return Packet(key, header.scope, token_ids, allocate(shape[0] * layer).view(shape[0], layer), shape)


def _check_writable(packet: Packet, ids: np.ndarray) -> None:
    shape, dtype, identity = packet.kv.shape, str(packet.kv.dtype).removeprefix("torch."), packet.scope.identity
    if len(shape) != 5 or shape[1] != 2 or 0 in shape:
        raise StoreError(f"keys and values must have the shape [L, 2, H, T, D], found {list(shape)}")
    if dtype != identity.dtype or dtype not in DTYPES:
        raise StoreError(f"keys and values are {dtype}, the identity says {identity.dtype}; known: {', '.join(DTYPES)}")
    if identity.codec not in CODECS:
        raise StoreError(f"expected a codec out of {', '.join(CODECS)}, found {identity.codec!r}")
    if packet.scope.key(ids) != packet.key:
        raise StoreError(f"packet {packet.key} is not what its scope and token ids are called; use Scope.key")


def _preamble(header_json: str, header: PacketHeader, tokens: int) -> bytes:
    """Everything in front of the data; a function of its arguments, so that a reader can demand exactly these bytes."""
    end = sum(_layer_sizes(header))
    is_raw = header.identity.codec == "raw"
    kv = (DTYPES[header.identity.dtype], header.shape) if is_raw else ("U8", [end])
    entries = {
        "__metadata__": {"kvrag": header_json, "kvrag.xxh3": xxh3_128_hexdigest(header_json.encode())},
        "kv": {"dtype": kv[0], "shape": kv[1], "data_offsets": [0, end]},
        "token_ids": {"dtype": "I64", "shape": [tokens], "data_offsets": [end, end + 8 * tokens]},
    }
    text = json.dumps(entries).encode()
    length = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _read_header(fd: int) -> tuple[PacketHeader, int, int]:
    """Header, start of the data in bytes, and number of token ids; allocates no more than the file is long.

    What it says the numbers take when they are expanded is less than 16 times that: int4 of float64 comes near.
    """
    size = os.fstat(fd).st_size
    start = 8 + int.from_bytes(os.pread(fd, 8, 0), "little")
    if start > min(size, MAX_HEADER) or start % ALIGNMENT:
        corrupt(f"its header claims {start - 8} bytes, the file has {size}")
    preamble = os.pread(fd, start, 0)
    try:
        header_json = json.loads(preamble[8:].decode())["__metadata__"]["kvrag"]
        header = PacketHeader.model_validate_json(header_json)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        corrupt(f"its header cannot be read: {type(error).__name__}: {str(error)[:200]}")
    if header.identity.dtype not in DTYPES:
        corrupt(f"its dtype {header.identity.dtype[:40]!r} is unknown")
    if header.identity.codec not in CODECS:
        corrupt(f"its codec {header.identity.codec[:40]!r} is unknown")
    if min(header.shape) < 1 or header.shape[1] != 2 or len(header.checksums) != header.shape[0]:
        corrupt(f"its shape {header.shape} with {len(header.checksums)} checksums is impossible")
    if not all(0 <= layer < header.shape[0] for layer in header.raw_layers):
        corrupt(f"its raw layers {header.raw_layers[:8]} are not among its {header.shape[0]}")
    if header.segments and len(header.segments) != -(-header.shape[3] // SEGMENT):
        corrupt(f"its shape {header.shape} with {len(header.segments)} segments is impossible")
    tokens, rest = divmod(size - start - sum(_layer_sizes(header)), 8)
    if tokens < 0 or rest or preamble != _preamble(header_json, header, tokens):
        corrupt(f"its header is not the one that belongs to a file of {size} bytes")
    return header, start, tokens


def _read_layers(fd: int, header: PacketHeader, start: int, packet: Packet) -> None:
    """Keys and values straight into their memory, hashed on the way while they are in a core's own cache."""
    layers, sizes = header.shape[0], _layer_sizes(header)
    memory, room = bytes_of(packet.data), packet.data[0].nbytes
    begins = [start, *(start + end for end in accumulate(sizes))]
    codec = CODECS[header.identity.codec]
    together = max(1, PIECE // room) if codec.name == "raw" else 1  # layers a read; small ones cost more calls

    def read(run: range) -> None:
        in_place = codec.name == packet.form or run.start in header.raw_layers
        stored = None if in_place else torch.empty(sizes[run.start], dtype=torch.uint8)
        first = run.start * room
        view = memory[first : first + len(run) * sizes[run.start]] if stored is None else bytes_of(stored)
        checksums = read_hashed(fd, view, begins[run.start], len(run))
        for layer, checksum in zip(run, checksums, strict=True):
            if checksum != header.checksums[layer]:
                corrupt(f"the checksum of layer {layer} is wrong")
        if stored is not None:
            codec.decode(stored, packet.data[run.start])

    runs = [range(first, min(first + together, layers)) for first in range(0, layers, together)]
    share(read, runs, len(memory))


def _layer_sizes(header: PacketHeader) -> list[int]:
    """Bytes of each layer in the file."""
    shape, dtype = header.shape[1:], getattr(torch, header.identity.dtype)
    size, raw = (CODECS[name].nbytes(shape, dtype) for name in (header.identity.codec, "raw"))
    return [raw if layer in header.raw_layers else size for layer in range(header.shape[0])]
