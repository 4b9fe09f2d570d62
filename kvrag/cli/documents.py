"""Files of a folder to LlamaIndex documents."""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index.core.schema import Document

__all__ = ["FoundFiles", "Skipped", "UnreadableError", "find_files", "read_documents"]

TEXT = frozenset({".markdown", ".md", ".rst", ".text", ".txt"})
HTML = frozenset({".htm", ".html", ".xhtml"})
PDF = frozenset({".pdf"})


class UnreadableError(Exception):
    """A file yields no text; the message says why."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, and why.

    Attributes:
        unsupported: it is of a kind that is never read; otherwise it may be readable the next time.
    """

    path: Path
    reason: str
    unsupported: bool = False


@dataclass
class FoundFiles:
    """What lies in a folder.

    Attributes:
        files: to be read.
        skipped: not to be read.
        hidden: number of files and folders left out because their name begins with a dot.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    hidden: int = 0


def find_files(folder: Path, *, leave_out: Path) -> FoundFiles:
    """Every file below `folder`, sorted by path; links to folders are not followed.

    Args:
        folder: to search.
        leave_out: a folder that is never entered: the store.
    """
    found = FoundFiles()

    def cannot_enter(error: OSError) -> None:
        found.skipped.append(Skipped(Path(error.filename), error.strerror or str(error)))

    for place, folders, names in os.walk(folder, onerror=cannot_enter):
        found.hidden += sum(name.startswith(".") for name in [*folders, *names])
        below = sorted(Path(place, name) for name in folders if not name.startswith("."))
        links = [path for path in below if path.is_symlink()]
        found.skipped += [Skipped(path, "a link to a folder", unsupported=True) for path in links]
        folders[:] = [path.name for path in below if path not in links and path.resolve() != leave_out.resolve()]
        _sort_out((Path(place, name) for name in sorted(names) if not name.startswith(".")), found)
    return found


def read_documents(path: Path, shown: str) -> "list[Document]":
    """The documents in a file: one, or a PDF's pages.

    Args:
        path: of the file.
        shown: its name for the language model, in the documents' metadata.

    Raises:
        UnreadableError: there is no text to be had.
        ImportError: LlamaIndex or its file readers are not installed.
    """
    from llama_index.core import SimpleDirectoryReader
    from llama_index.core.readers.base import BaseReader
    from llama_index.readers.file import PDFReader

    from kvrag.cli.web_page import WebPageReader

    readers: dict[str, BaseReader] = {".pdf": PDFReader(), **dict.fromkeys(HTML, WebPageReader())}
    try:
        documents = SimpleDirectoryReader(
            input_files=[path],
            encoding="utf-8-sig",
            errors="strict",  # the default drops what it cannot decode
            file_extractor=readers,
            file_metadata=lambda _: {"file_path": shown},
            raise_on_error=True,
        ).load_data()
    except ImportError:
        raise
    except Exception as error:
        raise UnreadableError(_reason(error)) from error
    for document in documents:
        document.set_content(document.text.encode("utf-8", "replace").decode())  # PDFs may yield lone surrogates
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UnreadableError("there is no text in it")
    return documents


def _sort_out(paths: Iterable[Path], found: FoundFiles) -> None:
    for path in paths:
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            found.skipped.append(Skipped(path, error.strerror or str(error)))
            continue
        if not regular:
            found.skipped.append(Skipped(path, "not a regular file", unsupported=True))
        elif path.suffix.lower() not in TEXT | HTML | PDF:
            found.skipped.append(Skipped(path, "not text, Markdown, HTML or PDF by its name", unsupported=True))
        else:
            found.files.append(path)


def _reason(error: BaseException) -> str:
    """What went wrong first; readers wrap it in retries and in a general error."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
