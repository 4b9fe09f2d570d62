"""Every packet file against its row in the index: what is wrong, and how to set it right."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvrag.errors import CorruptPacketError
from kvrag.store.disk import TEMPORARY, DiskTier, is_abandoned, key_of, sweep
from kvrag.store.index import Index
from kvrag.store.records import PacketRow, Problem, RepairReport

__all__ = ["give_up", "repair", "verify"]

_MENDED = ("corrupt", "mismatch", "missing", "orphan")


def verify(disk: DiskTier, index: Index, *, deep: bool) -> Iterator[Problem]:
    """What is wrong with a store; `deep` reads every byte. Changes nothing, and may run while others use the store."""
    damage = index.damage()
    if damage is not None:
        yield Problem("index", index.path, damage)
        return
    for row in index.rows():
        problem = _check_row(disk, row, deep)
        if problem is not None:
            yield problem
    for path in disk.files():
        problem = _check_file(disk, index, path, deep)
        if problem is not None:
            yield problem


def repair(disk: DiskTier, index: Index) -> RepairReport:
    """Make files and rows agree; no good packet is lost, bad files are moved into quarantine.

    Raises:
        StoreError: the store cannot be written, or its index comes from a newer kvrag.
        OSError: a file cannot be moved.
    """
    broken = index.set_aside() if index.damage() is not None else None
    done: Counter[str] = Counter()
    for problem in verify(disk, index, deep=True):
        if problem.kind == "temporary":
            done["swept"] += sweep(problem.path)
        elif problem.kind in _MENDED:
            with disk.taking_away(problem.path):
                done[_mend(disk, index, problem)] += 1
    del done[""]
    return RepairReport(**done, broken_index=broken)


def give_up(disk: DiskTier, index: Index, row: PacketRow) -> None:
    """Forget a packet whose file is bad or gone, and move the file aside, unless somebody has put it again meanwhile.

    Raises:
        StoreError: the index cannot be written.
        OSError: the file cannot be read or moved.
    """
    path = disk.path(row.identity, row.key)
    with disk.taking_away(path):
        problem = _check_row(disk, row, deep=True)
        if problem is not None and problem.kind in ("corrupt", "missing"):
            disk.quarantine(path)
            index.remove(row.key)


def _mend(disk: DiskTier, index: Index, problem: Problem) -> str:
    """Set right what is still wrong now that nobody can put a packet there, and name it as `RepairReport` does."""
    key, path = key_of(problem.path), problem.path
    row = index.row(key) if key else None
    if problem.kind != "orphan":
        deep = problem.kind == "corrupt"
        is_its_row = row is not None and disk.path(row.identity, row.key) == path
        now = _check_row(disk, row, deep) if row and is_its_row else _check_file(disk, index, path, deep)
        if now is None or now.kind != problem.kind:
            return ""
        if row and is_its_row:
            index.remove(row.key)  # its texts too: what led to a wrong row is not to be trusted
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


def _check_row(disk: DiskTier, row: PacketRow, deep: bool) -> Problem | None:
    path = disk.path(row.identity, row.key)
    try:
        found = disk.check(path, deep=deep)
    except FileNotFoundError:
        return Problem("missing", path, "the index lists this packet, its file is gone", row.key)
    except CorruptPacketError as error:
        return Problem("corrupt", path, str(error), row.key)
    except OSError as error:
        return Problem("unreadable", path, str(error), row.key)
    if row != found:
        fields = ", ".join(row.differences(found))
        return Problem("mismatch", path, f"the index and the file disagree about {fields}", row.key)
    return None


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
