"""LlamaIndex over the tiny engine: every chunk is retrieved, and every answer's accounts are kept."""

import asyncio
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chromadb
import llama_index_kvrag.llm as llm_module
import pytest
from llama_index.core import MockEmbedding, Settings, StorageContext, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_kvrag import KVRagLLM, KVRagTransform
from pydantic import PrivateAttr
from transformers import LlamaConfig

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from tests.conftest import CHUNKS, TINY, build_model

QUESTION = "When was the lighthouse of Corran Head lit?"
METADATA: tuple[dict[str, Any], ...] = ({}, {"title": "Customs of Corran Head", "year": 1788})
EMBEDDING = MockEmbedding(embed_dim=4)
OF_WORKFLOWS = (
    "ignore::pydantic.warnings.PydanticDeprecationWarning",  # looks at every attribute of an agent
    "ignore:is_running called from within a step:DeprecationWarning",
)


class Recorder(BaseEventHandler):
    """Keeps what LLM calls begin and end with."""

    _events: list[Any] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self._events.append(event)

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self._events if isinstance(event, kinds)]

    @property
    def starts(self) -> list[Any]:
        return self.of(LLMChatStartEvent, LLMCompletionStartEvent)

    @property
    def ends(self) -> list[Any]:
        return self.of(LLMChatEndEvent, LLMCompletionEndEvent)

    @property
    def cached_tokens(self) -> int:
        return sum(end.response.raw["usage"]["prompt_tokens_details"]["cached_tokens"] for end in self.ends)

    def attached_whole(self, engine: PacketEngine, nodes: Sequence[BaseNode]) -> bool:
        """Whether the packets of these nodes, once each and no others, were what the answers did not compute."""
        expected = packet_tokens(engine, nodes)
        return self.cached_tokens == expected > 0

    def clear(self) -> None:
        self._events.clear()


@pytest.fixture(scope="session", autouse=True)
def _no_idle_event_loop() -> None:
    """Where there is none to reuse, LlamaIndex makes one that it never closes."""
    asyncio.set_event_loop(None)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    root, made = get_dispatcher(), Recorder()
    root.add_event_handler(made)
    yield made
    root.event_handlers.remove(made)


@pytest.fixture(scope="session")
def engine(hf_tokenizer, tmp_path_factory) -> Iterator[PacketEngine]:
    """One for all tests that leave its store alone; without states of earlier prompts: what is cached is packets."""
    model = LanguageModel(build_model(LlamaConfig(**TINY)), hf_tokenizer, name="tiny")
    with (
        PacketStore(tmp_path_factory.mktemp("llama-index") / "store") as store,
        PacketEngine(model, store=store, adapter="none", strategy="no-recompute", computed_bytes=0) as made,
    ):
        for metadata in METADATA:
            KVRagTransform(made)(chunk_nodes(**metadata))
        yield made


@pytest.fixture
def llm(engine) -> KVRagLLM:
    return KVRagLLM(engine, max_tokens=6)


@pytest.fixture
def passes(engine, monkeypatch) -> list[int]:
    """How many prompts each pass through the model has served; answers do not end by themselves meanwhile."""
    monkeypatch.setattr(engine.model, "stop_ids", frozenset())
    counts: list[int] = []
    forward = engine.model.forward

    def counted(rows: Sequence[Any], **options: Any) -> Any:
        counts.append(len(rows))
        return forward(rows, **options)

    monkeypatch.setattr(engine.model, "forward", counted)
    return counts


@pytest.fixture
def say(monkeypatch) -> Callable[..., None]:
    """Replace the texts of the next answers, one after the other, and nothing else about them."""

    def script(*lines: str) -> None:
        remaining = list(lines)

        def scripted(respond):
            return lambda text, completion=None, delta=None: respond(
                remaining.pop(0) if completion else "", completion, delta
            )

        for name in ("chat_response", "completion_response"):
            monkeypatch.setattr(llm_module, name, scripted(getattr(llm_module, name)))

    return script


def chunk_nodes(**metadata: Any) -> list[TextNode]:
    return [TextNode(text=chunk, id_=f"n{i}", metadata=dict(metadata)) for i, chunk in enumerate(CHUNKS)]


def packet_tokens(engine: PacketEngine, nodes: Sequence[BaseNode]) -> int:
    """Tokens of the packets that the nodes have."""
    texts = [node.get_content(metadata_mode=MetadataMode.LLM) for node in nodes]
    with engine.prefetch(texts) as hold:
        return sum(packet.tokens for packet in hold.packets.values())


def memory() -> ChatMemoryBuffer:
    """LlamaIndex's default one never closes its SQLite connection."""
    return ChatMemoryBuffer.from_defaults(token_limit=2000, tokenizer_fn=str.split)


@pytest.fixture(scope="session")
def chroma() -> Callable[[], ChromaVectorStore]:
    """Makes empty collections in memory."""
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    return lambda: ChromaVectorStore(chroma_collection=client.create_collection(f"kvrag-{uuid.uuid4().hex}"))


@pytest.fixture(scope="session")
def indices(chroma) -> list[VectorStoreIndex]:
    """All chunks in Chroma, one index for each of METADATA; every query retrieves all of them, or any."""
    return [
        VectorStoreIndex(
            list(chunk_nodes(**metadata)),
            storage_context=StorageContext.from_defaults(vector_store=chroma()),
            embed_model=EMBEDDING,
        )
        for metadata in METADATA
    ]


@pytest.fixture(scope="session")
def index(indices) -> VectorStoreIndex:
    return indices[0]


@pytest.fixture(autouse=True)
def _settings_as_found() -> Iterator[None]:
    """Settings are global in LlamaIndex."""
    before = (Settings._llm, Settings._prompt_helper, Settings._embed_model)
    yield
    Settings._llm, Settings._prompt_helper, Settings._embed_model = before
