"""The folder that `kvrag build` makes: packets, and a Chroma collection per namespace."""

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvrag.cli.terminal import note
from kvrag.errors import KVRagError, SettingsError, StoreError
from kvrag.files import replace_file

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding

__all__ = ["StoreFolder", "packet_store_in"]


_UNLIMITED = "unlimited"


@dataclass(frozen=True)
class StoreFolder:
    """Where everything is.

    Attributes:
        root: `packets/`, `chroma/`, `policy`, `disk_bytes` and `build.lock` are below it.
    """

    root: Path

    @property
    def packets(self) -> Path:
        """The packet store."""
        return self.root / "packets"

    @property
    def chroma(self) -> Path:
        """Chroma's own folder."""
        return self.root / "chroma"

    @property
    def policy(self) -> str:
        """When packets are built, as the last build said."""
        kept = self.root / "policy"
        return kept.read_text() if kept.is_file() else "eager"

    def keep_policy(self, name: str) -> None:
        """Have the commands that ask follow this policy."""
        replace_file(self.root / "policy", name.encode())

    def disk_bytes(self, given: str | None) -> int | None:
        """Bytes that packets may take, None for no limit: those of a size such as 20GB, by default those kept.

        Raises:
            SettingsError: it is no size.
        """
        kept = self.root / "disk_bytes"
        size = (kept.read_text() if kept.is_file() else _UNLIMITED) if given is None else given
        if size.strip().lower() == _UNLIMITED:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b|b)?", size.strip().lower())
        nbytes = int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " ")) if found else 0
        if nbytes < 1:
            raise SettingsError(f'expected --disk-bytes such as 500MB, 20GB, 20GiB or "unlimited", found {size!r}')
        return nbytes

    def keep_disk_bytes(self, nbytes: int | None) -> None:
        """Have all commands keep to this budget until they are told another one."""
        replace_file(self.root / "disk_bytes", (_UNLIMITED if nbytes is None else str(nbytes)).encode())

    def create(self) -> None:
        """Make the folder, for its owner alone: it holds the documents' texts.

        Raises:
            StoreError: there is something else, or it cannot be written.
        """
        if _is_packet_store(self.root):
            raise StoreError(
                f"expected a folder for packets and a collection, found the bare packet store {self.root}; "
                "choose another"
            )
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the store {self.root}: {error.strerror}; choose another folder") from error

    def check_built(self) -> None:
        """Refuse a folder in which nothing was built, without making anything.

        Raises:
            StoreError: it is missing or not a store.
        """
        if _is_packet_store(self.root):
            raise StoreError(f"expected a store made by `kvrag build`, found the bare packet store {self.root}")
        if not (_is_packet_store(self.packets) and self.chroma.is_dir()):
            found = "no finished build" if self.root.is_dir() else "a file" if self.root.exists() else "no such folder"
            raise StoreError(
                f"expected a store at {self.root}, found {found}; "
                f"run: kvrag build FOLDER --store {self.root}, or give --store"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One build at a time; the lock ends with its holder, however that ends."""
        with (self.root / "build.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f"waiting for another build on {self.root}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def collection(self, namespace: str) -> str:
        """Name of the namespace's collection; Chroma allows few characters in names."""
        return "kvrag-" + hashlib.sha256(namespace.encode()).hexdigest()[:16]

    def open_index(self, namespace: str, embedding: "BaseEmbedding") -> "VectorStoreIndex":
        """The namespace's collection, made if missing.

        Raises:
            StoreError: Chroma cannot open it.
            MissingExtraError: Chroma or LlamaIndex is not installed.
        """
        from kvrag.demo import retrieval

        try:
            folder = self.chroma.absolute()  # Chroma keeps its clients by path
            return retrieval.open_index(folder, self.collection(namespace), embedding)
        except (KVRagError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Chroma's Rust part is no Exception
            raise StoreError(
                f"Chroma cannot open {self.chroma}: {error}; if it is damaged, move it away and build again "
                "(packets are kept)"
            ) from error


def packet_store_in(root: Path) -> Path:
    """The packet store at `root`: itself, or the one that `kvrag build` made there. Makes nothing.

    Raises:
        StoreError: there is none.
    """
    for folder in (root, root / "packets"):
        if _is_packet_store(folder):
            return folder
    found = "a file" if root.is_file() else "a folder that is no store" if root.exists() else "no such folder"
    raise StoreError(
        f"expected a packet store or a folder made by `kvrag build` at {root}, found {found}; give --store"
    )


def _is_packet_store(folder: Path) -> bool:
    """By its index; by its two folders when the index is lost."""
    return (folder / "index.sqlite").is_file() or all((folder / name).is_dir() for name in ("packets", "quarantine"))
