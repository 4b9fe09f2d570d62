"""Which of LlamaIndex's ways to an answer attach the packets of everything that was retrieved."""

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index_kvrag import KVRagLLM, KVRagTransform

from tests.conftest import CHUNKS
from tests.llama_index.conftest import METADATA, QUESTION, chunk_nodes, packet_tokens

TOP = len(CHUNKS)
STREAMED = ("compact", "refine", "tree_summarize")
MODES = (*STREAMED, "accumulate", "compact_accumulate")  # LlamaIndex does not stream the last two


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
    assert recorder.attached_whole(engine, nodes)
    assert len(recorder.starts) == (TOP if mode in ("refine", "accumulate") else 1)


@pytest.mark.parametrize("mode", MODES)
async def test_asynchronous_queries_attach_as_much(mode, engine, llm, index, recorder):
    query_engine = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=TOP)
    assert (await query_engine.aquery(QUESTION)).response is not None
    assert recorder.attached_whole(engine, chunk_nodes())


@pytest.mark.parametrize("mode", STREAMED)
async def test_streaming_queries_attach_as_much_and_answer_the_same(mode, engine, llm, index, recorder):
    expected = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=TOP).query(QUESTION).response
    recorder.clear()
    query_engine = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=TOP, streaming=True)
    assert "".join(query_engine.query(QUESTION).response_gen) == expected
    assert recorder.attached_whole(engine, chunk_nodes())

    recorder.clear()
    streamed = await query_engine.aquery(QUESTION)
    assert "".join([piece async for piece in streamed.async_response_gen()]) == expected
    assert recorder.attached_whole(engine, chunk_nodes())


@pytest.mark.parametrize("is_chat_model", [True, False], ids=["chat", "completion"])
async def test_simple_summarize_is_computed_as_text_and_says_so_once(is_chat_model, engine, index, recorder, caplog):
    """It writes a list into the prompt, where what was a line feed in a chunk is a backslash and a letter."""
    nodes = [TextNode(text=f"{chunk}\n{chunk}") for chunk in CHUNKS]
    llm = KVRagLLM(engine, max_tokens=6, is_chat_model=is_chat_model)
    synthesizer = get_response_synthesizer(llm=llm, response_mode=ResponseMode.SIMPLE_SUMMARIZE)
    found = [NodeWithScore(node=node) for node in nodes]
    answer = str(synthesizer.synthesize(QUESTION, found))
    start = recorder.starts[0]
    prompt = llm.render(start.messages) if is_chat_model else start.prompt
    assert answer == engine.generate(prompt, max_new_tokens=6).text
    await synthesizer.asynthesize(QUESTION, found)
    streaming = get_response_synthesizer(llm=llm, response_mode=ResponseMode.SIMPLE_SUMMARIZE, streaming=True)
    assert "".join(streaming.synthesize(QUESTION, found).response_gen) == answer
    said = [record.getMessage() for record in caplog.records if record.name.startswith("llama_index_kvrag")]
    assert len(said) == 1
    assert "response_mode='compact'" in said[0]


def test_no_other_mode_says_anything(llm, index, caplog):
    for mode in MODES:
        index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=2).query(QUESTION)
    assert not [record for record in caplog.records if record.name.startswith("llama_index_kvrag")]


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
