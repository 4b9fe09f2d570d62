"""Streams that are closed, event loops that stay free, and copies without an engine."""

import asyncio
import copy
import pickle
import time

import pytest
from langchain_core._api import LangChainBetaWarning
from langchain_core.load import dumps, loads
from langchain_core.prompts import ChatPromptTemplate
from langchain_kvrag import ChatKVRag

from kvrag.engine import PacketEngine
from kvrag.errors import EngineError

LONG = 2000


@pytest.fixture
def unending(engine: PacketEngine, monkeypatch) -> ChatKVRag:
    """Its answers have `LONG` tokens, whatever the random model thinks of end tokens."""
    monkeypatch.setattr(type(engine.model), "stop_ids", frozenset())
    return ChatKVRag(engine=engine, max_tokens=LONG)


@pytest.fixture
def passes(engine: PacketEngine, monkeypatch) -> list[int]:
    """Grows with every pass through the model."""
    counted: list[int] = []
    forward = engine.model.forward
    monkeypatch.setattr(
        engine.model, "forward", lambda rows, **options: counted.append(len(rows)) or forward(rows, **options)
    )
    return counted


def test_closing_a_stream_ends_the_generation(unending: ChatKVRag, passes: list[int]):
    stream = unending.stream("Tell me everything.")
    next(stream)
    stream.close()
    assert unending.invoke("Only one word.", max_tokens=1).text is not None  # the worker is past the closed one
    ended = len(passes)
    time.sleep(0.1)
    assert len(passes) == ended < LONG / 2


async def test_closing_an_async_stream_ends_the_generation(unending: ChatKVRag, passes: list[int]):
    stream = unending.astream("Tell me everything.")
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.05)  # LangChain leaves the inner generator to the loop
    ended = len(passes)
    await asyncio.sleep(0.1)
    assert len(passes) == ended < LONG / 2


async def test_cancelling_a_task_ends_the_generation(unending: ChatKVRag, passes: list[int]):
    task = asyncio.create_task(unending.ainvoke("Tell me everything."))
    while len(passes) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    ended = len(passes)
    await asyncio.sleep(0.1)
    assert len(passes) == ended < LONG / 2


async def test_the_event_loop_runs_while_the_model_computes(unending: ChatKVRag, monkeypatch):
    forward = unending.engine.model.forward
    monkeypatch.setattr(
        unending.engine.model, "forward", lambda rows, **options: time.sleep(0.02) or forward(rows, **options)
    )
    render = unending.engine.model.render
    monkeypatch.setattr(unending.engine.model, "render", lambda messages: time.sleep(0.1) or render(messages))
    for ask in (unending.ainvoke, lambda prompt, **options: _drain(unending.astream(prompt, **options))):
        ticks, task = 0, asyncio.create_task(ask("Tell me something.", max_tokens=10))
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert ticks > 20


async def _drain(stream) -> None:
    async for _ in stream:
        pass


def test_a_closed_engine_says_so(new_engine):
    chat = ChatKVRag(engine=new_engine())
    chat.engine.close()
    with pytest.raises(EngineError, match="closed"):
        chat.invoke("Are you there?")


def test_a_pickle_leaves_the_engine_out_and_says_so(chat: ChatKVRag):
    thawed = pickle.loads(pickle.dumps(chat))
    assert thawed.max_tokens == 12
    assert thawed.model == "tiny"
    for ask in (lambda: thawed.invoke("Hello"), lambda: thawed.get_token_ids("Hello")):
        with pytest.raises(EngineError, match="ChatKVRag, found none.*set `engine`"):
            ask()
    thawed.engine = chat.engine
    assert thawed.invoke("Hello").text == chat.invoke("Hello").text


def test_copies_share_the_engine(chat: ChatKVRag):
    chain = ChatPromptTemplate.from_template("{x}") | chat
    for copied in (copy.copy(chat), copy.deepcopy(chat), chat.model_copy(deep=True), copy.deepcopy(chain).last):
        assert copied is not chat
        assert copied.engine is chat.engine
    assert copy.deepcopy(pickle.loads(pickle.dumps(chat))).model == "tiny"


def test_a_serialised_chain_describes_the_model_and_cannot_be_loaded(chat: ChatKVRag):
    text = dumps(ChatPromptTemplate.from_template("{x}") | chat)
    assert "ChatKVRag(" in text
    assert "PacketEngine" not in text
    with pytest.warns(LangChainBetaWarning, match="loads"), pytest.raises(NotImplementedError, match="ChatKVRag"):
        loads(text, allowed_objects="all")


def test_from_pretrained_makes_the_engine(tiny, tmp_path):
    chat = ChatKVRag.from_pretrained(tiny, store=tmp_path / "packets", strategy="no-recompute", max_tokens=3)
    with chat.engine, chat.engine.store:
        assert chat.engine.strategy.name == "no-recompute"
        assert chat.invoke("Hello").usage_metadata["output_tokens"] <= 3
