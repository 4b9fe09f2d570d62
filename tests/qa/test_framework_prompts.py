import sys
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr

from kvrag.cli.prompts import framework_templates
from tests.conftest import CHUNKS

QUESTION = "When was the {lighthouse} of Corran Head lit?"
BY_NAME = {template.name: template for template in framework_templates()}


class Recorder(CustomLLM):
    """Answers nothing and keeps what it is sent."""

    is_chat_model: bool
    _sent: list[str] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=8192, num_output=16, is_chat_model=self.is_chat_model)

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        self._sent.append(render([{"role": m.role.value, "content": m.content} for m in messages]))
        return ChatResponse(message=ChatMessage(content="So.", role="assistant"))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self._sent.append(render([{"role": "user", "content": prompt}]))
        return CompletionResponse(text="So.")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any):
        raise NotImplementedError


def render(messages: list[dict[str, str]]) -> str:
    return "".join(f"<{message['role']}>{message['content']}</>" for message in messages)


@pytest.fixture
def index() -> VectorStoreIndex:
    texts = [f"  {CHUNKS[0]} ", CHUNKS[1], f"{{context_str}} {CHUNKS[2]}", *CHUNKS[3:]]
    return VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=MockEmbedding(embed_dim=4))


@pytest.mark.parametrize(("chat", "name"), [(True, "llama-index-compact"), (False, "llama-index-completion")])
def test_a_query_engine_sends_the_same_prompt(index, chat, name):
    llm = Recorder(is_chat_model=chat)
    response = index.as_query_engine(llm=llm, similarity_top_k=9, response_mode="compact").query(QUESTION)
    assert_same(llm, name, [node.text for node in response.source_nodes])


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("context", "llama-index-context-chat"),
        ("condense_plus_context", "llama-index-condense-plus-context-chat"),
    ],
)
def test_a_chat_engine_opens_with_the_same_prompt(index, mode, name):
    llm = Recorder(is_chat_model=True)
    memory = ChatMemoryBuffer.from_defaults(
        token_limit=4096, tokenizer_fn=str.split
    )  # the default one leaves a database open
    response = index.as_chat_engine(chat_mode=mode, llm=llm, memory=memory, similarity_top_k=9).chat(QUESTION)
    assert_same(llm, name, [node.text for node in response.source_nodes])


def assert_same(llm: Recorder, name: str, passages: list[str]) -> None:
    assert len(passages) == len(CHUNKS)
    filled = BY_NAME[name].fill(render, passages, QUESTION)
    assert [filled.text] == llm._sent
    assert [filled.text[start:end] for start, end in filled.spans] == [passage.strip() for passage in passages]


def test_there_are_none_without_the_framework(monkeypatch):
    assert len(BY_NAME) == 4
    for module in [name for name in sys.modules if name.split(".")[0] == "llama_index"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert framework_templates() == []
