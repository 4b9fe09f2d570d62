"""Applications in the shape of LangChain's RAG tutorials run after the changes that the docs name, and no others."""

from collections.abc import Callable

import pytest
from langchain_kvrag import ChatKVRag

from tests.documented import changed_as_documented
from tests.langchain.bigrams import bigram_model
from tests.langchain.test_chains import cache_read

INGESTION = """
from langchain.chat_models import init_chat_model
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from kvrag.demo.collection import load_sections

model = init_chat_model("gpt-5-nano")
vector_store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
docs = [Document(section.text, metadata={"source": section.name}) for section in load_sections()[:3]]
splitter = RecursiveCharacterTextSplitter(chunk_size=400, chunk_overlap=80, add_start_index=True)
splits = splitter.split_documents(docs)
vector_store.add_documents(splits)
"""

AGENT = """
from langchain.agents import create_agent
from langchain.tools import tool

@tool(response_format="content_and_artifact")
def search_documents(query: str):
    \"\"\"Find documents about a question.\"\"\"
    found = vector_store.similarity_search(query, k=2)
    return "\\n\\n".join(f"From {doc.metadata['source']}: {doc.page_content}" for doc in found), found

agent = create_agent(model, [search_documents], system_prompt="Search before you answer.")
messages = []
for step in agent.stream({"messages": [("user", "Where is the museum?")]}, stream_mode="values"):
    messages.append(step["messages"][-1])
    if len(messages) == 4:
        break
"""

CHAIN = """
from langchain.agents import create_agent
from langchain.agents.middleware import dynamic_prompt

@dynamic_prompt
def with_context(request):
    found = vector_store.similarity_search(request.state["messages"][-1].text, k=3)
    return "Answer from these documents.\\n\\n" + "\\n\\n".join(doc.page_content for doc in found)

agent = create_agent(model, [], middleware=[with_context])
messages = agent.invoke({"messages": [("user", "Where is the museum?")]})["messages"]
"""


@pytest.fixture
def run(monkeypatch, hf_tokenizer, tmp_path) -> Callable[[str], dict]:
    """Run an application with the changes, over a tiny model in the demo model's place."""
    pytest.importorskip("langchain_text_splitters")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kvrag.engine.open_model", lambda source, device: bigram_model(hf_tokenizer))
    opened: list[ChatKVRag] = []

    def changed(application: str) -> dict:
        namespace: dict = {}
        exec(compile(changed_as_documented(application, "langchain.md"), "application", "exec"), namespace)
        opened.append(namespace["model"])
        return namespace

    yield changed
    for model in opened:
        model.engine.close()


def tokens_of(namespace: dict, query: str, k: int) -> int:
    found = namespace["vector_store"].similarity_search(query, k=k)
    return sum(namespace["model"].engine.count_tokens(document.page_content) for document in found)


def test_a_chain_that_retrieves_before_every_answer(run):
    after = run(INGESTION + CHAIN)
    assert after["messages"][-1].text
    assert cache_read(after["messages"][-1]) >= tokens_of(after, "Where is the museum?", 3) > 100


def test_an_agent_that_searches_by_itself(run):
    after = run(INGESTION + AGENT)
    human, call, found, answer = after["messages"]
    assert [message.type for message in after["messages"]] == ["human", "ai", "tool", "ai"]
    assert call.tool_calls[0]["name"] == "search_documents"
    assert len(found.artifact) == 2
    assert cache_read(answer) >= tokens_of(after, call.tool_calls[0]["args"]["query"], 2) > 100
