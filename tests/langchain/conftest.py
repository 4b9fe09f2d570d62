"""A chat model over the tiny engine, and a Chroma collection of the test chunks."""

from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_chroma")

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.prompts import ChatPromptTemplate
from langchain_kvrag import ChatKVRag
from transformers import LlamaConfig

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from tests.conftest import CHUNKS, TINY, build_model
from tests.langchain.bigrams import bigram_model

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from the context.\n\n{context}"), ("human", "{question}")]
)


@pytest.fixture(scope="session")
def shared_engine(hf_tokenizer, tmp_path_factory) -> Iterator[PacketEngine]:
    """Keeps no computed states, so that cached tokens are those of packets and answers do not depend on order."""
    model = LanguageModel(build_model(LlamaConfig(**TINY)), hf_tokenizer, name="tiny")
    with (
        PacketStore(tmp_path_factory.mktemp("langchain")) as store,
        PacketEngine(model, store=store, adapter="none", strategy="no-recompute", computed_bytes=0) as opened,
    ):
        yield opened


@pytest.fixture
def engine(shared_engine: PacketEngine) -> Iterator[PacketEngine]:
    """With an empty store."""
    yield shared_engine
    for row in list(shared_engine.store.ls()):
        shared_engine.store.remove(row.key)


@pytest.fixture(scope="session")
def tool_engine(hf_tokenizer, tmp_path_factory) -> Iterator[PacketEngine]:
    """Its model calls tools; it keeps no computed states either."""
    pytest.importorskip("llguidance")
    with (
        PacketStore(tmp_path_factory.mktemp("tools")) as store,
        PacketEngine(
            bigram_model(hf_tokenizer), store=store, adapter="none", strategy="no-recompute", computed_bytes=0
        ) as opened,
    ):
        yield opened


@pytest.fixture
def chat(engine: PacketEngine) -> ChatKVRag:
    return ChatKVRag(engine=engine, max_tokens=12)


@pytest.fixture
def packet_tokens(engine: PacketEngine) -> Callable[..., int]:
    """Build packets of texts and count their tokens."""

    def build(*texts: str) -> int:
        assert not engine.build(texts, progress=False).rejected
        return sum(len(engine.model.tokenizer.encode(text.strip())) for text in texts)

    return build


@pytest.fixture
def collection() -> Iterator[Chroma]:
    """The chunks, as a splitter leaves them: with white space around them and metadata beside them."""
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    opened = Chroma("chunks", DeterministicFakeEmbedding(size=8), client=client)
    opened.add_documents(
        [Document(f"  {text}\n", id=f"n{n}", metadata={"file": f"{n}.md"}) for n, text in enumerate(CHUNKS)]
    )
    yield opened
    client.delete_collection("chunks")
