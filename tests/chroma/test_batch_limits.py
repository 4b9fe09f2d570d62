"""Collections of more entries than Chroma takes at once."""

import inspect
import itertools
import tempfile
from collections.abc import Iterator

import pytest

pytest.importorskip("llama_index.vector_stores.chroma")
pytest.importorskip("langchain_chroma")

import chromadb
from chromadb.errors import InternalError
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import index
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import BaseNode, TextNode, TransformComponent
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_kvrag import KVRagTransform

from tests.chroma.application import entry
from tests.chroma.conftest import cached, documents, tokens

COUNT = 6000
WITH_PACKETS = [*range(0, COUNT, 40), *range(5440, 5480), *range(COUNT - 20, COUNT)]
GONE = range(COUNT, COUNT + 20)


def refused():
    return pytest.raises((ValueError, InternalError), match=r"[Bb]atch size (of )?6000 .* 5461")


@pytest.mark.slow
def test_entries_beyond_chromas_batch_limit_keep_their_packets(place, collection, packets, gc):
    limit = place.client.get_max_batch_size()
    assert limit < COUNT
    with refused():
        collection.add(ids=[str(n) for n in range(COUNT)], embeddings=[[0.0, 1.0]] * COUNT)
    for first in range(0, COUNT, limit):
        some = range(first, min(first + limit, COUNT))
        ids, texts = [str(n) for n in some], [entry(n) for n in some]
        collection.add(ids=ids, documents=texts, embeddings=[[0.0, 1.0]] * len(ids))
    packets.build([entry(n) for n in [*WITH_PACKETS, *GONE]], progress=False)
    assert collection.count() == len(set(documents(collection))) == COUNT
    told = gc()
    assert told["marked"] == COUNT
    assert len(told["removed"]) == len(GONE)
    for number in WITH_PACKETS[::20] + WITH_PACKETS[-1:]:
        assert cached(packets, entry(number)) == tokens(packets, entry(number))


@pytest.fixture
def client() -> Iterator[chromadb.ClientAPI]:
    """Of a folder; one that only writes."""
    with tempfile.TemporaryDirectory() as folder:
        yield chromadb.PersistentClient(folder, chromadb.Settings(anonymized_telemetry=False))


@pytest.fixture
def own(client) -> chromadb.Collection:
    return client.create_collection("chunks", embedding_function=None)


class Marks(TransformComponent):
    """Stands for a splitter: makes nodes of what it is given."""

    def __call__(self, nodes: list[BaseNode], **kwargs) -> list[BaseNode]:
        return [TextNode(text=node.get_content(), id_=node.node_id) for node in nodes]


def nodes() -> list[TextNode]:
    return [TextNode(text=f"{entry(n) if n in WITH_PACKETS[:3] else n}", id_=str(n)) for n in range(COUNT)]


@pytest.mark.slow
def test_a_llama_index_pipeline_hands_its_vector_store_everything_at_once(own, packets):
    """The packets are there by then; without the vector store its nodes go into an index, which has batches."""
    embedding, build = MockEmbedding(embed_dim=2), KVRagTransform(packets, progress=False)
    vectors = ChromaVectorStore(own)
    with refused():
        IngestionPipeline(transformations=[Marks(), build, embedding], vector_store=vectors).run(documents=nodes())
    assert own.count() == 0
    assert packets.store.stat().packets == 3

    made = IngestionPipeline(transformations=[Marks(), build]).run(documents=nodes())
    VectorStoreIndex(made, storage_context=StorageContext.from_defaults(vector_store=vectors), embed_model=embedding)
    assert own.count() == COUNT
    assert packets.store.stat().packets == 3


@pytest.mark.slow
def test_langchains_chroma_adds_no_more_at_once_than_its_client_takes(client, own):
    """`from_documents` and `index` have batches; `add_documents` has none."""
    assert inspect.signature(index).parameters["batch_size"].default < client.get_max_batch_size()
    pages = [Document(str(n), id=str(n)) for n in range(COUNT)]
    vectors = Chroma("chunks", DeterministicFakeEmbedding(size=2), client=client)
    with refused():
        vectors.add_documents(pages)
    assert own.count() == 0
    left = iter(pages)
    while some := list(itertools.islice(left, client.get_max_batch_size())):
        vectors.add_documents(some)
    assert own.count() == COUNT
    Chroma.from_documents(pages, DeterministicFakeEmbedding(size=2), collection_name="others", client=client)
    assert client.get_collection("others").count() == COUNT
