"""The texts that an application still uses, from wherever it keeps them.

Every source is read to its end or raises: what cannot be read must never count as unused.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrag.errors import KVRagError, StoreError

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode

__all__ = ["in_chroma", "in_docstore", "in_files"]

_PAGE = 500


def in_chroma(place: Path | str, names: Sequence[str] = ()) -> Iterator[str]:
    """The documents of Chroma's collections, as they are and as the LLM sees them where LlamaIndex wrote them.

    Args:
        place: folder that Chroma keeps its `chroma.sqlite3` in, or the `http://` or `https://` URL of a Chroma server;
            only the default tenant and database are read.
        names: of collections; none means all.

    Raises:
        StoreError: the folder, server or one of the collections is missing or cannot be read, or no text is in them.
        MissingExtraError: Chroma is not installed.
    """
    if not str(place).startswith(("http://", "https://")):
        place = Path(place)
        if not (place / "chroma.sqlite3").is_file():  # Chroma would make an empty one
            raise StoreError(f"expected a persistent Chroma folder at {place}, found no chroma.sqlite3 there")
    with _explained(f"Chroma at {place}"):
        from kvrag.demo.retrieval import open_collections

        collections = open_collections(place, names)
        yield from _some(place, (text for collection in collections for text in _in_collection(collection)))


def in_docstore(file: Path) -> Iterator[str]:
    """The nodes of a LlamaIndex SimpleDocumentStore's JSON file, as they are and as the LLM sees them.

    Raises:
        StoreError: the file cannot be read, or no text is in it.
    """
    with _explained(f"the document store {file}"):
        from llama_index.core.storage.docstore import SimpleDocumentStore

        nodes = SimpleDocumentStore.from_persist_path(str(file)).docs.values()
        yield from _some(file, (text for node in nodes for text in _of_node(node)))


def in_files(place: Path) -> Iterator[str]:
    """The texts of a file that has a JSON string on every line, or of a folder in which every file is a text.

    Files of a folder are read as UTF-8, those below other folders in it too.

    Raises:
        StoreError: something cannot be read, or no text is in it.
    """
    with _explained(str(place)):
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if not path.is_dir())
            yield from _some(place, (path.read_bytes().decode() for path in files))
        else:
            yield from _some(place, _in_lines(place))


def _in_lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = json.loads(line) if line.strip() else ""
            if not isinstance(text, str):
                raise StoreError(f"expected a JSON string on line {number} of {file}, found {line.strip()[:40]}")
            yield text


def _in_collection(collection: Any) -> Iterator[str]:
    """By ids that were read at once: a page by number misses entries when others are deleted before it."""
    from llama_index.core.vector_stores.utils import metadata_dict_to_node

    ids = collection.get(include=[])["ids"]
    for first in range(0, len(ids), _PAGE):
        page = collection.get(ids=ids[first : first + _PAGE], include=["documents", "metadatas"])
        for document, metadata in zip(page["documents"], page["metadatas"], strict=True):
            if document is not None:
                yield document
            if metadata and "_node_content" in metadata:
                yield from _of_node(metadata_dict_to_node(metadata, document))


def _of_node(node: "BaseNode") -> Iterator[str]:
    from llama_index.core.schema import MetadataMode

    yield node.get_content(metadata_mode=MetadataMode.NONE)
    yield node.get_content(metadata_mode=MetadataMode.LLM)


def _some(place: Path | str, texts: Iterable[str]) -> Iterator[str]:
    """The texts, of which there has to be at least one."""
    found = False
    for text in texts:
        found = found or bool(text.strip())
        yield text
    if not found:
        raise StoreError(f"expected texts in {place}, found none; leave it out if nothing of it is in use")


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except (KVRagError, ImportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # whatever a file does to a parser; a panic of Chroma's is no Exception
        found = f"{type(error).__name__}: {error}"
        raise StoreError(f"expected texts in use in {source}, found it cannot be read: {found}") from error
