"""Agents and tools. A random model calls no tools: what it says is scripted, what it reads and attaches is not."""

import asyncio
import inspect

import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index_kvrag import KVRagLLM

from tests.conftest import CHUNKS
from tests.llama_index.conftest import OF_WORKFLOWS, QUESTION, chunk_nodes, packet_tokens

pytestmark = pytest.mark.filterwarnings(*OF_WORKFLOWS)

TOP = len(CHUNKS)
CALL = 'Thought: I need a tool.\nAction: harbour\nAction Input: {"input": "When was it lit?"}'
ANSWER = "Thought: I can answer without using any more tools.\nAnswer: In 1788."


def cached(end) -> int:
    return end.response.raw["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("streaming", [False, True], ids=["plain", "streaming"])
async def test_an_agent_attaches_what_its_retriever_tool_observed(streaming, engine, llm, index, recorder, say):
    tool = RetrieverTool.from_defaults(
        index.as_retriever(similarity_top_k=TOP), name="harbour", description="About the harbour."
    )
    say(CALL, ANSWER)
    agent = ReActAgent(tools=[tool], llm=llm, streaming=streaming)
    assert str(await agent.run(QUESTION)) == "In 1788."
    assert [cached(end) for end in recorder.ends] == [0, packet_tokens(engine, chunk_nodes())]


@pytest.mark.parametrize("streaming", [False, True], ids=["plain", "streaming"])
async def test_an_agents_query_engine_attaches_and_the_agent_reads_its_answer(
    streaming, engine, llm, index, recorder, say
):
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=llm, similarity_top_k=TOP), name="harbour", description="About the harbour."
    )
    say(CALL, "The answer of the query engine.", ANSWER)
    agent = ReActAgent(tools=[tool], llm=llm, streaming=streaming)
    assert str(await agent.run(QUESTION)) == "In 1788."
    assert [cached(end) for end in recorder.ends] == [0, packet_tokens(engine, chunk_nodes()), 0]
    assert "The answer of the query engine." in recorder.starts[2].messages[-1].content


async def test_a_query_engine_tool_attaches_by_itself(engine, llm, index, recorder):
    plain, streaming = (
        QueryEngineTool.from_defaults(index.as_query_engine(llm=llm, similarity_top_k=TOP, streaming=streaming))
        for streaming in (False, True)
    )
    answers = set()
    for call in (plain.call, plain.acall, streaming.call, streaming.acall):
        output = call(input=QUESTION)
        if inspect.isawaitable(output):
            output = await output
        answers.add(output.content)
        assert recorder.attached_whole(engine, chunk_nodes())
        recorder.clear()
    assert len(answers) == 1


async def test_an_agents_streaming_query_engine_attaches_as_well(engine, llm, index, recorder, say):
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=llm, similarity_top_k=TOP, streaming=True), name="harbour", description="The harbour."
    )
    say(CALL, "The answer of the query engine.", ANSWER)
    agent = ReActAgent(tools=[tool], llm=llm)
    assert str(await agent.run(QUESTION)) == "In 1788."
    assert [cached(end) for end in recorder.ends] == [0, packet_tokens(engine, chunk_nodes()), 0]
    assert "The answer of the query engine." not in recorder.starts[1].messages[-1].content


async def rounds_while(awaitable) -> int:
    """How often the event loop came round until this was done."""
    task, rounds = asyncio.create_task(awaitable), 0
    while not task.done():
        rounds += 1
        await asyncio.sleep(0)
    task.result()
    return rounds


async def test_a_query_engine_tool_leaves_the_event_loop_alone_unless_its_engine_streams(engine, index):
    """`QueryEngineTool.acall` takes `str` of an answer, and LlamaIndex makes one of a stream by waiting for it."""
    tokens = 64
    plain, streaming = (
        QueryEngineTool.from_defaults(
            index.as_query_engine(llm=KVRagLLM(engine, max_tokens=tokens), similarity_top_k=TOP, streaming=is_streaming)
        )
        for is_streaming in (False, True)
    )
    assert await rounds_while(plain.acall(input=QUESTION)) > tokens
    assert await rounds_while(streaming.acall(input=QUESTION)) < 16, "LlamaIndex has been repaired; say so in docs"


async def test_streaming_query_engine_tools_that_are_called_at_once_all_answer(engine, llm, index, recorder):
    tool = QueryEngineTool.from_defaults(index.as_query_engine(llm=llm, similarity_top_k=TOP, streaming=True))
    answers = await asyncio.wait_for(asyncio.gather(*(tool.acall(input=QUESTION) for _ in range(4))), timeout=60)
    assert len({answer.content for answer in answers}) == 1
    assert recorder.cached_tokens == 4 * packet_tokens(engine, chunk_nodes())
