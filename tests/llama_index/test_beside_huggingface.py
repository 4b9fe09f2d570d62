"""What users of LlamaIndex's own integration for local models have, beside KVRagLLM over the same model."""

import asyncio

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.huggingface import HuggingFaceLLM
from llama_index_kvrag import KVRagLLM
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from tests.conftest import CHUNKS, TINY, build_model
from tests.llama_index.conftest import QUESTION

MESSAGES = [ChatMessage(content="Be brief.", role="system"), ChatMessage(content=QUESTION, role="user")]


def theirs(model, tokenizer, **options) -> HuggingFaceLLM:
    return HuggingFaceLLM(
        model=model,
        tokenizer=tokenizer,
        context_window=4096,
        is_chat_model=True,
        max_new_tokens=options.pop("max_new_tokens", 8),
        generate_kwargs={"do_sample": False, "pad_token_id": 0},
        **options,
    )


@pytest.fixture
def model():
    return build_model(LlamaConfig(**TINY))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_full_recompute_answers_as_it_does(model, hf_tokenizer, index, engine):
    ours = KVRagLLM(engine, max_tokens=8, strategy="full-recompute")
    answers = [
        index.as_query_engine(llm=llm, similarity_top_k=len(CHUNKS), response_mode=mode).query(QUESTION).response
        for mode in ("compact", "tree_summarize")  # one call each; refine has answers in its prompts
        for llm in (ours, theirs(model, hf_tokenizer))
    ]
    cut = "\N{REPLACEMENT CHARACTER}"  # bytes of a character that the last token left unfinished; ours leaves them out
    assert answers[0].rstrip(cut) == answers[1].rstrip(cut) != ""
    assert answers[2].rstrip(cut) == answers[3].rstrip(cut) != ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_template_that_writes_the_first_token_is_not_given_a_second_one(hf_tokenizer, tmp_path, monkeypatch):
    """As Llama's and Gemma's do: both the template and the tokenizer begin with it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(save(hf_tokenizer, tmp_path / "tokenizer"))
    bos = tokenizer.bos_token_id
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    model = build_model(LlamaConfig(**TINY))
    given: list[list[int]] = []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **inputs: given.append(inputs["input_ids"][0].tolist()) or generate(**inputs)
    )
    theirs(model, tokenizer, max_new_tokens=1).chat(MESSAGES)
    assert given[0][:2] == [bos, bos], "the other integration has been repaired; say so in docs"

    loaded = LanguageModel(build_model(LlamaConfig(**TINY)), tokenizer, name="tiny")
    with (
        PacketStore(tmp_path / "store") as store,
        PacketEngine(loaded, store=store, adapter="none", strategy="no-recompute", computed_bytes=0) as engine,
    ):
        usage = KVRagLLM(engine, max_tokens=1).chat(MESSAGES).raw["usage"]
        assert usage["prompt_tokens"] == len(given[0]) - 1


def save(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_stop_strings_longer_than_a_token_end_the_answer(name, engine):
    llm = KVRagLLM(engine, max_tokens=16)
    whole = llm.chat(MESSAGES).message.content
    stop = whole[3:9]
    assert len(engine.model.tokenizer.encode(stop)) > 1
    response = getattr(llm, name)(MESSAGES, stop=[stop])
    if name.startswith("a"):
        response = await response
    if "stream" in name:
        response = [each async for each in response][-1] if name.startswith("a") else list(response)[-1]
    assert response.message.content == whole[: whole.index(stop)]
    assert response.raw["finish_reason"] == "stop"


async def test_cancelled_queries_end_in_the_engine(engine, index, passes):
    llm = KVRagLLM(engine, max_tokens=3000)
    query = asyncio.create_task(index.as_query_engine(llm=llm, similarity_top_k=2).aquery(QUESTION))
    while len(passes) < 3:
        await asyncio.sleep(0.001)
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await query
    await engine.agenerate("x", max_new_tokens=1)
    assert passes[-1] == 1
    assert len(passes) < 1000


async def test_the_event_loop_runs_during_queries(engine, index):
    """Counted in rounds of the loop between the beginning and the end of an answer."""
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    llm = KVRagLLM(engine, max_tokens=8)
    await llm.achat(MESSAGES)
    counting.cancel()
    assert rounds > 8
