"""A packet file that is read in parts: layer by layer, or some tokens of all layers.

The numbers of tokens `first` to `last` stand in `L * 2 * H` places of the file, one for every head of keys and of
values. Every part is checked before anybody may use it: layers by their checksums, tokens by those of their segments.
"""

import os
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from xxhash import xxh3_128_hexdigest

from kvrag.errors import CorruptPacketError
from kvrag.packet import Packet, PacketKey
from kvrag.store.blocks import Allocator, BlockArena
from kvrag.store.bytes import bytes_of, read_exactly
from kvrag.store.checksums import SEGMENT, segment_checksum
from kvrag.store.codecs import CODECS
from kvrag.store.format import _layer_sizes, _read_header, new_packet
from kvrag.store.threads import share

__all__ = ["SEGMENT", "PacketFile", "Read", "ReadCancelledError"]


class Read(Protocol):
    """Fills `data` from `offset` of the open file `fd`; raises OSError or `CorruptPacketError`."""

    def __call__(self, fd: int, data: memoryview, offset: int) -> None:
        """As a loop over `os.preadv` does, which is the usual one; several threads at once call it."""
        ...


class ReadCancelledError(Exception):
    """Nobody wants the rest; what was read so far is not checked."""


class PacketFile:
    """The open file of packet `key`; a context manager.

    Args:
        path: of the file.
        key: of the packet it must hold.
        read: what fills memory from the file, for those who count or pace bytes.
        cancelled: asked between parts.
        allocate: gives the memory of `new_packet`.
        encoded: whether layers stay in their codec's bytes, as for `read_packet`.

    Attributes:
        header: what the file says about itself.
        token_ids: `[T_chunk]` int64.

    Raises:
        CorruptPacketError: it is not a packet file, or another packet's.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: PacketKey,
        read: Read = read_exactly,
        cancelled: Callable[[], bool] = lambda: False,
        allocate: Allocator | None = None,
        encoded: bool = False,
    ) -> None:
        self._path, self._read, self._cancelled = path, read, cancelled
        self._allocate, self._encoded = allocate or BlockArena(0), encoded
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.header, self._start, tokens = _read_header(self._fd)
            self._places = [self._start, *(self._start + end for end in accumulate(_layer_sizes(self.header)))]
            self.token_ids = np.empty(tokens, dtype="<i8")
            read(self._fd, self.token_ids.data.cast("B"), self._places[-1])
            if self.header.key != key or self.header.scope.key(self.token_ids) != key:
                raise CorruptPacketError(f"expected packet {key}, found {self.header.key} or other token ids")
        except CorruptPacketError as error:
            self.close()
            raise CorruptPacketError(f"{path}: {error}") from None
        except BaseException:
            self.close()
            raise
        self.token_ids.flags.writeable = False

    @property
    def tokens(self) -> int:
        """Rows `T` of the packet."""
        return self.header.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in the file."""
        return self._places[-1] - self._start

    @property
    def splits(self) -> bool:
        """Whether some of its tokens can be read without the others."""
        return bool(self.header.segments)

    def new_packet(self) -> Packet:
        """The packet, with uninitialised host memory for what is read."""
        return new_packet(self.header, self.token_ids, self._allocate, encoded=self._encoded)

    def read_layers(self, layers: range, packet: Packet) -> None:
        """Fill some layers of a packet that `new_packet` made.

        Raises:
            CorruptPacketError: the checksum of one is wrong.
            ReadCancelledError: nobody wants them any more.
            OSError: they cannot be read.
        """
        self._go_on()
        nbytes = self._places[layers.stop] - self._places[layers.start]
        share(lambda layer: self._read_layer(layer, packet), layers, nbytes)

    def read_tokens(self, first: int, last: int, kv: torch.Tensor) -> None:
        """Fill tokens `first` to `last` of `kv` [L, 2, H, T, D]; both are at the bounds of segments.

        Raises:
            CorruptPacketError: the checksum of a segment is wrong.
            ReadCancelledError: nobody wants it any more.
            OSError: it cannot be read.
        """
        layers, _, heads, tokens, _ = self.header.shape
        if first % SEGMENT or not (last % SEGMENT == 0 or last == tokens) or not self.splits:
            raise ValueError(f"expected bounds at multiples of {SEGMENT} tokens, found {first} and {last}")
        rows = kv.view(-1, *kv.shape[3:]).view(torch.uint8).numpy()
        row = rows.shape[2]

        def read(layer: int) -> None:
            self._go_on()
            for number in range(layer * 2 * heads, (layer + 1) * 2 * heads):
                offset = self._start + (number * tokens + first) * row
                self._read(self._fd, rows[number, first:last].data.cast("B"), offset)

        def check(begin: int) -> None:
            if segment_checksum(kv, begin, min(begin + SEGMENT, last)) != self.header.segments[begin // SEGMENT]:
                self._corrupt(f"the checksum of segment {begin // SEGMENT} is wrong")

        nbytes = len(rows) * (last - first) * row
        share(read, range(layers), nbytes)
        share(check, range(first, last, SEGMENT), nbytes)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "PacketFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_layer(self, layer: int, packet: Packet) -> None:
        codec = CODECS[self.header.identity.codec]
        in_place = codec.name == packet.form or layer in self.header.raw_layers
        begin, end = self._places[layer : layer + 2]
        data = packet.data[layer] if in_place else torch.empty(end - begin, dtype=torch.uint8)
        view = bytes_of(data)[: end - begin]
        self._read(self._fd, view, begin)
        if xxh3_128_hexdigest(view) != self.header.checksums[layer]:
            self._corrupt(f"the checksum of layer {layer} is wrong")
        if not in_place:
            codec.decode(data, packet.data[layer])

    def _go_on(self) -> None:
        if self._cancelled():
            raise ReadCancelledError

    def _corrupt(self, message: str) -> None:
        raise CorruptPacketError(f"{self._path}: {message}")
