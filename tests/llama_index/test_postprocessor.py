"""Prefetching packets of retrieved nodes, and letting them go again."""

import asyncio
import pickle
import threading
import time

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeWithScore
from llama_index_kvrag import KVRagLLM, KVRagPostprocessor, KVRagTransform

from kvrag.engine import PacketEngine
from kvrag.errors import EngineError
from kvrag.store import PacketStore
from tests.llama_index.conftest import EMBEDDING, QUESTION, chunk_nodes


@pytest.fixture
def engine(tiny, tmp_path):
    """Its store keeps nothing in memory that nobody holds."""
    with (
        PacketStore(tmp_path / "unheld", memory_bytes=0) as store,
        PacketEngine(tiny, store=store, adapter="none", strategy="no-recompute", computed_bytes=0) as made,
    ):
        yield made


@pytest.fixture
def found(engine) -> list[NodeWithScore]:
    nodes = chunk_nodes(title="Customs")
    KVRagTransform(engine)(nodes)
    return [NodeWithScore(node=node, score=1.0) for node in nodes]


def held(engine) -> int:
    """Bytes in memory."""
    return engine.store.stat().memory_bytes


def test_it_holds_what_was_retrieved_until_the_next_query(engine, found):
    prefetch = KVRagPostprocessor(engine)
    assert prefetch.postprocess_nodes(found, query_str=QUESTION) == found
    whole = held(engine)
    assert whole == sum(engine.store.get(row.key).nbytes for row in engine.store.ls()) > 0
    prefetch.postprocess_nodes(found[:1])
    assert 0 < held(engine) < whole
    prefetch.postprocess_nodes([])
    assert held(engine) == 0


def test_release_a_time_limit_and_its_end_let_packets_go(engine, found):
    prefetch = KVRagPostprocessor(engine)
    prefetch.postprocess_nodes(found)
    prefetch.release()
    assert held(engine) == 0

    prefetch.postprocess_nodes(found)
    assert held(engine) > 0
    del prefetch
    assert held(engine) == 0

    short = KVRagPostprocessor(engine, hold_seconds=0.05)
    short.postprocess_nodes(found)
    deadline = time.monotonic() + 20
    while held(engine) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held(engine) == 0


async def test_it_does_not_block_the_event_loop(engine, found, monkeypatch):
    gate, load = threading.Event(), engine.prefetch

    def wait_for_the_loop(*args, **kwargs):
        assert gate.wait(20), "the event loop is blocked"
        return load(*args, **kwargs)

    monkeypatch.setattr(engine, "prefetch", wait_for_the_loop)

    async def open_gate():
        await asyncio.sleep(0.02)
        gate.set()

    prefetch = KVRagPostprocessor(engine)
    nodes, _ = await asyncio.gather(prefetch.apostprocess_nodes(found), open_gate())
    assert nodes == found
    assert held(engine) > 0


async def test_query_engines_answer_the_same_with_and_without_it(engine, found, recorder):
    llm = KVRagLLM(engine, max_tokens=4)
    index = VectorStoreIndex([f.node for f in found], embed_model=EMBEDDING)
    bare = index.as_query_engine(llm=llm, similarity_top_k=3).query(QUESTION).response
    query_engine = index.as_query_engine(llm=llm, similarity_top_k=3, node_postprocessors=[KVRagPostprocessor(engine)])
    assert query_engine.query(QUESTION).response == bare
    assert held(engine) > 0
    assert (await query_engine.aquery(QUESTION)).response == bare
    usages = [end.response.raw["usage"] for end in recorder.ends]
    assert usages[0] == usages[1] == usages[2]
    assert usages[0]["prompt_tokens_details"]["cached_tokens"] > 0


def test_nodes_without_packets_are_no_error(engine):
    nodes = [NodeWithScore(node=node) for node in chunk_nodes(title="never built")]
    assert KVRagPostprocessor(engine).postprocess_nodes(nodes) == nodes
    assert held(engine) == 0


def test_a_pickled_copy_says_that_it_has_no_engine(engine, found):
    prefetch = KVRagPostprocessor(engine, hold_seconds=5)
    prefetch.postprocess_nodes(found)
    copy = pickle.loads(pickle.dumps(prefetch))
    assert copy.to_dict() == prefetch.to_dict()
    with pytest.raises(EngineError, match="pickled copy"):
        copy.postprocess_nodes(found)
    assert held(engine) > 0
