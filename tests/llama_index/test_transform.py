"""Packets built while documents are ingested."""

import asyncio
import pickle
import threading

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index_kvrag import KVRagLLM, KVRagTransform

from kvrag.engine import PacketEngine
from kvrag.errors import EngineError, SettingsError
from tests.conftest import CHUNKS
from tests.llama_index.conftest import EMBEDDING, QUESTION, chunk_nodes, packet_tokens


@pytest.fixture
def engine(new_engine) -> PacketEngine:
    """With a store of its own."""
    return new_engine(computed_bytes=0)


def documents() -> list[Document]:
    return [
        Document(
            text=chunk,
            id_=f"d{i}",
            metadata={"title": f"Chapter {i}", "file_name": "customs.txt"},
            excluded_llm_metadata_keys=["file_name"],
        )
        for i, chunk in enumerate(CHUNKS)
    ]


def pipeline(engine, vector_store, **options) -> IngestionPipeline:
    steps = [SentenceSplitter(chunk_size=512, chunk_overlap=0), KVRagTransform(engine), EMBEDDING]
    return IngestionPipeline(transformations=steps, vector_store=vector_store, **options)


def ask(engine, vector_store, top: int = len(CHUNKS)) -> str:
    index = VectorStoreIndex.from_vector_store(vector_store, embed_model=EMBEDDING)
    llm = KVRagLLM(engine, max_tokens=4)
    return index.as_query_engine(llm=llm, similarity_top_k=top).query(QUESTION).response


def packets(engine) -> int:
    return engine.store.stat().packets


def empty(store) -> None:
    for row in list(store.ls()):
        store.remove(row.key)


def test_a_pipeline_into_chroma_builds_what_the_llm_will_see(engine, chroma, recorder):
    vector_store = chroma()
    nodes = pipeline(engine, vector_store).run(documents=documents())
    assert packets(engine) == len(CHUNKS)
    with engine.prefetch([f"title: Chapter 0\n\n{CHUNKS[0]}"]) as hold:
        assert len(hold.packets) == 1
    ask(engine, vector_store)
    assert recorder.cached_tokens == packet_tokens(engine, nodes) > 0


async def test_it_works_asynchronously_without_blocking_the_event_loop(engine, monkeypatch):
    gate, build = threading.Event(), engine.build

    def wait_for_the_loop(*args, **kwargs):
        assert gate.wait(20), "the event loop is blocked"
        return build(*args, **kwargs)

    monkeypatch.setattr(engine, "build", wait_for_the_loop)

    async def open_gate():
        await asyncio.sleep(0.02)
        gate.set()

    await asyncio.gather(pipeline(engine, None).arun(documents=documents()), open_gate())
    assert packets(engine) == len(CHUNKS)


def test_nodes_are_returned_as_they_came(engine):
    nodes = chunk_nodes(title="x")
    before = [(node.hash, node.to_dict()) for node in nodes]
    assert KVRagTransform(engine)(nodes) is nodes
    assert [(node.hash, node.to_dict()) for node in nodes] == before
    assert KVRagTransform(engine)([]) == []


def test_an_upserted_document_gets_a_packet_of_its_own(engine, chroma, recorder):
    vector_store = chroma()
    run = pipeline(engine, vector_store, docstore=SimpleDocumentStore(), docstore_strategy=DocstoreStrategy.UPSERTS).run
    run(documents=documents())
    changed = documents()
    changed[0].set_content(CHUNKS[0].replace("1788", "1789"))
    nodes = run(documents=changed)
    assert [node.text for node in nodes] == [changed[0].text]
    assert packets(engine) == len(CHUNKS) + 1  # the old one is garbage until somebody collects it
    ask(engine, vector_store)
    expected = [f"title: Chapter {i}\n\n{document.text}" for i, document in enumerate(changed)]
    with engine.prefetch(expected) as hold:
        assert recorder.cached_tokens == sum(packet.tokens for packet in hold.packets.values()) > 0
        assert len(hold.packets) == len(CHUNKS)


def test_a_removed_document_is_neither_retrieved_nor_attached(engine, chroma, recorder):
    vector_store = chroma()
    strategy = DocstoreStrategy.UPSERTS_AND_DELETE
    run = pipeline(engine, vector_store, docstore=SimpleDocumentStore(), docstore_strategy=strategy).run
    run(documents=documents())
    assert run(documents=documents()[1:]) == []  # nothing is new
    ask(engine, vector_store)
    assert CHUNKS[0] not in recorder.starts[0].messages[-1].content
    with engine.prefetch([f"title: Chapter {i}\n\n{CHUNKS[i]}" for i in range(1, len(CHUNKS))]) as hold:
        assert recorder.cached_tokens == sum(packet.tokens for packet in hold.packets.values()) > 0
    assert packets(engine) == len(CHUNKS)  # garbage, until somebody collects it


def test_an_ingestion_cache_hit_builds_nothing_anew(engine, chroma, recorder, monkeypatch):
    cache = IngestionCache()
    pipeline(engine, chroma(), cache=cache).run(documents=documents())
    monkeypatch.setattr(engine, "build", lambda *args, **options: pytest.fail("built again"))
    vector_store = chroma()
    nodes = pipeline(engine, vector_store, cache=cache).run(documents=documents())
    ask(engine, vector_store)
    assert recorder.attached_whole(engine, nodes)


async def test_worker_processes_split_and_this_one_builds(engine, chroma, recorder):
    """Of the two ways to worker processes the asynchronous one forks, which takes no second to import everything."""
    splitter = SentenceSplitter(chunk_size=512, chunk_overlap=0)
    nodes = await IngestionPipeline(transformations=[splitter]).arun(documents=documents(), num_workers=2)
    assert len(nodes) == len(CHUNKS)
    vector_store = chroma()
    steps = [KVRagTransform(engine), EMBEDDING]
    IngestionPipeline(transformations=steps, vector_store=vector_store).run(nodes=nodes)
    ask(engine, vector_store)
    assert recorder.attached_whole(engine, nodes)


def test_a_stale_ingestion_cache_builds_nothing_and_answers_stay_right(engine, chroma, recorder):
    cache = IngestionCache()
    vector_store = chroma()
    pipeline(engine, vector_store, cache=cache).run(documents=documents())
    empty(engine.store)
    pipeline(engine, chroma(), cache=cache).run(documents=documents())
    assert packets(engine) == 0  # the trap

    answer = ask(engine, vector_store)
    assert recorder.cached_tokens == 0
    prompt = KVRagLLM(engine).render(recorder.starts[0].messages)
    assert answer == engine.generate(prompt, strategy="full-recompute", max_new_tokens=4).text

    pipeline(engine, chroma(), cache=cache, disable_cache=True).run(documents=documents())
    assert packets(engine) == len(CHUNKS)
    recorder.clear()
    ask(engine, vector_store)
    assert recorder.cached_tokens > 0


def test_another_model_store_or_namespace_is_another_cache_key(new_engine):
    keys = [
        str(KVRagTransform(engine, strategy=strategy).to_dict())
        for engine, strategy in (
            (new_engine(), None),
            (new_engine(seed=1), None),
            (new_engine(folder="other"), None),
            (new_engine(namespace="other"), None),
            (new_engine(), "kv-packet"),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert str(KVRagTransform(new_engine()).to_dict()) == keys[0]


def test_an_ingestion_cache_does_not_serve_another_model(new_engine, chroma):
    cache = IngestionCache()
    for seed in (0, 1):
        engine = new_engine(seed=seed)
        pipeline(engine, chroma(), cache=cache).run(documents=documents())
        assert packets(engine) == len(CHUNKS) * (seed + 1)


def test_a_pickled_copy_as_in_worker_processes_says_what_to_do(engine):
    transform = KVRagTransform(engine, strategy="kv-packet")
    copy = pickle.loads(pickle.dumps(transform))
    assert copy.to_dict() == transform.to_dict()
    with pytest.raises(EngineError, match="num_workers=1"):
        copy(chunk_nodes())


def test_short_nodes_and_unknown_strategies(engine):
    short = chunk_nodes()[:1]
    short[0].set_content("Too short.")
    KVRagTransform(engine)(short)
    assert packets(engine) == 0
    with pytest.raises(SettingsError, match="none-such"):
        KVRagTransform(engine, strategy="none-such")


def test_the_text_is_the_llms_not_the_embeddings(engine):
    node = chunk_nodes(title="Customs", shelf="A 12")[0]
    node.excluded_llm_metadata_keys = ["shelf"]
    KVRagTransform(engine)([node])
    with engine.prefetch([node.get_content(metadata_mode=MetadataMode.EMBED), node.text]) as hold:
        assert not hold.packets
    with engine.prefetch([node.get_content(metadata_mode=MetadataMode.LLM)]) as hold:
        assert len(hold.packets) == 1


def test_in_front_of_the_splitter_it_builds_what_no_prompt_contains(engine, chroma, recorder):
    whole = Document(text="\n\n".join(CHUNKS))
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    for steps, found in (([KVRagTransform(engine), splitter], False), ([splitter, KVRagTransform(engine)], True)):
        vector_store = chroma()
        IngestionPipeline(transformations=[*steps, EMBEDDING], vector_store=vector_store).run(documents=[whole])
        assert packets(engine) > 0
        recorder.clear()
        ask(engine, vector_store, top=2)
        assert (recorder.cached_tokens > 0) == found
