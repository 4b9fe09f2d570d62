"""A remote object store as the slowest tier: shared by machines, never trusted, never waited for twice.

    <prefix>/packets/<identity[:16]>/<key[:2]>/<key>.safetensors

An object is the packet file, byte for byte.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from kvrag.errors import CorruptPacketError, StoreError
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.store.disk import DiskTier
from kvrag.store.index import Index
from kvrag.store.metrics import StoreMetrics
from kvrag.store.objects import Objects, RemoteError
from kvrag.store.publishing import key_of, packet_path
from kvrag.store.records import PacketRow, Upload

__all__ = ["RemoteTier"]

COOL_DOWN_S = 30.0
LISTED_S = 60.0
LARGEST = 16 << 30  # bytes of an object that somebody could mean as a packet

logger = logging.getLogger("kvrag.store")


@dataclass(frozen=True)
class _Listing:
    read: float
    sizes: dict[PacketKey, int]


class RemoteTier:
    """The packets that an object store has.

    What it sends is checked, byte for byte, in a temporary file of the disk tier, which keeps it. A bad object is a
    miss, counted and logged. It is left where it is, since it may be good for somebody else, but distrusted from then
    on: its packet is computed again and uploaded in its place. After a request that fails, nothing is asked for
    `COOL_DOWN_S` seconds.
    """

    name = "remote"
    capacity: int | None = None

    def __init__(self, objects: Objects, disk: DiskTier, index: Index, metrics: StoreMetrics):
        self.url = objects.name
        self._objects = objects
        self._disk = disk
        self._index = index
        self._metrics = metrics
        self._silent_until = 0.0
        self._listings: dict[str, _Listing] = {}
        self._listing = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the packets that this store knows to be there."""
        return self._index.bytes_on(self.url)

    def has(self, key: PacketKey) -> bool:
        """Whether the index says that the packet is there."""
        row = self._index.row(key)
        return row is not None and row.remote == self.url

    def get(self, key: PacketKey) -> Packet | None:
        """The packet, of which the disk tier has a copy then."""
        row = self._index.row(key)
        if row is None or row.remote != self.url or self._is_silent():
            return None
        try:
            size, parts = self._objects.read(_place(row))
            if size != row.bytes or size > LARGEST:
                raise CorruptPacketError(f"expected {row.bytes} bytes, found {size}")
            packet = self._disk.receive(row, self.url, parts)
            self._metrics.bytes_read.labels(self.name).inc(size)
            return packet
        except FileNotFoundError:
            self._metrics.remote_failures.labels("gone").inc()
            logger.warning("packet %s is gone from %s", key, self.url)
            self._forget(key)
        except CorruptPacketError as error:
            self._metrics.corrupt.labels(self.name).inc()
            logger.warning("%s has a bad packet %s, which is not used: %s", self.url, key, error)
            self._forget(key, distrust=True)
        except RemoteError as error:
            self._failed(error)
        except (OSError, StoreError) as error:
            logger.warning("packet %s of %s cannot be kept on this disk: %s", key, self.url, error)
        return None

    def discard(self, key: PacketKey) -> None:
        """Delete the packet's object.

        Raises:
            StoreError: the remote does not let go of it.
        """
        row = self._index.row(key)
        if row is not None:
            self.delete(row)

    def delete(self, row: PacketRow | Upload) -> None:
        """Delete the object of a packet.

        Raises:
            StoreError: the remote does not let go of it.
        """
        try:
            self._objects.delete(_place(row))
        except RemoteError as error:
            self._metrics.remote_failures.labels(error.reason).inc()
            raise StoreError(
                f"cannot delete packet {row.key} from {self.url}: {error}; remove it again later"
            ) from error
        self._index.withdrawn(row.key, self.url)
        with self._listing:
            listing = self._listings.get(row.identity)
            if listing is not None:
                listing.sizes.pop(row.key, None)

    def upload(self, row: PacketRow) -> None:
        """Store the packet's file, after reading every byte of it.

        Raises:
            RemoteError: it was not stored.
            CorruptPacketError: the file is bad.
            OSError: there is no such file, or it cannot be read.
        """
        path = self._disk.path(row.identity, row.key)
        size = self._disk.check(path, deep=True).bytes
        self._objects.write(_place(row), path)
        self._metrics.bytes_written.labels(self.name).inc(size)

    def offered(self, scope: Scope, key: PacketKey) -> PacketRow | None:
        """The row of a packet that nobody here knows but the remote lists; its tokens are not known yet.

        An identity's objects are listed once a minute at most, in one request for a thousand of them.
        """
        identity = scope.identity.digest
        listed = self.listed(identity)
        if listed is None or key not in listed or not self._index.trusts(key, self.url):
            return None
        names = (scope.digest, identity, scope.namespace, scope.recipe.digest)
        return PacketRow(key, *names, 0, listed[key], time.time(), self.url)

    def listed(self, identity: str) -> Mapping[PacketKey, int] | None:
        """Size in bytes of every packet of an identity's digest; None when the remote does not answer."""
        with self._listing:
            listing = self._listings.get(identity)
            if listing is None or time.monotonic() - listing.read > LISTED_S:
                if self._is_silent():
                    return None
                try:
                    found = self._objects.sizes(f"packets/{identity[:16]}")
                    keyed = ((key_of(PurePosixPath(path)), size) for path, size in found if size <= LARGEST)
                    sizes = {key: size for key, size in keyed if key is not None}
                except RemoteError as error:
                    self._failed(error)
                    return None
                listing = self._listings[identity] = _Listing(time.monotonic(), sizes)
            return listing.sizes

    def _forget(self, key: PacketKey, *, distrust: bool = False) -> None:
        with suppress(StoreError), self._index.exclusive():  # as on disk, an index that is full must not fail a reader
            if distrust:
                self._index.distrust(key, self.url)
            self._index.remove(key)

    def _is_silent(self) -> bool:
        if time.monotonic() >= self._silent_until:
            return False
        self._metrics.remote_failures.labels("skipped").inc()
        return True

    def _failed(self, error: RemoteError) -> None:
        self._metrics.remote_failures.labels(error.reason).inc()
        first = time.monotonic() >= self._silent_until  # of several requests at a time
        self._silent_until = time.monotonic() + COOL_DOWN_S
        if first:
            logger.warning("%s failed and is not asked for %g s: %s", self.url, COOL_DOWN_S, error)


def _place(row: PacketRow | Upload) -> str:
    return f"packets/{packet_path(row.identity, row.key)}"
