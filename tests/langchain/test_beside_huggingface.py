"""What users of LangChain's own integration for local models have, beside ChatKVRag over the same model."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("langchain_huggingface")

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnablePassthrough
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_kvrag import ChatKVRag
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LogitsProcessorList, PreTrainedTokenizerFast, pipeline

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from tests.conftest import CHUNKS, TINY, build_model
from tests.langchain.conftest import PROMPT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

QUESTION = "When was the lighthouse of Corran Head lit?"
REPAIRED = "the other integration has been repaired; say so in docs"
TOKENS = 16


class Count:
    """A logits processor: how many tokens were computed, and of which prompt."""

    def __init__(self) -> None:
        self.tokens = 0
        self.prompt: list[int] = []

    def __call__(self, input_ids, scores):
        self.prompt = self.prompt or input_ids[0].tolist()
        self.tokens += 1
        return scores


def chat_over(model, tokenizer, count: Count, tokens: int = TOKENS) -> ChatHuggingFace:
    model.generation_config.eos_token_id = None  # a random model's answers have the length asked for
    generate = pipeline(
        "text-generation",
        model=model,
        tokenizer=tokenizer,
        max_new_tokens=tokens,
        do_sample=False,
        return_full_text=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([count]),
    )
    return ChatHuggingFace(llm=HuggingFacePipeline(pipeline=generate), tokenizer=tokenizer, model_id="tiny")


@pytest.fixture
def count() -> Count:
    return Count()


@pytest.fixture
def theirs(hf_tokenizer, count) -> Callable[..., ChatHuggingFace]:
    return lambda tokens=TOKENS: chat_over(build_model(LlamaConfig(**TINY)), hf_tokenizer, count, tokens)


@pytest.fixture
def ours(engine, monkeypatch) -> ChatKVRag:
    monkeypatch.setattr(engine.model, "stop_ids", frozenset())
    return ChatKVRag(engine=engine, max_tokens=TOKENS)


def test_full_recompute_answers_as_it_does(theirs, ours, packet_tokens):
    packet_tokens(*CHUNKS)
    documents = [Document(text) for text in CHUNKS]
    answers = []
    for chat in (theirs(), ours.bind(strategy="full-recompute")):
        context = {
            "context": lambda _: "\n\n".join(d.page_content for d in documents),
            "question": RunnablePassthrough(),
        }
        answers.append((context | PROMPT | chat).invoke(QUESTION).text)
    cut = "\N{REPLACEMENT CHARACTER}"  # bytes of a character that the last token left unfinished; ours leaves them out
    assert answers[0].rstrip(cut) == answers[1].rstrip(cut) != ""


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_stop_strings_longer_than_a_token_end_the_answer(way, ours):
    whole = ours.invoke(QUESTION).text
    stop = whole[3:9]
    assert len(ours.get_token_ids(stop)) > 1
    if way == "invoke":
        text = ours.invoke(QUESTION, stop=[stop]).text
    elif way == "ainvoke":
        text = (await ours.ainvoke(QUESTION, stop=[stop])).text
    elif way == "stream":
        text = "".join(chunk.text for chunk in ours.stream(QUESTION, stop=[stop]))
    else:
        text = "".join([chunk.text async for chunk in ours.astream(QUESTION, stop=[stop])])
    assert text == whole[: whole.index(stop)]


def test_theirs_goes_on_behind_stop_strings(theirs, count):
    chat = theirs()
    whole = chat.invoke(QUESTION).text
    count.tokens = 0
    assert chat.invoke(QUESTION, stop=[whole[3:9]]).text == whole, REPAIRED
    assert "".join(chunk.text for chunk in chat.stream(QUESTION, stop=[whole[3:9]])) == whole, REPAIRED
    assert count.tokens == 2 * TOKENS


def test_a_template_that_writes_the_first_token_is_not_given_a_second_one(hf_tokenizer, tmp_path, count):
    """As Llama's and Gemma's do: both the template and the tokenizer begin with it."""
    hf_tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    first, bos = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, bos)])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    chat_over(build_model(LlamaConfig(**TINY)), tokenizer, count).invoke(QUESTION)
    assert count.prompt[:2] == [bos, bos], REPAIRED

    model, given = LanguageModel(build_model(LlamaConfig(**TINY)), tokenizer, name="tiny"), Count()
    with (
        PacketStore(tmp_path / "store") as store,
        PacketEngine(model, store=store, adapter="none", strategy="no-recompute", computed_bytes=0) as engine,
    ):
        ChatKVRag(engine=engine, max_tokens=1).invoke(QUESTION, logits_processor=[given])
    assert given.prompt == count.prompt[1:]


async def test_asynchronous_calls_answer_and_leave_the_event_loop_alone(theirs, ours):
    with pytest.raises(NotImplementedError):
        await theirs().ainvoke(QUESTION)
    with pytest.raises(AttributeError):
        await anext(theirs().astream(QUESTION))

    asking, rounds = asyncio.create_task(ours.ainvoke(QUESTION)), 0
    while not asking.done():
        await asyncio.sleep(0)
        rounds += 1
    assert (await asking).text == ours.invoke(QUESTION).text
    assert rounds > TOKENS


def computed_after_closing(stream: Iterator, count: Count) -> int:
    """Tokens that were computed for nobody, behind the pass that was on its way; returns when no more come."""
    next(stream)
    stream.close()
    time.sleep(0.05)
    before, last = count.tokens, -1
    while last != count.tokens:
        last = count.tokens
        time.sleep(0.2)
    return last - before


def test_a_stream_that_is_closed_ends_the_computation(theirs, ours, count):
    long = 400
    assert computed_after_closing(theirs(long).stream(QUESTION), count) > 0, REPAIRED
    own = Count()
    closed = ours.bind(logits_processor=[own], max_tokens=long).stream(QUESTION)
    computed_after_closing(closed, own)
    assert own.tokens < long / 2


def test_usage_and_the_reason_for_the_end_are_told(theirs, ours, packet_tokens):
    assert theirs().invoke(QUESTION).usage_metadata is None, REPAIRED
    packets = packet_tokens(CHUNKS[0])
    answer = ours.invoke(f"{CHUNKS[0]}\n\n{QUESTION}")
    assert answer.usage_metadata["output_tokens"] == TOKENS
    assert answer.usage_metadata["input_token_details"] == {"cache_read": packets}
    assert answer.response_metadata["finish_reason"] == "length"


def test_options_of_a_call_are_kept(theirs, ours, count):
    theirs().invoke(QUESTION, max_tokens=3)
    assert count.tokens == TOKENS, REPAIRED
    assert ours.invoke(QUESTION, max_tokens=3).usage_metadata["output_tokens"] == 3


def test_a_conversation_may_end_with_what_a_tool_found(theirs, ours):
    call = {"name": "search", "args": {"query": "lighthouse"}, "id": "1"}
    turns = [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), ToolMessage(CHUNKS[0], tool_call_id="1")]
    with pytest.raises(ValueError, match="HumanMessage"):
        theirs().invoke(turns)
    assert ours.invoke(turns).text
