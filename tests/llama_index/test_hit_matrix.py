"""Which of LlamaIndex's ways to an answer attach the packets of everything that was retrieved."""

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine
from llama_index_kvrag import KVRagLLM, KVRagTransform

from tests.conftest import CHUNKS
from tests.llama_index.conftest import METADATA, QUESTION, chunk_nodes, packet_tokens

TOP = len(CHUNKS)
MODES = ("compact", "refine", "tree_summarize", "accumulate", "compact_accumulate")


def memory() -> ChatMemoryBuffer:
    """LlamaIndex's default one never closes its SQLite connection."""
    return ChatMemoryBuffer.from_defaults(token_limit=2000, tokenizer_fn=str.split)


def attached_whole(recorder, engine, nodes) -> bool:
    expected = packet_tokens(engine, nodes)
    return expected > 0 and recorder.cached_tokens == expected


@pytest.mark.parametrize("with_metadata", [0, 1], ids=["plain", "metadata"])
@pytest.mark.parametrize("is_chat_model", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("mode", MODES)
def test_query_engine_attaches_every_retrieved_chunk(
    mode, is_chat_model, with_metadata, engine, llm, indices, recorder
):
    nodes = chunk_nodes(**METADATA[with_metadata])
    llm.is_chat_model = is_chat_model
    query_engine = indices[with_metadata].as_query_engine(llm=llm, response_mode=mode, similarity_top_k=TOP)
    assert query_engine.query(QUESTION).response is not None
    assert attached_whole(recorder, engine, nodes)
    assert len(recorder.starts) == (TOP if mode in ("refine", "accumulate") else 1)


@pytest.mark.parametrize("mode", MODES)
async def test_asynchronous_and_streaming_queries_attach_as_much(mode, engine, llm, index, recorder):
    expected = packet_tokens(engine, chunk_nodes())
    response = await index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=TOP).aquery(QUESTION)
    assert recorder.cached_tokens == expected
    if mode in ("accumulate", "compact_accumulate"):
        return  # LlamaIndex does not stream them
    recorder.clear()
    streamed = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=TOP, streaming=True).query(QUESTION)
    assert "".join(streamed.response_gen) == response.response
    assert recorder.cached_tokens == expected


def test_simple_summarize_writes_a_list_into_the_prompt_and_is_computed_as_text(engine, llm, index, recorder):
    query_engine = index.as_query_engine(llm=llm, response_mode="simple_summarize", similarity_top_k=TOP)
    answer = query_engine.query(QUESTION).response
    assert 0 <= recorder.cached_tokens < packet_tokens(engine, chunk_nodes())
    prompt = llm.render(recorder.starts[0].messages)
    assert answer == engine.generate(prompt, max_new_tokens=llm.max_tokens).text


def test_context_chat_attaches_the_chunks_of_every_turn(engine, llm, index, recorder):
    chat = index.as_chat_engine(chat_mode="context", llm=llm, similarity_top_k=TOP, memory=memory())
    chat.chat(QUESTION)
    assert attached_whole(recorder, engine, chunk_nodes())
    recorder.clear()
    chat.chat("And who keeps it now?")
    assert attached_whole(recorder, engine, chunk_nodes())


def test_condense_plus_context_chat_attaches_the_chunks_of_every_turn(engine, llm, index, recorder):
    chat = index.as_chat_engine(chat_mode="condense_plus_context", llm=llm, similarity_top_k=TOP, memory=memory())
    chat.chat(QUESTION)
    assert attached_whole(recorder, engine, chunk_nodes())
    recorder.clear()
    chat.chat("And who keeps it now?")  # the question is condensed first, in a prompt without chunks
    assert len(recorder.starts) == 2
    assert attached_whole(recorder, engine, chunk_nodes())


async def test_streaming_chat_attaches_them_too(engine, llm, index, recorder):
    chat = index.as_chat_engine(chat_mode="context", llm=llm, similarity_top_k=TOP, memory=memory())
    streamed = "".join(chat.stream_chat(QUESTION).response_gen)
    assert attached_whole(recorder, engine, chunk_nodes())
    recorder.clear()
    chat.reset()
    response = await chat.astream_chat(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == streamed
    assert attached_whole(recorder, engine, chunk_nodes())


def test_citation_engine_attaches_chunks_that_it_does_not_split(engine, llm, index, recorder):
    citing = CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=TOP, citation_chunk_size=512)
    citing.query(QUESTION)
    assert attached_whole(recorder, engine, chunk_nodes())


@pytest.mark.parametrize("with_metadata", [0, 1], ids=["plain", "metadata"])
def test_answers_are_the_engines_own(with_metadata, engine, llm, indices, recorder):
    answer = indices[with_metadata].as_query_engine(llm=llm, similarity_top_k=3).query(QUESTION).response
    prompt = engine.model.render([{"role": m.role.value, "content": m.content} for m in recorder.starts[0].messages])
    direct = engine.generate(prompt, max_new_tokens=llm.max_tokens)
    assert answer == direct.text
    assert recorder.cached_tokens == direct.usage.cached_tokens > 0


def test_one_index_serves_full_recompute_and_packets(engine, llm, index, recorder):
    plain = KVRagLLM(engine, strategy="full-recompute", max_tokens=llm.max_tokens)
    answer = index.as_query_engine(llm=plain, similarity_top_k=TOP).query(QUESTION).response
    assert recorder.cached_tokens == 0
    assert recorder.ends[0].response.raw["strategy"] == "full-recompute"
    prompt = plain.render(recorder.starts[0].messages)
    assert answer == engine.generate(prompt, strategy="full-recompute", max_new_tokens=llm.max_tokens).text

    index.as_query_engine(llm=llm, similarity_top_k=TOP).query(QUESTION)
    assert recorder.cached_tokens == packet_tokens(engine, chunk_nodes())
    assert recorder.ends[1].response.raw["strategy"] == "no-recompute"


def test_an_emptied_store_costs_tokens_and_not_the_answer(new_engine, index, recorder):
    engine = new_engine(computed_bytes=0)
    KVRagTransform(engine)(chunk_nodes())
    query_engine = index.as_query_engine(llm=KVRagLLM(engine, max_tokens=6), similarity_top_k=TOP)
    query_engine.query(QUESTION)
    assert recorder.cached_tokens > 0
    recorder.clear()
    for row in list(engine.store.ls()):
        engine.store.remove(row.key)
    answer = query_engine.query(QUESTION).response
    assert recorder.cached_tokens == 0
    prompt = KVRagLLM(engine).render(recorder.starts[0].messages)
    assert answer == engine.generate(prompt, strategy="full-recompute", max_new_tokens=6).text


def test_history_messages_keep_their_additional_kwargs_out_of_the_prompt(llm):
    message = ChatMessage(content="Good evening.", role="assistant", additional_kwargs={"secret": "leak"})
    assert "leak" not in llm.render([message])
