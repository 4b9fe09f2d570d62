"""Every way of asking gives one answer, with its usage exactly once."""

import functools
import operator

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessageChunk
from langchain_kvrag import ChatKVRag

from kvrag.engine import PacketEngine
from tests.conftest import CHUNKS

QUESTION = f"Read this.\n\n{CHUNKS[0]}\n\nWhen was it lit?"


def joined(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    return functools.reduce(operator.add, chunks)


async def test_invoke_stream_and_batch_agree_with_their_async_forms(chat: ChatKVRag, packet_tokens):
    packet_tokens(CHUNKS[0])
    answer = chat.invoke(QUESTION).text
    assert answer
    assert joined(list(chat.stream(QUESTION))).text == answer
    assert (await chat.ainvoke(QUESTION)).text == answer
    assert joined([chunk async for chunk in chat.astream(QUESTION)]).text == answer
    assert [message.text for message in chat.batch([QUESTION] * 3)] == [answer] * 3
    assert [message.text for message in await chat.abatch([QUESTION] * 3)] == [answer] * 3
    assert chat.engine.generate([{"role": "user", "content": QUESTION}], max_new_tokens=12).text == answer


def test_the_chunks_of_a_stream_add_up_to_the_message_of_invoke(chat: ChatKVRag, packet_tokens):
    cached = packet_tokens(CHUNKS[0])
    whole, chunks = chat.invoke(QUESTION), list(chat.stream(QUESTION))
    total = joined(chunks)
    assert total.usage_metadata == whole.usage_metadata
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_token_details"] == {"cache_read": cached}
    assert whole.usage_metadata["total_tokens"] == (
        whole.usage_metadata["input_tokens"] + whole.usage_metadata["output_tokens"]
    )
    assert total.response_metadata.keys() == whole.response_metadata.keys()
    for key in ("model_name", "model_provider", "finish_reason", "strategy"):
        assert total.response_metadata[key] == whole.response_metadata[key]
    assert whole.response_metadata["timings"]["first_token_ms"] > 0


async def test_only_the_last_chunk_carries_usage_and_says_that_it_is_the_last(chat: ChatKVRag):
    for chunks in (list(chat.stream(QUESTION)), [chunk async for chunk in chat.astream(QUESTION)]):
        assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
        assert [chunk.usage_metadata is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert len(chunks) > 2


def test_a_call_that_ends_early_says_why(chat: ChatKVRag):
    assert chat.invoke(QUESTION, max_tokens=2).response_metadata["finish_reason"] == "length"
    text = chat.invoke(QUESTION).text
    assert chat.invoke(QUESTION, stop=[text[1:3]]).response_metadata["finish_reason"] == "stop"


async def test_stop_strings_end_an_answer_across_the_borders_of_tokens(chat: ChatKVRag):
    pieces = [chunk.text for chunk in chat.stream(QUESTION, max_tokens=24) if chunk.text]
    text = "".join(pieces)
    border = len("".join(pieces[: len(pieces) // 2]))
    stop = text[border - 2 : border + 2]
    expected = text[: text.index(stop)]
    assert chat.invoke(QUESTION, max_tokens=24, stop=[stop]).text == expected
    assert "".join(chunk.text for chunk in chat.stream(QUESTION, max_tokens=24, stop=[stop])) == expected
    stopping = ChatKVRag(engine=chat.engine, max_tokens=24, stop_sequences=[stop])
    assert (await stopping.ainvoke(QUESTION)).text == expected
    assert stopping.invoke(QUESTION, stop=[]).text == text


def test_tokens_are_reported_once_each_whether_asked_to_stream_or_not(chat: ChatKVRag):
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_llm_new_token(self, token, **_):
            self.seen.append(token)

    for model, ask in ((chat, chat.stream), (chat.model_copy(update={"streaming": True}), None)):
        tokens = Tokens()
        if ask is None:
            model = ChatKVRag(engine=chat.engine, max_tokens=12, streaming=True)
            text = model.invoke(QUESTION, {"callbacks": [tokens]}).text
        else:
            text = joined(list(ask(QUESTION, {"callbacks": [tokens]}))).text
        assert "".join(tokens.seen) == text
        assert len(tokens.seen) > 2


async def test_events_of_a_chain_carry_the_same_pieces(chat: ChatKVRag):
    events = [event async for event in chat.astream_events(QUESTION, version="v2")]
    pieces = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(pieces) == chat.invoke(QUESTION).text


def test_usage_callbacks_count_by_model(chat: ChatKVRag, packet_tokens):
    cached = packet_tokens(CHUNKS[0])
    with get_usage_metadata_callback() as usage:
        chat.batch([QUESTION, QUESTION])
    assert usage.usage_metadata["tiny"]["input_token_details"] == {"cache_read": 2 * cached}


def test_a_batch_shares_passes_through_the_model(chat: ChatKVRag, engine: PacketEngine, monkeypatch):
    passes: list[int] = []
    forward = engine.model.forward
    monkeypatch.setattr(
        engine.model, "forward", lambda rows, **options: passes.append(len(rows)) or forward(rows, **options)
    )
    chat.batch([QUESTION] * 4, {"max_concurrency": 4}, max_tokens=20)
    assert max(passes) > 1
    assert len(passes) < 4 * 20


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_both_forms_of_message_content_hold_the_same_text(chat: ChatKVRag, version: str):
    model = ChatKVRag(engine=chat.engine, max_tokens=12, output_version=version)
    assert model.invoke(QUESTION).text == joined(list(model.stream(QUESTION))).text == chat.invoke(QUESTION).text
