"""SQLite connections to an index that other threads, other processes and `repair` use at the same time."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from kvrag.errors import StoreError
from kvrag.store.schema import migrate

__all__ = ["Connection", "CorruptIndexError", "locked_folder"]

BUSY_S = 60.0
CACHE_KIB = 512  # the system caches the file anyway
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # the last: a table is missing


class CorruptIndexError(StoreError):
    """The index cannot be read as what it is."""


class Connection:
    """One connection behind a lock; opened on first use, and again after a fork or when the file was replaced.

    Attributes:
        opened: how many times it was opened; `PRAGMA data_version` compares only within one of them.
    """

    def __init__(self, path: Path):
        self.opened = 0
        self._path = path
        self._lock = threading.RLock()
        self._file: tuple[int, int, int] | None = None
        self._sqlite: sqlite3.Connection | None = None
        self._inherited: list[sqlite3.Connection] = []
        self._closed = False
        self._use = _Use(self)

    def use(self) -> AbstractContextManager[sqlite3.Connection]:
        """The connection, for this thread alone.

        Raises:
            StoreError: the index cannot be opened or written, or is damaged.
        """
        return self._use

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection inside one write transaction, durable when the outermost block of this thread has ended.

        Raises:
            StoreError: see `use`; nothing was changed then.
        """
        with self.use() as sqlite:
            if sqlite.in_transaction:
                yield sqlite
                return
            sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield sqlite
                sqlite.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    sqlite.execute("ROLLBACK")
                raise

    def disconnect(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            if self._sqlite is not None and self._file is not None:
                if self._file[0] == os.getpid():
                    self._sqlite.close()
                else:
                    self._inherited.append(self._sqlite)  # SQLite forbids to close what was opened before a fork
            self._sqlite = self._file = None

    def close(self) -> None:
        """Let go of the file for good."""
        with self._lock:
            self.disconnect()
            self._closed = True

    def _current(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError(f"the packet store at {self._path.parent} is closed; open it again")
        if self._sqlite is None or self._file != _file(self._path):
            self._reopen()
        assert self._sqlite is not None
        return self._sqlite

    def _reopen(self) -> None:
        self.disconnect()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the whole store may have been deleted
        with locked_folder(self._path.parent):
            with suppress(FileExistsError):  # SQLite would create it readable for everybody
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
            sqlite = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                migrate(sqlite, self._path)
                sqlite.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            except BaseException:
                sqlite.close()
                raise
            self._sqlite, self._file = sqlite, _file(self._path)
            self.opened += 1


class _Use:
    """What `with` enters for every look at the index; a generator would take as long as SQLite does."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection._lock.acquire()
        try:
            return self._connection._current()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection._lock.release()
        if isinstance(error, sqlite3.Error | OSError):
            raise _explained(self._connection._path, error) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes from opening or replacing the index meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _file(path: Path) -> tuple[int, int, int] | None:
    """Who looks at which file: a forked child and a replaced file both need a connection of their own."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return os.getpid(), status.st_dev, status.st_ino


def _explained(path: Path, error: Exception) -> StoreError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
        return CorruptIndexError(
            f"the packet index {path} is damaged ({error}); run `kvrag store repair` to rebuild it from the packets"
        )
    return StoreError(f"the packet index {path} cannot be used: {error}; check the disk and its permissions")
