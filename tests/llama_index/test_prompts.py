"""The prompt of every mode, word by word: a new version of LlamaIndex that changes a template is noticed here.

The files in `prompts/` are what the model really got. When LlamaIndex changed a template on purpose, look at the
difference, and write them anew with `KVRAG_WRITE_PROMPTS=1 pytest tests/llama_index/test_prompts.py`.
"""

import os
from pathlib import Path
from typing import Any

import llama_index_kvrag.llm as llm_module
import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index_kvrag import KVRagLLM

from tests.llama_index.conftest import METADATA, OF_WORKFLOWS, QUESTION, chunk_nodes, memory

FOLDER = Path(__file__).parent / "prompts"
MODES = ("compact", "refine", "tree_summarize", "simple_summarize", "accumulate", "compact_accumulate")
SEPARATOR = "\n=== next call ===\n"


class FirstTwo(BaseRetriever):
    """Always the same chunks in the same order, which no vector store with equal vectors promises."""

    _nodes: list[TextNode]

    def __init__(self, **metadata: Any) -> None:
        super().__init__()
        self._nodes = chunk_nodes(**metadata)[:2]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1.0) for node in self._nodes]


@pytest.fixture
def read(engine, monkeypatch) -> list[str]:
    """The prompt strings that reach the engine; what it answers is always the same."""
    prompts: list[str] = []

    def kept(method):
        def keep(prompt, **options):
            prompts.append(prompt)
            return method(prompt, **options)

        return keep

    monkeypatch.setattr(engine, "stream", kept(engine.stream))
    monkeypatch.setattr(engine, "astream", kept(engine.astream))
    return prompts


@pytest.fixture(autouse=True)
def _fixed_answers(monkeypatch) -> None:
    """Answers get into later prompts, and those of a random model differ from machine to machine."""

    def fixed(make):
        return lambda text, completion=None, delta=None: make("(answer)", completion, delta)

    for name in ("completion_response", "chat_response"):
        monkeypatch.setattr(llm_module, name, fixed(getattr(llm_module, name)))


def check(name: str, prompts: list[str]) -> None:
    path, found = FOLDER / f"{name}.txt", SEPARATOR.join(prompts)
    if os.environ.get("KVRAG_WRITE_PROMPTS"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8", newline="\n")
    assert found == path.read_text(encoding="utf-8"), f"LlamaIndex renders another prompt than {path.name} holds"


@pytest.mark.parametrize("is_chat_model", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("mode", MODES)
def test_query_engines(mode, is_chat_model, engine, read):
    llm = KVRagLLM(engine, max_tokens=2, is_chat_model=is_chat_model)
    RetrieverQueryEngine.from_args(FirstTwo(**METADATA[1]), llm=llm, response_mode=mode).query(QUESTION)
    check(f"{mode}-{'chat' if is_chat_model else 'completion'}", read)


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
def test_chat_engines(kind, engine, read):
    chat = kind.from_defaults(retriever=FirstTwo(), llm=KVRagLLM(engine, max_tokens=2), memory=memory())
    chat.chat(QUESTION)
    chat.chat("And who keeps it now?")
    check(kind.__name__, read)


def test_citation_engine(engine, index, read):
    llm = KVRagLLM(engine, max_tokens=2)
    CitationQueryEngine.from_args(index, llm=llm, retriever=FirstTwo()).query(QUESTION)
    check("citation", read)


@pytest.mark.filterwarnings(*OF_WORKFLOWS)
async def test_react_agent(engine, read):
    """The prompt before the first call of a tool; what is observed is in the tests of agents."""
    tool = RetrieverTool.from_defaults(FirstTwo(), name="harbour", description="About the harbour.")
    llm = KVRagLLM(engine, max_tokens=2)
    agent = ReActAgent(tools=[tool], llm=llm, streaming=False)
    history = [ChatMessage(content="Good evening.", role=MessageRole.USER)]
    await agent.run(QUESTION, chat_history=history)
    check("react", read[:1])
