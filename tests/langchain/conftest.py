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

from kvrag.engine import PacketEngine
from tests.conftest import CHUNKS

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer from the context.\n\n{context}"), ("human", "{question}")]
)


@pytest.fixture
def engine(new_engine: Callable[..., PacketEngine]) -> PacketEngine:
    """Keeps no computed states, so that cached tokens are those of packets and answers do not depend on order."""
    return new_engine(computed_bytes=0)


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
