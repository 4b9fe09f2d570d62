"""Taking away packets that no text in use leads to: mark the texts, sweep the packets.

What is in use is for the caller to say; a packet lives as long as one of those texts leads to it in its scope, or as an
application calls it by a name (`PacketFiles`), which is for that application to take away. Whoever builds meanwhile is
protected twice: a packet that was put or relied upon within the grace period stays, and so does one that has gained a
text since the marking began. Both are looked at again inside the transaction that removes it.

Other machines may use what a remote has, and nobody here knows their texts. So objects go only on request, and only
those that this store has uploaded itself and has no packet for any more; the index remembers which these are.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from kvrag.errors import StoreError
from kvrag.matching import HEAD_CHARS, fingerprint
from kvrag.store.disk import DiskTier
from kvrag.store.index import Index, Leads
from kvrag.store.publishing import SUFFIX
from kvrag.store.records import PacketRow, Upload
from kvrag.store.remote import RemoteTier

__all__ = ["DAY", "GcOptions", "GcReport", "collect"]

DAY = 86400.0
"""Seconds."""

FAILURES = 3  # after which a remote is asked no more

logger = logging.getLogger("kvrag.store")


class GcOptions(TypedDict, total=False):
    """Keyword arguments of `collect`."""

    grace: float
    namespace: str | None
    identities: Collection[str]
    quarantined: float | None
    uploads: bool
    dry_run: bool


@dataclass(frozen=True)
class GcReport:
    """What a garbage collection did, or would do.

    Attributes:
        marked: different texts in use, those under 32 characters left out.
        packets: looked at.
        alive: of these, that a text in use leads to, or a name.
        young: of these, that nothing leads to but that are within the grace period.
        removed: rows of those that went, or would go.
        emptied: files deleted from quarantine, or that would be.
        emptied_bytes: their size.
        withdrawn: objects deleted from the remote, or that would be.
        kept_back: objects that the remote did not let go of; another collection tries again.
        dry_run: whether all of them are still there.
    """

    marked: int
    packets: int
    alive: int
    young: int
    removed: tuple[PacketRow, ...]
    emptied: tuple[Path, ...]
    emptied_bytes: int
    withdrawn: tuple[Upload, ...]
    kept_back: int
    dry_run: bool

    @property
    def bytes(self) -> int:
        """Size of the removed packets' files."""
        return sum(row.bytes for row in self.removed)


def collect(
    disk: DiskTier,
    index: Index,
    remote: RemoteTier | None,
    texts: Iterable[str] | None,
    *,
    grace: float = DAY,
    namespace: str | None = None,
    identities: Collection[str] = (),
    quarantined: float | None = None,
    uploads: bool = False,
    dry_run: bool = False,
) -> GcReport:
    """Remove packets that no text in use leads to and those of given identities, and empty the quarantine.

    Args:
        disk: of the store.
        index: of the store.
        remote: of the store, if one is open.
        texts: in use, read once; of each its sha256 is kept. None when no packet is to go for want of one.
        grace: seconds for which a packet stays after it was put or a build relied upon it last. Times that lie in the
            future are within it.
        namespace: only this namespace's packets; by default all.
        identities: digests of identities that are superseded; their packets go whatever leads to them.
        quarantined: seconds after which files in quarantine are deleted; None keeps them.
        uploads: delete from the remote too what this store has uploaded, the grace period ago or longer, and has no
            packet for after this.
        dry_run: remove nothing.

    Raises:
        StoreError: nothing says what is in use, or it is nothing; or no remote is open to delete uploads from; or the
            store cannot be written.
        OSError: a folder of the store cannot be read.
    """
    if texts is None and not identities and quarantined is None:
        raise StoreError("expected the texts in use or an identity to remove, found neither; nothing was removed")
    for seconds in (grace, quarantined or 0):
        if not seconds >= 0:
            raise StoreError(f"expected a time of 0 seconds or more to keep things for, found {seconds}")
    if uploads and remote is None:
        raise StoreError("expected a store with a remote to delete uploads from, found none; nothing was removed")
    newest = index.last_text()  # before the first text is read: what is registered from now on stays
    marked = None if texts is None else {known.digest for known in map(fingerprint, texts) if known}
    if marked is not None and not marked:
        raise StoreError(
            f"expected texts in use of at least {HEAD_CHARS} characters, found none; nothing was removed. "
            "Is it the right source? A store that is to be emptied can be deleted as a folder"
        )
    sweep = _Sweep(disk, marked, newest, grace, namespace, frozenset(identities))
    counts: Counter[str] = Counter()
    removed: list[PacketRow] = []
    for _, rows in groupby(index.rows(), key=lambda row: row.key[:2]):
        dead: list[PacketRow] = []
        for row in rows:
            verdict = sweep.verdict(*index.with_leads(row.key))
            counts[verdict] += 1
            if verdict == "dead":
                dead.append(row)
        removed += dead if dry_run else _remove(disk, index, dead, sweep)
    packets = counts["alive"] + counts["young"] + counts["dead"]
    withdrawn, kept_back = _withdraw(index, remote, sweep, removed, dry_run) if remote and uploads else ([], 0)
    emptied = _empty_quarantine(disk, quarantined, dry_run) if quarantined is not None else {}
    return GcReport(
        marked=len(marked or ()),
        packets=packets,
        alive=counts["alive"],
        young=counts["young"],
        removed=tuple(removed),
        emptied=tuple(emptied),
        emptied_bytes=sum(emptied.values()),
        withdrawn=tuple(withdrawn),
        kept_back=kept_back,
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class _Sweep:
    disk: DiskTier
    marked: set[bytes] | None
    newest: int
    grace: float
    namespace: str | None
    identities: frozenset[str]

    def verdict(self, row: PacketRow | None, leads: Leads) -> str:
        """What a packet is: "dead", "young", "alive", or "other" when it is none of this sweep's."""
        if row is None or self.namespace not in (None, row.namespace):
            return "other"
        if row.identity not in self.identities:
            if self.marked is None:
                return "other"
            if leads.named or any(number > self.newest or digest in self.marked for number, digest in leads.texts):
                return "alive"
        return "dead" if self.grace <= time.time() - self._used(row) else "young"

    def condemns(self, upload: Upload) -> bool:
        """Whether an object may go whose packet is not here any more."""
        if (
            self.namespace not in (None, upload.namespace)
            or self.marked is None
            and upload.identity not in self.identities
        ):
            return False
        return self.grace <= time.time() - upload.at

    def _used(self, row: PacketRow) -> float:
        """When a packet was put, or a build relied upon it last."""
        with suppress(FileNotFoundError):
            return max(row.created, self.disk.path(row.identity, row.key).stat().st_mtime)
        return row.created


def _remove(disk: DiskTier, index: Index, dead: list[PacketRow], sweep: _Sweep) -> list[PacketRow]:
    """Remove packets that are still dead; return their rows."""
    with index.exclusive():
        removed = index.remove_if([row.key for row in dead], lambda row, leads: sweep.verdict(row, leads) == "dead")
        for row in removed:
            disk.path(row.identity, row.key).unlink(missing_ok=True)
    return removed


def _withdraw(
    index: Index, remote: RemoteTier, sweep: _Sweep, removed: list[PacketRow], dry_run: bool
) -> tuple[list[Upload], int]:
    """Delete objects of packets that are gone; which ones, and how many the remote did not let go of.

    An object is deleted before the index forgets it, so that a collection that is killed is completed by the next one.
    Whoever puts its packet meanwhile has it uploaded again, since the index says then that the remote lacks it.
    """
    gone, withdrawn, failed = {row.key for row in removed}, [], 0
    for upload in filter(sweep.condemns, index.uploads(remote.url)):
        if (dry_run and upload.key in gone) or index.row(upload.key) is None:
            try:
                if not dry_run:
                    remote.delete(upload)
                withdrawn.append(upload)
            except StoreError as error:
                failed += 1
                logger.warning("%s", error)
                if failed == FAILURES:
                    break
    return withdrawn, failed


def _empty_quarantine(disk: DiskTier, age: float, dry_run: bool) -> dict[Path, int]:
    """Delete what has been in quarantine for so many seconds; the files and their bytes."""
    found: dict[Path, int] = {}
    for path in sorted(disk.quarantined.glob("*")):
        with suppress(FileNotFoundError):
            status = os.lstat(path)
            moved = max(status.st_mtime, status.st_ctime)  # a rename is the last change of a file's status
            if path.suffix == SUFFIX and age <= time.time() - moved:
                if not dry_run:
                    path.unlink()
                found[path] = status.st_size
    return found
