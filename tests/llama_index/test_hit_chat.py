"""Chat engines attach the packets of what every turn retrieves, whichever of their four methods is called."""

import pytest

from tests.conftest import CHUNKS
from tests.llama_index.conftest import QUESTION, chunk_nodes, memory

MODES = ("context", "condense_plus_context")
WAYS = ("chat", "stream_chat", "achat", "astream_chat")


async def say(chat, way: str, message: str) -> str:
    """The whole answer of a turn."""
    response = getattr(chat, way)(message)
    if way.startswith("a"):
        response = await response
    if way == "stream_chat":
        return "".join(response.response_gen)
    if way == "astream_chat":
        return "".join([piece async for piece in response.async_response_gen()])
    return response.response


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
async def test_both_turns_attach_every_retrieved_chunk(way, mode, engine, llm, index, recorder):
    chat = index.as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=len(CHUNKS), memory=memory())
    first = await say(chat, way, QUESTION)
    assert first == recorder.ends[-1].response.message.content
    assert recorder.attached_whole(engine, chunk_nodes())
    assert len(recorder.starts) == 1

    recorder.clear()
    await say(chat, way, "And who keeps it now?")
    assert recorder.attached_whole(engine, chunk_nodes())
    assert len(recorder.starts) == len(recorder.ends) == (2 if mode == "condense_plus_context" else 1)
    assert [message.content for message in chat.chat_history[:3]] == [QUESTION, first, "And who keeps it now?"]


@pytest.mark.parametrize("mode", MODES)
async def test_all_ways_answer_the_same(mode, llm, index):
    answers = set()
    for way in WAYS:
        chat = index.as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=2, memory=memory())
        answers.add(await say(chat, way, QUESTION))
    assert len(answers) == 1
