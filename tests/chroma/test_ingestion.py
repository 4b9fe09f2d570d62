"""Documents that change, through the frameworks' own ways of ingesting them again."""

from collections.abc import Iterable, Sequence

import pytest

pytest.importorskip("llama_index.vector_stores.chroma")
pytest.importorskip("langchain_chroma")

from langchain_chroma import Chroma
from langchain_core.documents import Document as Page
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, index
from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_kvrag import KVRagTransform

from kvrag.engine import PacketEngine
from tests.chroma.conftest import cached, documents, tokens
from tests.conftest import CHUNKS

EMBEDDING = MockEmbedding(embed_dim=4)


def all_cached(engine: PacketEngine, texts: Sequence[str]) -> bool:
    return all(cached(engine, text) == tokens(engine, text) > 0 for text in texts)


def retrieved(collection) -> list[str]:
    """What the LLM is shown of every node that LlamaIndex finds in the collection."""
    found = VectorStoreIndex.from_vector_store(ChromaVectorStore(collection), EMBEDDING)
    nodes = found.as_retriever(similarity_top_k=20).retrieve("anything")
    return [node.node.get_content(MetadataMode.LLM) for node in nodes]


class Ingestion:
    """A LlamaIndex pipeline that splits, builds packets, embeds, and upserts into Chroma."""

    def __init__(self, engine: PacketEngine, collection) -> None:
        self.pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=512), KVRagTransform(engine, progress=False), EMBEDDING],
            vector_store=ChromaVectorStore(collection),
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )

    def run(self, texts: Iterable[str], **metadata: str) -> None:
        pages = [Document(text=text, doc_id=f"file-{n}", metadata=metadata) for n, text in enumerate(texts)]
        self.pipeline.run(documents=pages)


def test_documents_ingested_again_leave_only_packets_of_what_they_were(packets, collection, gc):
    ingestion = Ingestion(packets, collection)
    ingestion.run(CHUNKS[:3])
    assert all_cached(packets, retrieved(collection))
    assert gc()["removed"] == []
    ids = set(collection.get()["ids"])

    ingestion.run([CHUNKS[0], CHUNKS[3]])  # the first stays, the second changes, the third goes
    assert sorted(documents(collection)) == sorted([CHUNKS[0], CHUNKS[3]])
    assert len(ids & set(collection.get()["ids"])) == 1  # the changed document's node is another node
    assert all_cached(packets, retrieved(collection))
    assert len(gc()["removed"]) == 2
    assert all_cached(packets, retrieved(collection))
    assert [cached(packets, text) for text in CHUNKS[1:3]] == [0, 0]


def test_changed_metadata_that_the_llm_sees_is_another_packet_of_the_same_text(packets, collection, gc):
    ingestion = Ingestion(packets, collection)
    ingestion.run(CHUNKS[:1], edition="first")
    ingestion.run(CHUNKS[:1], edition="second")
    (seen,) = retrieved(collection)
    assert seen == f"edition: second\n\n{CHUNKS[0]}"
    assert all_cached(packets, [seen])
    assert len(gc()["removed"]) == 1
    assert all_cached(packets, [seen])
    assert cached(packets, f"edition: first\n\n{CHUNKS[0]}") == 0


def test_a_node_id_that_is_added_again_is_answered_from_the_text_that_stayed(packets, collection, gc):
    """LlamaIndex adds, and Chroma ignores ids that it has: the new text's packet is built and belongs to nothing."""
    for text in CHUNKS[:2]:
        node = TextNode(id_="the-same", text=text)
        KVRagTransform(packets, progress=False)([node])
        storage = StorageContext.from_defaults(vector_store=ChromaVectorStore(collection))
        VectorStoreIndex([node], storage_context=storage, embed_model=EMBEDDING)
    assert retrieved(collection) == [CHUNKS[0]]
    assert all_cached(packets, [CHUNKS[0]])
    assert len(gc()["removed"]) == 1
    assert all_cached(packets, [CHUNKS[0]])


def test_metadata_that_another_program_left_stale_is_not_believed(packets, collection, gc):
    """An upsert of a text alone keeps what LlamaIndex wrote of the node before, its hash included."""
    Ingestion(packets, collection).run(CHUNKS[:1])
    (name,) = collection.get()["ids"]
    before = collection.get(include=["metadatas"])["metadatas"]
    collection.upsert(ids=[name], documents=[CHUNKS[1]], embeddings=[[0.0] * 4])
    assert collection.get(include=["metadatas"])["metadatas"] == before
    (seen,) = retrieved(collection)
    assert seen == CHUNKS[1]
    assert cached(packets, seen) == 0  # and not the packet of the text that was there
    packets.build([seen], progress=False)
    assert len(gc()["removed"]) == 1
    assert all_cached(packets, [seen])


@pytest.fixture
def vectors(place, collection) -> Chroma:
    return Chroma(collection.name, DeterministicFakeEmbedding(size=4), client=place.client)


def pages(vectors: Chroma) -> list[str]:
    return [page.page_content for page in vectors.similarity_search("anything", k=20)]


def test_langchains_index_removes_entries_and_their_packets_go_with_the_next_sweep(packets, vectors, gc):
    records = InMemoryRecordManager("kvrag")
    records.create_schema()

    def ingest(texts: Iterable[str]) -> dict[str, int]:
        found = [Page(text, metadata={"source": f"file-{n}"}) for n, text in enumerate(texts)]
        packets.build((page.page_content for page in found), progress=False)
        return dict(index(found, records, vectors, cleanup="full", source_id_key="source", key_encoder="sha256"))

    assert ingest(CHUNKS[:3])["num_added"] == 3
    assert ingest([CHUNKS[0], CHUNKS[3]]) == {"num_added": 1, "num_updated": 0, "num_skipped": 1, "num_deleted": 2}
    assert sorted(pages(vectors)) == sorted([CHUNKS[0], CHUNKS[3]])
    assert all_cached(packets, pages(vectors))
    assert len(gc()["removed"]) == 2
    assert all_cached(packets, pages(vectors))


def test_langchains_update_keeps_metadata_and_not_the_packet(packets, vectors, gc):
    packets.build(CHUNKS[:2], progress=False)
    vectors.add_documents([Page(CHUNKS[0], id="a", metadata={"packet": "of-the-old-text"})])
    vectors.update_document("a", Page(CHUNKS[1], id="a", metadata={"page": 2}))
    (page,) = vectors.similarity_search("anything", k=2)
    assert page.metadata == {"packet": "of-the-old-text", "page": 2}
    assert page.page_content == CHUNKS[1]
    assert cached(packets, page.page_content) == tokens(packets, CHUNKS[1])
    assert len(gc()["removed"]) == 1
    vectors.delete(["a"])
    assert pages(vectors) == []
    assert packets.store.stat().packets == 1  # nobody deletes packets because an entry went
