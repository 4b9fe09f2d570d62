"""The packet store: every chunk's packet in host memory, on disk or on a remote, all of them found by text."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from kvrag.errors import CorruptPacketError, SettingsError, StoreError
from kvrag.matching import TextMatcher, fingerprint
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.store import gc, integrity, usage
from kvrag.store.blocks import pinned
from kvrag.store.budget import DiskBudget
from kvrag.store.claims import Claims
from kvrag.store.connection import CorruptIndexError
from kvrag.store.disk import DiskTier
from kvrag.store.files import PacketFiles, adopt
from kvrag.store.index import Index
from kvrag.store.matchers import Matchers
from kvrag.store.memory import Hold, HostMemory
from kvrag.store.metrics import StoreMetrics
from kvrag.store.objects import Objects
from kvrag.store.records import PacketRow, Problem, RepairReport, StoreStat
from kvrag.store.remote import RemoteTier
from kvrag.store.segments import PacketFile
from kvrag.store.stock import take_stock
from kvrag.store.tiers import Tier
from kvrag.store.uploads import Uploads
from kvrag.store.usage import StoreUsage
from kvrag.store.uses import UseCounts

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["REQUESTS", "PacketStore"]

CLOSE_S = 10.0
REQUESTS = 8
"""To a remote at a time, since most of each is waiting."""

logger = logging.getLogger("kvrag.store")


class PacketStore:
    """Packets in the folder `root`, shared with other threads and other processes, in up to three tiers.

    Host memory, disk and a remote object store are asked in this order, and what is found is kept in the faster ones.
    What is put is durable on disk first and uploaded in the background. Nothing that is returned is unchecked: a packet
    whose bytes are not what was written is moved into quarantine (on disk) or distrusted (on the remote), counted and
    logged, and is a miss if no other tier has it. Texts of one scope are invisible in every other.

    Args:
        root: folder of the store, created if need be.
        memory_bytes: host memory for packets in use.
        disk_bytes: disk for packets; None for no limit. The least used make room; those that are held, or that the
            remote does not have yet, stay. Without a remote the store is a cache then: what makes room is gone, and
            its text is computed until its packet is built again.
        remote: where packets are shared with other machines: a URL such as `s3://bucket/prefix`, `gs://...`, `az://...`
            or `file:///...`, or a store object of obstore. Needs the extra `remote`. Do not fork with a remote open.
        remote_options: for obstore, such as `endpoint` and `region`; credentials come from the environment by default.
        remote_timeout: seconds that a request to the remote may take. Retries included, an answer waits for a remote
            twice that at most, and after a failure not at all for half a minute.

    Attributes:
        metrics: what is counted, for a Prometheus registry.
        uses: of packets by prompts, as far as somebody counts them.

    Raises:
        StoreError: the folder cannot be used, its index comes from a newer kvrag, or obstore is not installed. A
            damaged index is logged here and raised by the first use, so that `repair` can be called.
        SettingsError: the remote cannot be what it says, or a budget is negative.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        memory_bytes: int = 2 << 30,
        disk_bytes: int | None = None,
        remote: "str | ObjectStore | None" = None,
        remote_options: Mapping[str, Any] | None = None,
        remote_timeout: float = 5.0,
    ):
        if memory_bytes < 0 or (disk_bytes or 0) < 0:
            raise SettingsError(f"expected budgets of 0 bytes or more, found {memory_bytes} and {disk_bytes}")
        self.root = Path(root).absolute()
        self.uses = UseCounts(self.root / "uses.sqlite")
        self.metrics = metrics = StoreMetrics()
        objects = None if remote is None else Objects(remote, remote_options, remote_timeout)
        self._index = index = Index(self.root / "index.sqlite")
        self._memory = HostMemory(memory_bytes, metrics)
        self._budget = budget = DiskBudget(
            self.root / "packets",
            disk_bytes,
            index=index,
            memory=self._memory,
            metrics=metrics,
            uses=self.uses,
            remote=objects.name if objects else None,
        )
        self._disk = DiskTier(self.root, index, metrics, budget)
        self._remote = RemoteTier(objects, self._disk, index, metrics) if objects else None
        self._uploads = Uploads(self._remote, index, budget, metrics) if self._remote else None
        self._tiers: list[Tier] = [tier for tier in (self._memory, self._disk, self._remote) if tier is not None]
        self._matchers = Matchers(index)
        self._claims = Claims(self._memory)
        try:
            index.open()
        except CorruptIndexError as error:
            logger.error("%s", error)
        budget.enforce()
        if self._uploads is not None:
            self._uploads.resume()

    def put(self, packet: Packet, texts: Iterable[str]) -> None:
        """Keep a packet and the texts that lead to it; durable on return. A packet that is there only gains texts.

        With a remote it is uploaded in the background; `flush` waits for that.

        Args:
            packet: what to keep; on any device.
            texts: looked up without the white space around them; those under 32 characters are skipped.

        Raises:
            StoreError: the packet contradicts itself, or the disk is full or cannot be written; nothing was lost.
        """
        found = [known for known in map(fingerprint, texts) if known]
        if self._disk.put(packet, found) and self._uploads is not None:
            self._uploads.add(packet.key)

    def get(self, key: PacketKey) -> Packet | None:
        """The packet, from the fastest tier that has it; None when it is not there or not intact."""
        packet = self._memory.get(key)
        if packet is not None:
            self.metrics.hits.labels(self._memory.name).inc()
            return packet
        return self._load(key)

    def has(self, key: PacketKey, scope: Scope | None = None) -> bool:
        """Whether the packet is there, without reading it.

        Args:
            key: of the packet.
            scope: its own. With it the remote is asked for what this store has never seen: one listing of all that the
                remote has of the scope's identity, remembered for a minute.
        """
        if self.tier_of(key):
            return True
        if scope is None or self._remote is None or self._index.row(key) is not None:
            return False
        return self._remote.offered(scope, key) is not None

    def tier_of(self, key: PacketKey) -> str | None:
        """Where `read` would find the packet, as far as is known: "disk" or "remote"; None when it is nowhere."""
        return next((tier.name for tier in self._tiers[1:] if tier.has(key)), None)

    def register(self, scope: Scope, text: str, key: PacketKey) -> None:
        """Let one more text lead to a packet; nothing happens for a text under 32 characters.

        Raises:
            StoreError: the scope has no such packet, here or on the remote.
        """
        found = fingerprint(text)
        self._disk.touch(self._disk.path(scope.identity.digest, key))
        if found is None or self._index.add_texts(scope.digest, key, [found]):
            return
        row = None
        if self._remote is not None and self._index.row(key) is None:
            row = self._remote.offered(scope, key)
        if row is None:
            raise StoreError(f"expected packet {key} in this scope, found none: put it before registering its texts")
        self._index.add(row, [found])

    def expect(self, scope: Scope, texts: Iterable[tuple[str, PacketKey]]) -> None:
        """Make texts known that lead to packets which do not exist yet; those under 32 characters are skipped.

        A matcher finds them, and their packets are missing until somebody puts them.

        Raises:
            StoreError: the store cannot be written.
        """
        found = [(known, key) for text, key in texts if (known := fingerprint(text))]
        self._index.expect(scope.digest, found)

    def has_room(self, key: PacketKey, nbytes: int) -> bool:
        """Whether a packet of so many bytes can be kept without taking room from one that prompts use more.

        Raises:
            StoreError: uses are not known.
        """
        return self._budget.has_room(key, nbytes)

    @property
    def room(self) -> int | None:
        """Bytes of packets that can be kept for good: the budget of the disk; None without one, or with a remote."""
        return self._disk.capacity if self._remote is None else None

    def find(self, scope: Scope, digest: bytes) -> PacketKey | None:
        """The packet that the text with this sha256 leads to within a scope."""
        return self._index.find(scope.digest, digest)

    def matcher(self, scope: Scope) -> TextMatcher:
        """The matcher of a scope's texts, up to date with the commits of every process.

        A text removed since may still be proposed: give `find` to it as `confirm`.
        """
        return self._matchers.of(scope)

    def hold(self, keys: Iterable[PacketKey]) -> Hold:
        """Load packets and keep them in host memory until the hold is released; those that are missing are left out."""
        wanted = dict.fromkeys(keys)
        if self._remote is None:
            packets = [self.get(key) for key in wanted]
        else:
            with ThreadPoolExecutor(REQUESTS, thread_name_prefix="kvrag-hold") as pool:
                packets = list(pool.map(self.get, wanted))
        return self._memory.hold([packet for packet in packets if packet is not None])

    def pin_memory(self) -> None:
        """Read packets into memory that a GPU can copy from by itself, from now on."""
        self._disk.allocate = pinned

    def keep_encoded(self) -> None:
        """Leave packets in their codec's bytes where kernels read those, from now on: `int8` and `fp8`."""
        self._disk.encoded = True

    def row(self, key: PacketKey) -> PacketRow | None:
        """What the index says about a packet, without its texts."""
        return self._index.row(key)

    def open(self, key: PacketKey, **options: Any) -> PacketFile | None:
        """The packet's file, to be read in parts; None when this disk has none.

        Args:
            key: of the packet.
            options: `read` and `cancelled` of `PacketFile`.

        Raises:
            CorruptPacketError: it is not what was written; tell `dismiss`.
            OSError: it cannot be read; tell `dismiss`.
        """
        row = self._index.row(key)
        path = None if row is None else self._disk.path(row.identity, key)
        if path is None or not path.exists():
            return None
        return PacketFile(path, key=key, allocate=self._disk.allocate, encoded=self._disk.encoded, **options)

    def dismiss(self, key: PacketKey, error: CorruptPacketError | OSError) -> None:
        """Act on an error of reading: what is not intact goes into quarantine, what is gone is forgotten."""
        row = self._index.row(key)
        if row is not None:
            self._disk.dismiss(row, error)

    def claim(self, key: PacketKey) -> tuple[Future[Packet | None], bool]:
        """A packet on its way into host memory, and whether the caller has to bring it there: he ends with `settle`."""
        return self._claims.claim(key)

    def settle(self, key: PacketKey, packet: Packet | None) -> Packet | None:
        """End a claim: keep the packet in host memory, and give it to all who wait; None is a miss."""
        return self._claims.settle(key, packet)

    def count(self, *, memory: int = 0, disk: int = 0, misses: int = 0) -> None:
        """Add to what `metrics` says about packets asked for by `claim` that did not come through `read`."""
        self.metrics.hits.labels("memory").inc(memory)
        self.metrics.hits.labels("disk").inc(disk)
        self.metrics.misses.inc(misses)

    def remove(self, key: PacketKey) -> bool:
        """Delete a packet from every tier and forget its texts; False when there was none.

        Raises:
            StoreError: the remote does not let go of it; nothing was deleted then.
        """
        known = self._index.row(key) is not None
        for tier in reversed(self._tiers):  # the row goes with the file, so nothing is left that nobody knows of
            tier.discard(key)
        self.uses.forget([key])
        return known

    def export(self, key: PacketKey) -> bytes | None:
        """The packet's file as it is on disk, every byte checked; None when it is not there or not intact."""
        row = self._index.row(key)
        if row is None or self.read(key) is None:
            return None
        with suppress(FileNotFoundError):  # it has just made room
            return self._disk.path(row.identity, key).read_bytes()

    def adopt(self, data: bytes, namespace: str = "default", key: PacketKey | None = None) -> PacketKey:
        """Keep a packet file that another store has exported, durably; it is found in prompts once texts lead to it.

        Args:
            data: the file; of a packet that is there already, nothing is kept.
            namespace: the packet's.
            key: the packet's, if it is known.

        Raises:
            CorruptPacketError: it is not a packet file, or not intact.
            StoreError: it is another packet than expected, or the disk is full or cannot be written.
        """
        row, is_new = adopt(self._disk, self._index, data, namespace, key)
        if is_new and self._uploads is not None:
            self._uploads.add(row.key)
        return row.key

    def files(self, namespace: str = "default") -> PacketFiles:
        """A namespace's packets as files under names."""
        return PacketFiles(self, self._index, namespace)

    def flush(self, timeout: float | None = None) -> int:
        """Upload what the remote does not have, now; the number of packets that could not be uploaded.

        Args:
            timeout: seconds to wait at most.
        """
        return 0 if self._uploads is None else self._uploads.flush(timeout)

    def ls(self) -> Iterator[PacketRow]:
        """All packets, by key."""
        return self._index.rows()

    def stat(self) -> StoreStat:
        """Size of the store, and what this process has asked of it."""
        return take_stock(self._index, self._tiers, self._remote, self.metrics)

    def verify(self, *, deep: bool = True) -> Iterator[Problem]:
        """Compare every file with its row, reading every byte if `deep`; changes nothing.

        A packet that only a remote has is no problem, unless that remote is open and does not list it.
        """
        return integrity.verify(self._disk, self._index, self._remote, deep=deep)

    def repair(self) -> RepairReport:
        """Make files and index agree again: adopt good files, quarantine bad ones, drop rows without files.

        Adopted packets are found by key only, until whoever knows their texts registers them again.
        """
        report = integrity.repair(self._disk, self._index, self._remote)
        if self._uploads is not None:
            self._uploads.resume()
        return report

    def gc(self, texts: Iterable[str] | None, **options: Unpack[gc.GcOptions]) -> gc.GcReport:
        """Remove packets that no text in use leads to; options, result and errors: see `kvrag.store.gc.collect`.

        Safe while others build and answer, as long as no build takes longer than the grace period between asking for a
        packet and making its text one of those in use. What a remote has stays there, since other machines may use it,
        unless `uploads` says that what this store has uploaded may go.
        """
        report = gc.collect(self._disk, self._index, self._remote, texts, **options)
        gone = [] if report.dry_run else [row.key for row in report.removed]
        for key in gone:
            self._memory.discard(key)
        self.uses.forget(gone)
        if self._uploads is not None and report.withdrawn:
            self._uploads.resume()  # what was put again meanwhile
        return report

    def usage(self) -> StoreUsage:
        """Where the bytes on disk are."""
        return usage.measure(self._disk, self._index)

    def close(self, timeout: float = CLOSE_S) -> None:
        """Let go of the index; packets handed out stay valid.

        Args:
            timeout: seconds to wait for uploads at most; opening the store again goes on with the rest.
        """
        if self._uploads is not None:
            self._uploads.close(timeout)
        self._index.close()
        self.uses.close()

    def __enter__(self) -> "PacketStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(CLOSE_S if kind is None else 0)  # who is interrupted does not want to wait

    def __repr__(self) -> str:
        return f"PacketStore({str(self.root)!r})"

    def read(self, key: PacketKey) -> Packet | None:
        """The packet from disk or the remote, for one who has claimed it; None when it is not there or not intact."""
        for tier in self._tiers[1:]:
            begin = time.perf_counter()
            packet = tier.get(key)
            if packet is not None:
                self.metrics.load_seconds.labels(tier.name).observe(time.perf_counter() - begin)
                self.metrics.hits.labels(tier.name).inc()
                return packet
        return None

    def _load(self, key: PacketKey) -> Packet | None:
        """Read a packet once, however many threads ask for it meanwhile."""
        pending, mine = self.claim(key)
        if not mine:
            return pending.result()
        packet: Packet | None = None
        try:
            packet = self.read(key)
            self.metrics.misses.inc(packet is None)
        finally:
            self.settle(key, packet)
        return packet
