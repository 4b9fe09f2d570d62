"""Every packet file against its row in the index: what is wrong, and how to set it right."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvrag.errors import CorruptPacketError
from kvrag.store.disk import DiskTier
from kvrag.store.index import Index
from kvrag.store.publishing import TEMPORARY, is_abandoned, key_of, sweep
from kvrag.store.records import PacketRow, Problem, RepairReport
from kvrag.store.remote import RemoteTier

__all__ = ["repair", "verify"]

_MENDED = ("corrupt", "mismatch", "missing", "orphan")


def verify(disk: DiskTier, index: Index, remote: RemoteTier | None, *, deep: bool) -> Iterator[Problem]:
    """What is wrong with a store; `deep` reads every byte. Changes nothing, and may run while others use the store."""
    damage = index.damage()
    if damage is not None:
        yield Problem("index", index.path, damage)
        return
    for row in index.rows():
        problem = _check_row(disk, remote, row, deep)
        if problem is not None:
            yield problem
    for path in disk.files():
        problem = _check_file(disk, index, path, deep)
        if problem is not None:
            yield problem


def repair(disk: DiskTier, index: Index, remote: RemoteTier | None) -> RepairReport:
    """Make files and rows agree; no good packet is lost, bad files are moved into quarantine.

    Raises:
        StoreError: the store cannot be written, or its index comes from a newer kvrag.
        OSError: a file cannot be moved.
    """
    broken = index.set_aside() if index.damage() is not None else None
    done: Counter[str] = Counter()
    for problem in verify(disk, index, remote, deep=True):
        if problem.kind == "temporary":
            done["swept"] += sweep(problem.path)
        elif problem.kind in _MENDED:
            with index.exclusive():
                done[_mend(disk, index, remote, problem)] += 1
    del done[""]
    return RepairReport(**done, broken_index=broken)


def _mend(disk: DiskTier, index: Index, remote: RemoteTier | None, problem: Problem) -> str:
    """Set right what is still wrong now that nobody can put a packet there, and name it as `RepairReport` does."""
    key, path = key_of(problem.path), problem.path
    row = index.row(key) if key else None
    if problem.kind != "orphan":
        deep = problem.kind == "corrupt"
        is_its_row = row is not None and disk.path(row.identity, row.key) == path
        own = row if is_its_row else None
        now = _check_row(disk, remote, own, deep) if own else _check_file(disk, index, path, deep)
        if now is None or now.kind != problem.kind:
            return ""
        if own and not (problem.kind == "corrupt" and own.remote):
            index.remove(own.key)  # its texts too: what led to a wrong row is not to be trusted
    if problem.kind == "missing":
        return "dropped"
    if problem.kind == "corrupt":
        disk.quarantine(path)
        return "quarantined"
    try:
        index.add(disk.check(path, deep=False), ())
        disk.touch(path)  # or it could be swept away before its texts are registered again
    except (CorruptPacketError, FileNotFoundError):  # it has just been taken away, or changed
        return ""
    return "adopted"


def _check_row(disk: DiskTier, remote: RemoteTier | None, row: PacketRow, deep: bool) -> Problem | None:
    path = disk.path(row.identity, row.key)
    try:
        found = disk.check(path, deep=deep)
    except FileNotFoundError:
        if row.remote:
            return _check_remote(disk, remote, row)
        return Problem("missing", path, "the index lists this packet, its file is gone", row.key)
    except CorruptPacketError as error:
        return Problem("corrupt", path, str(error), row.key)
    except OSError as error:
        return Problem("unreadable", path, str(error), row.key)
    if row != found:
        fields = ", ".join(row.differences(found))
        return Problem("mismatch", path, f"the index and the file disagree about {fields}", row.key)
    return None


def _check_remote(disk: DiskTier, remote: RemoteTier | None, row: PacketRow) -> Problem | None:
    """A remote that is not open, or does not answer, may well have the packet."""
    listed = remote.listed(row.identity) if remote is not None and row.remote == remote.url else None
    if listed is None or row.key in listed:
        return None
    path = disk.path(row.identity, row.key)
    return Problem("missing", path, f"{row.remote} had this packet and does not list it any more", row.key)


def _check_file(disk: DiskTier, index: Index, path: Path, deep: bool) -> Problem | None:
    """Only files that no row accounts for and no writer is at work on are problems."""
    key = key_of(path)
    if not is_abandoned(path):
        return None
    if path.suffix == TEMPORARY:
        return Problem("temporary", path, "its writer died before the packet was complete")
    if key is None:
        return Problem("stray", path, "not a file of this store; move it elsewhere")
    row = index.row(key)
    if row is not None and disk.path(row.identity, key) == path:
        return None
    try:
        disk.check(path, deep=deep)
    except FileNotFoundError:
        return None
    except CorruptPacketError as error:
        return Problem("corrupt", path, str(error))
    except OSError as error:
        return Problem("unreadable", path, str(error), key)
    return Problem("orphan", path, "a good packet that is not in the index; its writer died just before", key)
