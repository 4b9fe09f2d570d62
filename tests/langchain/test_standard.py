"""LangChain's own suites.

The model is `bigrams.py`'s: it calls tools, and makes no sense. What does not apply is skipped, for four reasons. The
model reads text only: no images, audio, PDF or blocks of Anthropic's. A chat model over an engine is neither configured
by environment variables nor rebuilt from JSON. Nothing is sent over HTTP that could be recorded. And JSON mode needs a
model that reads in its prompt which keys are wanted; `test_structured.py` tests it.
"""

from typing import Any

import pytest

pytest.importorskip("langchain_tests")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_kvrag import ChatKVRag, KVRagRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from kvrag.engine import PacketEngine
from tests.conftest import CHUNKS


class _Chat:
    """What both suites are told about the chat model."""

    engine: PacketEngine

    @property
    def chat_model_class(self) -> type[ChatKVRag]:
        return ChatKVRag

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "model": "standard"}

    @property
    def model_override_value(self) -> str:
        return "standard"  # an engine has one model: any other name is refused

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}


class TestChatModel(_Chat, ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _take_engine(self, shared_engine: PacketEngine) -> None:
        self.engine = shared_engine


class TestChatModelInUse(_Chat, ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _take_engine(self, tool_engine: PacketEngine) -> None:
        self.engine = tool_engine

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        self.engine.build(CHUNKS, progress=False)
        prompt = "\n\n".join(CHUNKS) + "\n\nWhen was the lighthouse lit?"
        chat = ChatKVRag(**self.chat_model_params)
        if not stream:
            answer = chat.invoke(prompt)
        else:
            chunks = list(chat.stream(prompt))
            answer = sum(chunks[1:], chunks[0])
        assert answer.usage_metadata is not None
        packets = sum(self.engine.count_tokens(text) for text in CHUNKS)
        assert answer.usage_metadata["input_token_details"]["cache_read"] >= packets
        return answer


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _take_engine(self, engine: PacketEngine) -> None:
        self.engine = engine

    @property
    def retriever_constructor(self) -> type[KVRagRetriever]:
        return KVRagRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        vectors.add_documents([Document(text) for text in CHUNKS])
        return {"retriever": vectors, "engine": self.engine}

    @property
    def retriever_query_example(self) -> str:
        return "When was the lighthouse lit?"
