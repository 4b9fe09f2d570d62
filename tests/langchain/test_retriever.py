"""Retrievers and agents behind which every document has its packet."""

import asyncio
import json
import threading

import pytest
from langchain.agents import create_agent
from langchain.tools import tool
from langchain_chroma import Chroma
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_kvrag import ChatKVRag, KVRagMiddleware, KVRagRetriever
from pydantic import BaseModel

from kvrag.engine import PacketEngine
from kvrag.errors import StoreError
from tests.conftest import CHUNKS
from tests.langchain.bigrams import WORD
from tests.langchain.conftest import PROMPT
from tests.langchain.test_chains import cache_read, format_docs

QUESTION = "How often does the boat cross?"


@pytest.fixture
def retriever(engine: PacketEngine, collection: Chroma) -> KVRagRetriever:
    return KVRagRetriever(retriever=collection, engine=engine, k=2)


def tokens_of(engine: PacketEngine, documents: list[Document]) -> int:
    return sum(engine.count_tokens(document.page_content.strip()) for document in documents)


async def test_a_chain_over_it_hits_at_the_first_question(chat: ChatKVRag, retriever: KVRagRetriever):
    chain = {"context": retriever | format_docs, "question": RunnablePassthrough()} | PROMPT | chat
    documents = retriever.retriever.invoke(QUESTION, k=2)
    assert len(documents) == 2
    assert cache_read(chain.invoke(QUESTION)) == tokens_of(chat.engine, documents)
    assert cache_read(await chain.ainvoke(QUESTION)) == tokens_of(chat.engine, documents)


async def test_documents_come_back_as_they_were_found(retriever: KVRagRetriever, collection: Chroma):
    assert retriever.invoke(QUESTION) == collection.similarity_search(QUESTION, k=2)
    assert await retriever.ainvoke(QUESTION, k=1) == collection.similarity_search(QUESTION, k=1)


def test_their_packets_wait_in_host_memory(retriever: KVRagRetriever, engine: PacketEngine):
    assert engine.store.stat().memory_bytes == 0
    documents = retriever.invoke(QUESTION)
    per_token = engine.model.geometry
    expected = 2 * per_token.layers * per_token.kv_heads * per_token.head_dim * engine.model.dtype.itemsize
    assert engine.store.stat().memory_bytes == expected * tokens_of(engine, documents)


def test_without_building_a_missing_packet_is_an_error(retriever: KVRagRetriever, engine: PacketEngine, collection):
    strict = KVRagRetriever(retriever=collection.as_retriever(search_kwargs={"k": 2}), engine=engine, build=False)
    with pytest.raises(StoreError, match="found 2 documents without"):
        strict.invoke(QUESTION)
    retriever.invoke(QUESTION)
    assert len(strict.invoke(QUESTION)) == 2


def test_a_stuff_documents_chain_hits(chat: ChatKVRag, retriever: KVRagRetriever):
    documents = retriever.invoke(QUESTION)
    answers: list[AIMessage] = []
    chain = create_stuff_documents_chain(chat, PROMPT, output_parser=answers.append)
    chain.invoke({"context": documents, "question": QUESTION})
    assert cache_read(answers[0]) == tokens_of(chat.engine, documents)


async def test_an_agent_with_the_middleware_hits_however_it_is_run(chat: ChatKVRag, retriever: KVRagRetriever):
    agent = create_agent(chat, system_prompt="Be brief.", middleware=[KVRagMiddleware(retriever)])
    expected = tokens_of(chat.engine, retriever.invoke(QUESTION))
    state = {"messages": [HumanMessage(QUESTION)]}
    invoked, awaited = agent.invoke(state), await agent.ainvoke(state)
    assert [cache_read(state["messages"][-1]) for state in (invoked, awaited)] == [expected, expected]
    assert [message.type for message in invoked["messages"]] == ["human", "ai"]  # documents stay out of the state


async def test_tokens_of_an_agent_stream_through_langgraph(chat: ChatKVRag, retriever: KVRagRetriever):
    agent = create_agent(chat, middleware=[KVRagMiddleware(retriever)])
    state = {"messages": [HumanMessage(QUESTION)]}
    answer = agent.invoke(state)["messages"][-1]
    streams = [
        [chunk for chunk, _ in agent.stream(state, stream_mode="messages")],
        [chunk async for chunk, _ in agent.astream(state, stream_mode="messages")],
    ]
    for chunks in streams:
        assert len(chunks) > 2
        assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
        assert "".join(chunk.text for chunk in chunks) == answer.text
        total = sum(chunks[1:], chunks[0])
        assert total.usage_metadata == answer.usage_metadata
        assert cache_read(total) == tokens_of(chat.engine, retriever.invoke(QUESTION))


async def test_an_agent_calls_a_retrieving_tool_and_its_packets_are_found(
    tool_engine: PacketEngine, collection: Chroma
):
    found: list[Document] = []

    @tool
    def search(query: str) -> str:
        """Search the archive."""
        found[:] = KVRagRetriever(retriever=collection, engine=tool_engine, k=2).invoke(query)
        return format_docs(found)

    chat = ChatKVRag(engine=tool_engine, max_tokens=120)
    agent = create_agent(chat, [search])
    state = {"messages": [HumanMessage(QUESTION)]}
    seen: list[AIMessage] = []
    for update in agent.stream(state, {"recursion_limit": 25}, stream_mode="values"):
        if isinstance(update["messages"][-1], AIMessage):
            seen.append(update["messages"][-1])
        if len(seen) == 2:  # this model would go on searching
            break
    assert [call["name"] for call in seen[0].tool_calls] == ["search"]
    assert cache_read(seen[0]) == 0
    assert cache_read(seen[1]) == tokens_of(tool_engine, found) > 0


def test_an_agent_answers_with_an_object(tool_engine: PacketEngine):
    class Fare(BaseModel):
        """What a crossing costs."""

        coin: str
        coins: int

    agent = create_agent(ChatKVRag(engine=tool_engine, max_tokens=120), response_format=Fare)
    assert agent.invoke({"messages": [HumanMessage(QUESTION)]})["structured_response"] == Fare(coin=WORD, coins=3)


async def test_a_batch_is_in_flight_as_a_whole(chat: ChatKVRag, engine: PacketEngine, monkeypatch):
    """More prompts than LangChain has threads for by default."""
    engine.build(CHUNKS, progress=False)
    prompts = [f"{CHUNKS[n % len(CHUNKS)]}\n\nQuestion {n}?" for n in range(24)]
    alone = [chat.invoke(prompt).text for prompt in prompts[: len(CHUNKS)]]  # and all packets are in host memory now
    together: list[int] = []
    forward = engine.model.forward
    monkeypatch.setattr(
        engine.model, "forward", lambda rows, **options: together.append(len(rows)) or forward(rows, **options)
    )
    gate = threading.Event()
    for ask in (lambda: chat.batch(prompts), lambda: asyncio.run(chat.abatch(prompts))):
        together.clear()
        gate.clear()
        held = engine._worker.run(gate.wait, 120)  # until all are asked
        task = asyncio.create_task(asyncio.to_thread(ask))
        try:
            async with asyncio.timeout(100):
                while engine._worker._inbox.qsize() < len(prompts):
                    await asyncio.sleep(0.01)
        finally:
            gate.set()
        answers = await task
        assert held.result()
        assert max(together) == len(prompts)
        assert [answer.text for answer in answers[: len(alone)]] == alone
        assert all(cache_read(answer) > 0 for answer in answers)


def test_a_batch_keeps_to_the_concurrency_asked_for(chat: ChatKVRag, engine: PacketEngine, monkeypatch):
    together: list[int] = []
    forward = engine.model.forward
    monkeypatch.setattr(
        engine.model, "forward", lambda rows, **options: together.append(len(rows)) or forward(rows, **options)
    )
    assert len(chat.batch(["Hello"] * 6, {"max_concurrency": 2})) == 6
    assert max(together) <= 2
    assert chat.batch([]) == []


def test_a_trace_holds_words_and_numbers_only(chat: ChatKVRag, retriever: KVRagRetriever):
    class Traces(BaseTracer):
        def __init__(self) -> None:
            super().__init__()
            self.runs: list[Run] = []

        def _persist_run(self, run: Run) -> None:
            self.runs.append(run)

    traces = Traces()
    secret = ChatKVRag(engine=chat.engine, max_tokens=4, api_key="very-secret")
    chain = {"context": retriever | format_docs, "question": RunnablePassthrough()} | PROMPT | secret
    chain.invoke(QUESTION, {"callbacks": [traces]})
    (run,) = traces.runs
    text = run.model_dump_json()
    assert "very-secret" not in text
    assert "tensor(" not in text
    assert "PacketEngine object" not in text
    (asked,) = [child for child in run.child_runs if child.run_type in ("llm", "chat_model")]
    json.dumps(asked.extra)
    assert asked.extra["metadata"]["ls_provider"] == "kvrag"
    assert asked.extra["metadata"]["ls_model_name"] == "tiny"
