"""A LangChain chain over packets: retrieve, join, prompt, answer. Only the chat model is kvrag's."""

import sys
import tempfile

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_kvrag import ChatKVRag

from kvrag import PacketEngine
from kvrag.demo.collection import load_sections


def main(model: str = "demo") -> None:
    texts = [section.text for section in load_sections()[:6]]
    vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))  # use a real embedding in an application
    vectors.add_documents([Document(text) for text in texts])
    prompt = ChatPromptTemplate.from_template("Use this.\n\n{context}\n\nQuestion: {question}")

    def join(documents: list[Document]) -> str:
        return "\n\n".join(document.page_content for document in documents)

    with tempfile.TemporaryDirectory() as folder, PacketEngine.from_pretrained(model, store=folder) as engine:
        engine.build(texts)
        chat = ChatKVRag(engine=engine, max_tokens=30)
        inputs = {"context": vectors.as_retriever() | join, "question": RunnablePassthrough()}
        chain = inputs | prompt | chat
        message = chain.invoke("What is the Museum of Drift and Wreck?")
        print(message.content, message.usage_metadata)
        for piece in (chain | StrOutputParser()).stream("And where does it stand?"):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
