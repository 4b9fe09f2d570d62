"""LangChain's messages as the model's template gets them."""

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_kvrag import ChatKVRag, docs_to_messages
from langchain_kvrag.messages import read_messages
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from kvrag.errors import PromptError
from kvrag.model import LanguageModel
from tests.conftest import CHAT_TEMPLATE, TINY, build_model


def turns(*messages):
    return read_messages(messages)[0]


def test_roles_take_the_templates_names():
    assert turns(SystemMessage("s"), HumanMessage("h"), AIMessage("a"), ChatMessage("c", role="critic")) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "h"},
        {"role": "assistant", "content": "a"},
        {"role": "critic", "content": "c"},
    ]
    assert turns(AIMessageChunk(content="a"))[0]["role"] == "assistant"


def test_neighbours_of_one_role_become_one_message():
    assert turns(HumanMessage("one"), HumanMessage("", name="x"), HumanMessage("two"), AIMessage("a")) == [
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": "a"},
    ]


def test_tool_calls_and_their_answers_stay_apart():
    call = {"name": "look_up", "args": {"word": "moat"}, "id": "1", "type": "tool_call"}
    asked = AIMessage("", tool_calls=[call])
    read = turns(asked, ToolMessage("12 metres", tool_call_id="1"), ToolMessage("wet", tool_call_id="2", name="look"))
    assert read[0]["tool_calls"] == [
        {"type": "function", "id": "1", "function": {"name": "look_up", "arguments": {"word": "moat"}}}
    ]
    assert read[1:] == [
        {"role": "tool", "content": "12 metres", "tool_call_id": "1"},
        {"role": "tool", "content": "wet", "tool_call_id": "2", "name": "look"},
    ]


def test_text_blocks_are_joined_without_anything_between_them():
    blocks = [{"type": "text", "text": "The moat"}, " is ", {"type": "text", "text": "wide."}]
    assert turns(HumanMessage(content=blocks)) == [{"role": "user", "content": "The moat is wide."}]
    thinking = [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Wide."}]
    assert turns(AIMessage(content=thinking)) == [{"role": "assistant", "content": "Wide."}]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image", "url": "https://example.org/moat.png"}, "image"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image"),
        ({"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}, "audio"),
        ({"type": "reasoning", "reasoning": "A human does not send this."}, "reasoning"),
        ({"type": "kv_packet", "id": "1"}, "kv_packet"),
    ],
)
def test_blocks_that_are_not_text_are_refused_by_type(block, kind: str):
    with pytest.raises(PromptError, match=f"HumanMessage, found one of type '{kind}'"):
        turns(HumanMessage(content=[{"type": "text", "text": "What is this?"}, block]))


def test_messages_without_a_role_are_refused_by_type():
    with pytest.raises(PromptError, match="RemoveMessage"):
        turns(RemoveMessage(id="1"))
    with pytest.raises(PromptError, match="FunctionMessage"):
        turns(FunctionMessage("x", name="f"))
    with pytest.raises(PromptError, match="at least one"):
        turns()


def test_documents_are_told_apart_from_the_text_around_them():
    messages = docs_to_messages([Document(" one\n"), Document("two")])
    assert read_messages(messages) == ([{"role": "user", "content": "one\n\ntwo"}], ["one", "two"])
    assert messages == docs_to_messages([Document("one"), Document("two")])  # LangChain's caches compare them
    assert read_messages([*docs_to_messages([]), HumanMessage("q")]) == ([{"role": "user", "content": "q"}], [])


def test_the_model_gets_the_prompt_that_its_template_makes(chat: ChatKVRag, monkeypatch):
    seen: list = []
    monkeypatch.setattr(chat.engine.model, "render", lambda messages: seen.extend(messages) or "prompt")
    chat.invoke([("system", "s"), ("human", "a"), ("human", "b")], max_tokens=1)
    assert seen == [{"role": "system", "content": "s"}, {"role": "user", "content": "a\n\nb"}]


def test_a_template_that_begins_with_bos_gets_no_second_one(hf_tokenizer, tmp_path):
    backend = Tokenizer.from_str(hf_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE
    )
    model = LanguageModel(build_model(LlamaConfig(**TINY)), tokenizer)
    prompt = model.render([{"role": "user", "content": "Hello"}])
    twice = tokenizer(prompt).input_ids
    assert twice[:2] == [1, 1]
    with ChatKVRag.from_pretrained(model, store=tmp_path, adapter="none", max_tokens=1).engine as engine:
        answer = ChatKVRag(engine=engine, max_tokens=1).invoke("Hello")
        assert answer.usage_metadata["input_tokens"] == len(twice) - 1
        assert engine.prepare(prompt).token_ids == twice[1:]


def test_texts_are_no_documents():
    with pytest.raises(PromptError, match=r"expected documents, found a str; wrap texts as Document\(text\)"):
        docs_to_messages(["The moat is wide."])
