"""The cache folder, and folders in it that are made once and checked at every use."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from kvrag.errors import ModelError

__all__ = ["cache_folder", "cached_folder"]

_MARK = "kvrag.json"
_FORMAT = 1


def cache_folder() -> Path:
    """Where kvrag keeps what can be made again: `$KVRAG_CACHE`, or `kvrag` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvrag"
    return Path(os.environ.get("KVRAG_CACHE") or default)


def cached_folder(name: str, source: Sequence[str | int], make: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache, made if it is missing, damaged, or made from something else.

    It is either whole or not there; processes that want it at once wait for the one that makes it.

    Args:
        name: of the folder.
        source: what tells apart that from which it is made.
        make: writes files into the empty folder it is given.

    Raises:
        ModelError: the cache folder cannot be written.
    """
    cache = cache_folder()
    folder = cache / name
    if _is_whole(folder, source):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{name}.lock"):
            if not _is_whole(folder, source):  # another process may have made it meanwhile
                _make(folder, source, make)
    except OSError as error:
        raise ModelError(
            f"expected to write {name} into {cache}, found: {error}; free some space (the demo's models take 540 MB) "
            "or set KVRAG_CACHE to another folder"
        ) from error
    return folder


def _make(folder: Path, source: Sequence[str | int], make: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as made:
        make(Path(made))
        mark = {"format": _FORMAT, "source": list(source), "checksums": _checksums(Path(made))}
        (Path(made) / _MARK).write_text(json.dumps(mark, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        for path in Path(made).iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(made, folder)
        os.mkdir(made)  # so that the temporary folder can be removed


def _is_whole(folder: Path, source: Sequence[str | int]) -> bool:
    """Whether the folder was made from this very source and is as it was made, byte for byte."""
    try:
        mark = json.loads((folder / _MARK).read_text())
        same = mark["format"] == _FORMAT and mark["source"] == list(source)
        return same and mark["checksums"] == _checksums(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _MARK)
    return {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in files}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its holder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
