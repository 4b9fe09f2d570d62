"""Bytes between files and host memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from xxhash import xxh3_128, xxh3_128_hexdigest

from kvrag.errors import CorruptPacketError

__all__ = ["PIECE", "bytes_of", "corrupt", "opened", "read_exactly", "read_hashed", "write_all"]

StrPath = str | os.PathLike[str]
PIECE = 256 << 10  # bytes that are hashed while they are still in a core's own cache


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in host memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_all(fd: int, data: memoryview) -> None:
    """Write all of `data`; the system may take it in parts."""
    while data:
        data = data[os.write(fd, data) :]


def read_hashed(fd: int, data: memoryview, offset: int, layers: int) -> list[str]:
    """Fill `data` from the file and return the checksums of its layers, which are equally long."""
    if layers > 1 or len(data) <= PIECE:  # all at once is hashed faster than in pieces, but only out of a core's cache
        read_exactly(fd, data, offset)
        size = len(data) // layers
        return [xxh3_128_hexdigest(data[begin : begin + size]) for begin in range(0, len(data), size)]
    checksum = xxh3_128()
    for begin in range(0, len(data), PIECE):
        piece = data[begin : begin + PIECE]
        read_exactly(fd, piece, offset + begin)
        checksum.update(piece)
    return [checksum.hexdigest()]


def read_exactly(fd: int, data: memoryview, offset: int) -> None:
    """Fill `data` from `offset` of the file.

    Raises:
        CorruptPacketError: the file ends before.
        OSError: it cannot be read.
    """
    while data:
        count = os.preadv(fd, [data], offset)
        if not count:
            corrupt("it became shorter while it was read")
        data, offset = data[count:], offset + count


@contextmanager
def opened(path: StrPath) -> Iterator[int]:
    """The file, open for reading; what is found corrupt in it is told with its path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    except CorruptPacketError as error:
        raise CorruptPacketError(f"{os.fspath(path)}: {error}") from None
    finally:
        os.close(fd)


def corrupt(message: str) -> NoReturn:
    """Raise `CorruptPacketError`; who opened the file adds its path."""
    raise CorruptPacketError(message)
