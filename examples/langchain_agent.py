"""A LangChain agent over packets: middleware retrieves for the last question, and the prompt stays a prompt."""

import sys
import tempfile

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessageChunk
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_kvrag import ChatKVRag

from kvrag import PacketEngine
from kvrag.demo.collection import load_sections


def main(model: str = "demo") -> None:
    texts = [section.text for section in load_sections()[:6]]
    vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))  # use a real embedding in an application
    vectors.add_documents([Document(text) for text in texts])

    @dynamic_prompt
    def with_context(request: ModelRequest) -> str:
        found = vectors.similarity_search(request.messages[-1].text, k=4)
        return "Answer from these documents.\n\n" + "\n\n".join(document.page_content for document in found)

    with tempfile.TemporaryDirectory() as folder, PacketEngine.from_pretrained(model, store=folder) as engine:
        engine.build(texts)
        agent = create_agent(ChatKVRag(engine=engine, max_tokens=30), middleware=[with_context])
        messages = [{"role": "user", "content": "What is the Museum of Drift and Wreck?"}]
        answer = agent.invoke({"messages": messages})["messages"][-1]
        print(answer.text, answer.usage_metadata)
        messages += [answer, {"role": "user", "content": "And where does it stand?"}]
        for piece, _ in agent.stream({"messages": messages}, stream_mode="messages"):
            if isinstance(piece, AIMessageChunk):
                print(piece.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
