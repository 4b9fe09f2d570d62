"""Documents to nodes, and nodes to the collection, such that building again changes only what has changed."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.schema import Document, TextNode

__all__ = ["Change", "make_nodes", "make_splitter", "name_of", "plan_change", "sample_texts"]

_SOURCE = "kvrag_source"
"""Metadata key of the absolute path of a node's file; neither the language model nor the embedding sees it."""

_PAGE = 1000
_BATCH = 64


def make_splitter(chunk_tokens: int, tokenize: Callable[[str], Sequence[int]]) -> "SentenceSplitter":
    """A splitter into chunks of at most `chunk_tokens` tokens, of which an eighth overlaps."""
    from llama_index.core.node_parser import SentenceSplitter

    return SentenceSplitter(chunk_size=chunk_tokens, chunk_overlap=chunk_tokens // 8, tokenizer=tokenize)


def name_of(path: Path) -> str:
    """A path as text, however strange its bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def make_nodes(documents: "Iterable[Document]", source: str, splitter: "SentenceSplitter") -> "dict[str, TextNode]":
    """The chunks of a file by id; the id depends on the file's path and on what the model will see, on nothing else.

    Raises:
        ValueError: a text cannot be split.
    """
    from llama_index.core.schema import MetadataMode, TextNode

    nodes: dict[str, TextNode] = {}
    for document in documents:
        for text in splitter.split_text(document.text):
            node = TextNode(
                text=text,
                metadata=document.metadata | {_SOURCE: source},
                excluded_llm_metadata_keys=[*document.excluded_llm_metadata_keys, _SOURCE],
                excluded_embed_metadata_keys=[*document.excluded_embed_metadata_keys, _SOURCE],
            )
            seen = f"{source}\0{node.get_content(metadata_mode=MetadataMode.LLM)}"
            node.id_ = hashlib.sha256(seen.encode()).hexdigest()[:32]
            nodes[node.id_] = node
    return nodes


@dataclass(frozen=True)
class Change:
    """What has to happen to a collection.

    Attributes:
        added: nodes that are not there.
        stale: ids of nodes whose file has changed or gone.
        kept: number of nodes that are there already.
    """

    added: "list[TextNode]"
    stale: list[str]
    kept: int

    def apply(self, index: "VectorStoreIndex", advance: Callable[[int], None]) -> None:
        """Add, then remove, so that an interruption loses nothing; `advance` hears of every node added."""
        from kvrag.demo.retrieval import add_nodes

        for first in range(0, len(self.added), _BATCH):
            batch = self.added[first : first + _BATCH]
            add_nodes(index, batch)
            advance(len(batch))
        for first in range(0, len(self.stale), _PAGE):
            index.vector_store.delete_nodes(self.stale[first : first + _PAGE])


def plan_change(
    index: "VectorStoreIndex", folder: str, wanted: "dict[str, TextNode]", unreadable: Sequence[str]
) -> Change:
    """Compare a collection with the nodes that a folder's files yield now.

    Args:
        index: over the collection, which may hold other folders' nodes too.
        folder: absolute path of the folder that was read.
        wanted: its nodes by id.
        unreadable: absolute paths of files and folders in it that could not be read this time; their nodes stay.
    """
    present = {id for id, source in _sources(index) if _is_within(source, [folder])}
    lost = {id for id, source in _sources(index) if _is_within(source, unreadable)} if unreadable else set()
    return Change(
        added=[node for id, node in wanted.items() if id not in present],
        stale=sorted(present - wanted.keys() - lost),
        kept=len(present & wanted.keys()),
    )


def sample_texts(index: "VectorStoreIndex", count: int, seed: int) -> list[str]:
    """The texts of so many nodes of a collection, chosen by the seed; all of them if there are no more."""
    collection = index.vector_store.client
    ids = [
        id
        for offset in range(0, collection.count(), _PAGE)
        for id in collection.get(include=[], limit=_PAGE, offset=offset)["ids"]
    ]
    chosen = random.Random(f"{seed}:nodes").sample(sorted(ids), min(count, len(ids)))
    return [node.get_content() for node in index.vector_store.get_nodes(chosen)]


def _sources(index: "VectorStoreIndex") -> Iterable[tuple[str, str]]:
    """Id and source of every node; page by page, since a page carries the nodes' whole metadata."""
    collection = index.vector_store.client
    for offset in range(0, collection.count(), _PAGE):
        page = collection.get(include=["metadatas"], limit=_PAGE, offset=offset)
        yield from (
            (id, str(metadata.get(_SOURCE, ""))) for id, metadata in zip(page["ids"], page["metadatas"], strict=True)
        )


def _is_within(source: str, places: Sequence[str]) -> bool:
    return any(source == place or source.startswith(place.rstrip("/") + "/") for place in places)
