"""Packet files as bytes, for moving packets between stores."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.packet import PacketKey
from kvrag.store.bytes import write_all
from kvrag.store.disk import DiskTier
from kvrag.store.format import read_header, read_packet
from kvrag.store.index import Index
from kvrag.store.publishing import create_temporary, make_folder, sync_folder
from kvrag.store.records import PacketRow

if TYPE_CHECKING:
    from kvrag.store.packet_store import PacketStore

__all__ = ["PacketFiles", "adopt"]


class PacketFiles:
    """The packets of a namespace as files under names; a packet without a name goes by its key.

    A file says which tokens it holds, not which text: a packet that came this way is found in prompts once
    `PacketEngine.build` has seen its text, which computes nothing then. Names keep no packet alive: `PacketStore.gc`
    goes by texts.

    Args:
        store: that keeps the packets.
        index: of the store.
        namespace: whose packets; all others do not exist here.
    """

    def __init__(self, store: "PacketStore", index: Index, namespace: str):
        self._store = store
        self._names = index.names
        self._namespace = namespace

    def get(self, name: str) -> bytes | None:
        """The packet's file, every byte checked; None when it is not there or not intact."""
        key = self._names.find(self._namespace, name)
        return None if key is None else self._store.export(key)

    def put(self, name: str, data: bytes) -> PacketKey:
        """Keep a packet file, durable on return; one of a packet that is there already only gives it a name.

        The packet that had the name before goes, unless it has another name or texts lead to it.

        Raises:
            CorruptPacketError: it is not a packet file, or not intact.
            StoreError: it belongs to another namespace, its name is the key of another packet, or the disk is full.
        """
        if not (name and name.isprintable()):
            raise StoreError(f"expected a name of printable characters, found {name!r}; choose another")
        try:
            key = self._store.adopt(data, self._namespace, _named_key(name))
        except CorruptPacketError as error:
            raise CorruptPacketError(f"expected a packet file as the value of {name!r}, found {error}") from None
        before = self._names.find(self._namespace, name)
        if key == before:
            return key
        replaced = before is not None and self._names.only(self._namespace, name, before)
        self._names.give(self._namespace, name, key)  # first, so that the name always leads to one of the two
        if before is not None and replaced:
            self._store.remove(before)
        return key

    def delete(self, name: str) -> None:
        """Forget a name, and the packet with its last name, unless texts lead to it; by its key a packet always goes.

        Raises:
            StoreError: the store cannot be written, or a remote does not let go of the packet.
        """
        key = self._names.find(self._namespace, name)
        if key is not None and (key == name or self._names.only(self._namespace, name, key)):
            self._store.remove(key)
        else:
            self._names.take(self._namespace, name)

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that begin like this, and the keys of packets without a name."""
        return self._names.all(self._namespace, prefix)


def adopt(
    disk: DiskTier, index: Index, data: bytes, namespace: str, key: PacketKey | None = None
) -> tuple[PacketRow, bool]:
    """Keep a packet file that came from elsewhere, byte for byte, durably; False when the packet was there already.

    Args:
        disk: of the store.
        index: of the store.
        data: the file.
        namespace: the packet's.
        key: the packet's, if it is known.

    Raises:
        CorruptPacketError: it is not a packet file, or not intact.
        StoreError: it is another packet than expected, or the disk is full or cannot be written.
    """
    try:
        make_folder(disk.packets)
        file, temporary = create_temporary(disk.packets)
        with file:
            try:
                write_all(file.fileno(), memoryview(data))
                os.fsync(file.fileno())
                row = _checked(disk, temporary, len(data), namespace, key)
                path = disk.path(row.identity, row.key)
                make_folder(path.parent)
                with index.exclusive():
                    known = index.row(row.key)
                    if known is not None and disk.touch(path):
                        return known, False
                    os.replace(temporary, path)
                    sync_folder(path.parent)
                    index.add(row if known is None else replace(row, remote=known.remote), ())
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {disk.packets}: {error}; free or choose another disk, then try again"
        ) from error
    disk.added(row)
    return row, True


def _checked(disk: DiskTier, path: Path, size: int, namespace: str, key: PacketKey | None) -> PacketRow:
    """The row of the file at `path`, every byte of which was compared."""
    try:
        header = read_header(path)
        row = PacketRow.of(header, size)
        if row.namespace != namespace:
            raise StoreError(f"expected a packet of namespace {namespace!r}, found one of {row.namespace!r}")
        if key not in (None, row.key):
            raise StoreError(f"expected packet {key}, found packet {row.key}; names that are keys are those of packets")
        read_packet(path, key=row.key, allocate=disk.allocate)
    except CorruptPacketError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CorruptPacketError(f"{size} bytes that are none: {reason}") from None
    return row


def _named_key(name: str) -> PacketKey | None:
    return PacketKey(name) if re.fullmatch("[0-9a-f]{64}", name) else None
