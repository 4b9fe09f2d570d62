"""The LLM itself: one path to every answer, and what LlamaIndex expects around it."""

import asyncio
import pickle
import threading
from itertools import accumulate

import pytest
from llama_index.core import PromptTemplate, Settings
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.llms import ChatMessage, MessageRole, MockLLM
from llama_index.core.llms.custom import CustomLLM
from llama_index_kvrag import KVRagLLM, KVRagPostprocessor, KVRagTransform, WholeChunkPromptHelper
from pydantic import BaseModel

from kvrag.errors import EngineError, PromptError, SettingsError
from tests.conftest import CHUNKS
from tests.llama_index.conftest import QUESTION, chunk_nodes, packet_tokens

MESSAGES = [ChatMessage(content="Be brief.", role="system"), ChatMessage(content=QUESTION, role="user")]
PUBLIC = (
    "complete", "stream_complete", "acomplete", "astream_complete", "chat", "stream_chat", "achat", "astream_chat",
)  # fmt: skip


async def call(llm, name, prompt=QUESTION, messages=MESSAGES, **kwargs):
    """All responses of one of the eight methods."""
    made = getattr(llm, name)(messages if "chat" in name else prompt, **kwargs)
    if name.startswith("a"):
        made = await made
    if "stream" not in name:
        return [made]
    return [each async for each in made] if name.startswith("a") else list(made)


def text(response) -> str:
    return response.message.content if hasattr(response, "message") else response.text


@pytest.mark.parametrize("name", PUBLIC)
async def test_eight_methods_agree(name, llm, engine):
    prompt = MESSAGES if "chat" in name else [ChatMessage(content=QUESTION)]
    expected = engine.generate(llm.render(prompt), max_new_tokens=6)
    responses = await call(llm, name)
    assert text(responses[-1]) == expected.text
    raw = responses[-1].raw
    assert raw["usage"] == {
        "prompt_tokens": expected.usage.prompt_tokens,
        "completion_tokens": 6,
        "total_tokens": expected.usage.prompt_tokens + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (raw["finish_reason"], raw["strategy"]) == ("length", "no-recompute")
    assert raw["timings"]["first_token_ms"] > 0
    if "stream" in name:
        assert "".join(r.delta for r in responses) == expected.text
        assert len(responses) > 2
        assert [text(r) for r in responses] == list(accumulate(r.delta for r in responses))


@pytest.mark.parametrize("name", PUBLIC)
async def test_a_call_is_one_start_and_one_end(name, llm, recorder):
    await call(llm, name)
    assert len(recorder.starts) == len(recorder.ends) == 1
    assert isinstance(recorder.starts[0], LLMChatStartEvent) == ("chat" in name)
    assert recorder.starts[0].model_dict["class_name"] == "KVRagLLM"


@pytest.mark.parametrize("name", PUBLIC)
async def test_a_call_that_fails_is_one_start_and_one_end_too(name, engine, recorder, monkeypatch):
    """LlamaIndex has no end event for calls that fail; its callback manager has one, which carries the exception."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = KVRagLLM(engine, max_tokens=6, callback_manager=CallbackManager([debug]))
    forward, passes = engine.model.forward, []

    def fail_in_the_third_pass(rows, **options):
        passes.append(rows)
        if len(passes) == 3:
            raise RuntimeError("out of memory")
        return forward(rows, **options)

    monkeypatch.setattr(engine.model, "forward", fail_in_the_third_pass)
    with pytest.raises(Exception, match="out of memory"):
        await call(llm, name)
    assert (len(recorder.starts), len(recorder.ends)) == (1, 0)
    ((start, end),) = debug.get_event_pairs(CBEventType.LLM)
    assert "out of memory" in str(end.payload[EventPayload.EXCEPTION])
    assert text((await call(llm, name))[-1])  # the engine goes on


@pytest.mark.parametrize("name", PUBLIC)
async def test_options_of_a_call_reach_the_engine(name, llm):
    whole = text((await call(llm, name, max_tokens=12))[-1])
    responses = await call(llm, name, max_new_tokens=12, stop=[whole[3]], extra_headers={"x": "y"}, seed=None)
    assert text(responses[-1]) == whole[: whole.index(whole[3])]
    assert responses[-1].raw["finish_reason"] == "stop"
    sampled = [text((await call(llm, name, temperature=2.0, seed=seed))[-1]) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert (await call(llm, name, strategy="full-recompute"))[-1].raw["strategy"] == "full-recompute"


def test_a_query_in_doubt_falls_back_and_says_so(llm, engine):
    engine.build(CHUNKS[:2], strategy="kv-packet")
    for confidence, fell_back in ((1, True), (1e-9, False)):
        raw = llm.complete("\n".join(CHUNKS[:2]) + QUESTION, strategy=f"kv-packet:confidence={confidence}").raw
        assert raw["fell_back"] is fell_back
        assert (raw["usage"]["prompt_tokens_details"]["cached_tokens"] == 0) is fell_back


def test_a_query_answered_from_the_packets_it_attends_to_most_says_which(llm, engine):
    engine.build(CHUNKS[:2], strategy="kv-packet")
    one, all = (
        llm.complete("\n".join(CHUNKS[:2]) + QUESTION, strategy=strategy).raw
        for strategy in ("kv-packet:top_n=1", "kv-packet")
    )
    assert one["kept"] in ([0], [1])
    assert all["kept"] is None


@pytest.mark.parametrize("name", PUBLIC)
async def test_unknown_options_are_refused(name, llm):
    with pytest.raises(SettingsError, match="max_token"):
        await call(llm, name, max_token=3)


@pytest.mark.parametrize("name", [name for name in PUBLIC if "chat" not in name])
async def test_formatted_strings_are_taken_as_they_are(name, llm, recorder):
    prompt = engine_prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    ready = (await call(llm, name, prompt=engine_prompt, formatted=True))[-1]
    assert ready.raw["usage"] == (await call(llm, name))[-1].raw["usage"]
    assert text(ready) == llm.engine.generate(prompt, max_new_tokens=6).text


def test_predict_applies_the_chat_template_once(llm, recorder):
    template = PromptTemplate("Say {word}.")
    as_chat = llm.predict(template, word="ferry")
    llm.is_chat_model = False
    assert llm.predict(template, word="ferry") == as_chat
    assert recorder.starts[1].prompt == llm.render(recorder.starts[0].messages)
    assert recorder.starts[1].prompt.count("<|im_start|>") == 2


def test_a_system_prompt_is_a_system_message_on_both_ways(engine, recorder):
    template = PromptTemplate("Say {word}.")
    for is_chat_model in (True, False):
        llm = KVRagLLM(engine, max_tokens=2, system_prompt="Be brief.", is_chat_model=is_chat_model)
        llm.predict(template, word="x")
    assert recorder.starts[1].prompt == llm.render(recorder.starts[0].messages)
    assert recorder.starts[1].prompt.startswith("<|im_start|>system\nBe brief.")


def test_users_may_bring_their_own_prompt_functions(engine, recorder):
    llm = KVRagLLM(
        engine,
        max_tokens=2,
        is_chat_model=False,
        system_prompt="Be brief.",
        completion_to_prompt=lambda prompt: f"[{prompt}]",
        messages_to_prompt=lambda messages: "none",
    )
    llm.predict(PromptTemplate("Say {word}."), word="ferry")
    assert recorder.starts[0].prompt == "Be brief.\n\n[Say ferry.]"
    assert llm.render(MESSAGES) == "none"
    assert llm.complete("x").text == engine.generate("[x]", max_new_tokens=2).text


def test_a_model_without_chat_template_reads_strings_as_they_are(engine, llm, hf_tokenizer, monkeypatch):
    monkeypatch.setattr(engine.model._chat_tokenizer, "chat_template", None)
    assert llm.complete(QUESTION).text == engine.generate(QUESTION, max_new_tokens=6).text


def test_roles_that_templates_do_not_know_are_translated(llm):
    roles = (MessageRole.DEVELOPER, MessageRole.CHATBOT, MessageRole.MODEL, MessageRole.FUNCTION)
    prompt = llm.render([ChatMessage(content="x", role=role) for role in roles])
    assert [part.split("\n")[0] for part in prompt.split("<|im_start|>")[1:5]] == [
        "system", "assistant", "assistant", "tool",
    ]  # fmt: skip


def test_images_are_refused(llm):
    image = ChatMessage(blocks=[TextBlock(text="What is this?"), ImageBlock(image=b"x")])
    with pytest.raises(PromptError, match="ImageBlock"):
        llm.chat([image])


@pytest.mark.parametrize("name", PUBLIC)
async def test_token_counting_handler_reads_the_usage(name, engine):
    counter = TokenCountingHandler(tokenizer=lambda text: [])
    llm = KVRagLLM(engine, max_tokens=5, callback_manager=CallbackManager([counter]))
    usage = (await call(llm, name))[-1].raw["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] > 0
    assert counter.completion_llm_token_count == usage["completion_tokens"] == 5
    assert len(counter.llm_token_counts) == 1


@pytest.mark.parametrize("way", ["close", "drop"])
@pytest.mark.parametrize("name", ["stream_complete", "stream_chat", "astream_complete", "astream_chat"])
async def test_leaving_a_stream_ends_its_generation(name, way, engine, passes, recorder):
    """Also while handlers keep the exception, and with it the frames of LlamaIndex's wrapper."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = KVRagLLM(engine, max_tokens=3000, callback_manager=CallbackManager([debug]))
    made = getattr(llm, name)(MESSAGES if "chat" in name else QUESTION)
    if name.startswith("a"):
        made = await made
        await anext(made)
        if way == "close":
            await made.aclose()
    else:
        next(made)
        if way == "close":
            made.close()
    del made
    for _ in range(3):  # an event loop closes dropped generators in one of its next rounds
        await asyncio.sleep(0)
    await engine.agenerate("x", max_new_tokens=1)
    assert passes[-1] == 1
    assert len(passes) < 1000


async def test_cancelling_a_task_ends_its_generation(engine, llm, passes):
    task = asyncio.create_task(llm.acomplete(QUESTION, max_tokens=3000))
    while len(passes) < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.agenerate("x", max_new_tokens=1)
    assert passes[-1] == 1


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.startswith("a")])
async def test_the_event_loop_runs_while_the_model_computes(name, llm, engine, monkeypatch):
    gate, forward = threading.Event(), engine.model.forward

    def wait_for_the_loop(rows, **options):
        assert gate.wait(20), "the event loop is blocked"
        return forward(rows, **options)

    monkeypatch.setattr(engine.model, "forward", wait_for_the_loop)

    async def open_gate():
        await asyncio.sleep(0.02)
        gate.set()

    responses, _ = await asyncio.gather(call(llm, name), open_gate())
    assert responses[-1].raw["usage"]["completion_tokens"] == 6


async def test_concurrent_calls_share_the_engine(llm):
    alone = [llm.complete(word, max_tokens=4).text for word in ("ferry", "bell", "bread")]
    together = await asyncio.gather(*(llm.acomplete(word, max_tokens=4) for word in ("ferry", "bell", "bread")))
    assert [response.text for response in together] == alone


def test_a_pickled_copy_keeps_its_settings_and_says_that_it_has_no_engine(engine):
    llm = KVRagLLM(engine, max_tokens=7, stop=["\n"], strategy="full-recompute")
    copy = pickle.loads(pickle.dumps(llm))
    assert (copy.to_dict(), copy.metadata) == (llm.to_dict(), llm.metadata)
    for ask in (lambda: copy.complete("x"), lambda: copy.chat(MESSAGES), lambda: copy.engine):
        with pytest.raises(EngineError, match="pickled copy"):
            ask()
    assert llm.complete("x").text


def test_metadata_and_serialised_form(engine):
    llm = KVRagLLM(engine, max_tokens=9, is_chat_model=False)
    assert llm.metadata.context_window == 4096
    assert (llm.metadata.num_output, llm.metadata.model_name, llm.metadata.is_chat_model) == (9, "tiny", False)
    assert not llm.metadata.is_function_calling_model
    assert llm.class_name() == "KVRagLLM"
    assert isinstance(llm, CustomLLM)
    again = KVRagLLM.from_dict(llm.to_dict(), engine=engine)
    assert again.to_dict() == llm.to_dict()
    assert llm.to_payload().items() >= {"class_name": "KVRagLLM", "strategy": None, "model_name": "tiny"}.items()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_token": 3},
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"strategy": "none-such"},
        {"additional_kwargs": {"beams": 4}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_settings_are_refused_at_once(wrong, engine):
    with pytest.raises(SettingsError):
        KVRagLLM(engine, **wrong)


def test_additional_kwargs_stand_between_fields_and_calls(engine):
    llm = KVRagLLM(engine, max_tokens=3, additional_kwargs={"max_tokens": 4})
    assert llm.complete("x").raw["usage"]["completion_tokens"] == 4
    assert llm.complete("x", max_tokens=5).raw["usage"]["completion_tokens"] == 5


class Lighthouse(BaseModel):
    name: str
    year: int


@pytest.mark.parametrize("is_chat_model", [True, False], ids=["chat", "completion"])
async def test_structured_predict_parses_and_attaches(is_chat_model, engine, recorder, say):
    llm = KVRagLLM(engine, max_tokens=6, is_chat_model=is_chat_model)
    say(*['{"name": "Corran Head", "year": 1788}'] * 2, "no JSON")
    prompt = PromptTemplate("{chunk}\n\nWhich lighthouse is it?")
    found = llm.structured_predict(Lighthouse, prompt, chunk=CHUNKS[0])
    assert found == await llm.astructured_predict(Lighthouse, prompt, chunk=CHUNKS[0])
    assert found == Lighthouse(name="Corran Head", year=1788)
    assert recorder.cached_tokens == 2 * packet_tokens(engine, chunk_nodes()[:1]) > 0
    assert len(recorder.starts) == 2
    with pytest.raises(ValueError, match="Could not extract json string"):
        llm.structured_predict(Lighthouse, prompt, chunk=CHUNKS[0])


def test_tokens_of_a_query_are_counted_as_the_engine_counts_them(engine, llm, index, recorder, monkeypatch):
    counter = TokenCountingHandler(tokenizer=lambda text: [])
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([counter]))  # as applications set it
    for streaming in (False, True):
        response = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=streaming).query(QUESTION)
        assert str(response)
    used = [end.response.raw["usage"] for end in recorder.ends]
    assert counter.prompt_llm_token_count == sum(usage["prompt_tokens"] for usage in used)
    assert counter.total_llm_token_count == sum(usage["total_tokens"] for usage in used)
    assert len(counter.llm_token_counts) == 2


@pytest.mark.parametrize("component", [KVRagLLM, KVRagTransform, KVRagPostprocessor])
def test_what_is_no_engine_is_named(component):
    with pytest.raises(SettingsError, match="expected a PacketEngine, found 'demo'"):
        component("demo")


def test_a_helper_for_another_llm_is_refused():
    with pytest.raises(SettingsError, match="expected a KVRagLLM, found a MockLLM"):
        WholeChunkPromptHelper.from_llm(MockLLM())


def test_the_length_of_answers_has_transformers_name_too(engine):
    assert KVRagLLM(engine, max_new_tokens=3).max_tokens == 3
    assert KVRagLLM(engine, max_new_tokens=3, max_tokens=4).max_tokens == 4
    assert KVRagLLM(engine, max_new_tokens=3).metadata.num_output == 3
