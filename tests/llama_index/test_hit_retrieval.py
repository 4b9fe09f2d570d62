"""Retrievers and postprocessors that hand on other nodes than the vector store holds, or in another order."""

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import HierarchicalNodeParser, SentenceWindowNodeParser, get_leaf_nodes
from llama_index.core.node_parser import get_root_nodes as roots_of
from llama_index.core.postprocessor import LongContextReorder, MetadataReplacementPostProcessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.retrievers import AutoMergingRetriever
from llama_index.core.schema import TextNode
from llama_index_kvrag import KVRagLLM, KVRagTransform

from tests.conftest import CHUNKS
from tests.llama_index.conftest import EMBEDDING, QUESTION, chunk_nodes

TOP = len(CHUNKS)
WAYS = ("query", "aquery", "stream", "astream")


async def ask(make, way: str) -> str:
    """The answer of the query engine that `make(streaming=...)` returns."""
    query_engine = make(streaming="stream" in way)
    response = await query_engine.aquery(QUESTION) if way.startswith("a") else query_engine.query(QUESTION)
    if way == "stream":
        return "".join(response.response_gen)
    if way == "astream":
        return "".join([piece async for piece in response.async_response_gen()])
    return response.response


@pytest.fixture
def own(new_engine):
    """An engine whose store has the packets of one test only."""
    return new_engine(computed_bytes=0)


@pytest.mark.parametrize("way", WAYS)
async def test_reordered_chunks_are_attached(way, engine, llm, index, recorder):
    def make(streaming: bool):
        return index.as_query_engine(
            llm=llm, similarity_top_k=TOP, streaming=streaming, node_postprocessors=[LongContextReorder()]
        )

    await ask(make, way)
    assert recorder.attached_whole(engine, chunk_nodes())


@pytest.mark.parametrize("way", WAYS)
async def test_the_citation_engine_attaches_chunks_that_it_does_not_split(way, engine, llm, index, recorder):
    def make(streaming: bool):
        return CitationQueryEngine.from_args(
            index, llm=llm, similarity_top_k=TOP, citation_chunk_size=512, streaming=streaming
        )

    await ask(make, way)
    assert "Source 6:" in recorder.starts[0].messages[-1].content
    assert recorder.attached_whole(engine, chunk_nodes())


@pytest.mark.parametrize("packets_of", ["sentences", "windows"])
@pytest.mark.parametrize("way", WAYS)
async def test_sentence_windows_are_attached_from_sentences_or_whole(way, packets_of, own, chroma, recorder):
    parser = SentenceWindowNodeParser.from_defaults(window_size=1, sentence_splitter=lambda text: text.split("\n\n"))
    steps = [parser, KVRagTransform(own)] if packets_of == "sentences" else [parser]
    nodes = IngestionPipeline(transformations=steps).run(documents=[Document(text="\n\n".join(CHUNKS))])
    assert len(nodes) == TOP
    if packets_of == "windows":
        own.build([node.metadata["window"] for node in nodes])
    storage = StorageContext.from_defaults(vector_store=chroma())
    index = VectorStoreIndex(nodes, storage_context=storage, embed_model=EMBEDDING)
    llm = KVRagLLM(own, max_tokens=6)

    def make(streaming: bool):
        replace = MetadataReplacementPostProcessor(target_metadata_key="window")
        return index.as_query_engine(llm=llm, similarity_top_k=TOP, streaming=streaming, node_postprocessors=[replace])

    await ask(make, way)
    windows = [CHUNKS[max(i - 1, 0) : i + 2] for i in range(TOP)]
    expected = [text for window in windows for text in window]
    if packets_of == "windows":
        expected = [" ".join(window) for window in windows]
    with own.prefetch(expected) as hold:
        assert len(hold.packets) == TOP
    assert recorder.cached_tokens == sum(len(own.model.tokenizer.encode(text)) for text in expected)


@pytest.mark.parametrize("way", WAYS)
async def test_merged_parents_are_attached_whole(way, own, chroma, recorder):
    """A pipeline that parses hierarchically returns parents and leaves, so both get packets."""
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[100, 30], chunk_overlap=0)
    documents = [Document(text="\n\n".join(CHUNKS[i : i + 3])) for i in (0, 3)]
    nodes = IngestionPipeline(transformations=[parser, KVRagTransform(own)]).run(documents=documents)
    leaves, roots = get_leaf_nodes(nodes), roots_of(nodes)
    assert len(leaves) > len(roots) == 2
    storage = StorageContext.from_defaults(vector_store=chroma())
    storage.docstore.add_documents(nodes)
    index = VectorStoreIndex(leaves, storage_context=storage, embed_model=EMBEDDING)
    retriever = AutoMergingRetriever(index.as_retriever(similarity_top_k=len(leaves)), storage)
    llm = KVRagLLM(own, max_tokens=6)

    def make(streaming: bool):
        return RetrieverQueryEngine.from_args(retriever, llm=llm, streaming=streaming)

    await ask(make, way)
    assert {node.node.node_id for node in retriever.retrieve(QUESTION)} == {root.node_id for root in roots}
    assert recorder.attached_whole(own, roots)


def test_rewritten_chunks_are_computed_as_text(own, chroma, recorder):
    """What a postprocessor shortens is another text; the answer is that of the text."""
    nodes = [TextNode(text=f"{chunk} {chunk}", metadata={"short": chunk[:60]}) for chunk in CHUNKS]
    KVRagTransform(own)(nodes)
    storage = StorageContext.from_defaults(vector_store=chroma())
    index = VectorStoreIndex(nodes, storage_context=storage, embed_model=EMBEDDING)
    shorten = MetadataReplacementPostProcessor(target_metadata_key="short")
    llm = KVRagLLM(own, max_tokens=6)
    answer = index.as_query_engine(llm=llm, similarity_top_k=TOP, node_postprocessors=[shorten]).query(QUESTION)
    assert recorder.cached_tokens == 0
    prompt = llm.render(recorder.starts[0].messages)
    assert answer.response == own.generate(prompt, strategy="full-recompute", max_new_tokens=6).text
