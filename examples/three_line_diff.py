"""A question about a folder of Markdown files. existing_app.py and three_line_diff.py differ in three lines."""

import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_kvrag import ChatKVRag

PROMPT = ChatPromptTemplate.from_template("Use this.\n\n{context}\n\nQuestion: {question}")


def main(model: str, folder: str, question: str) -> None:
    files = [path.read_text() for path in sorted(Path(folder).glob("*.md"))]
    documents = [Document(section) for text in files for section in text.split("\n## ")]
    vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))  # use a real embedding in an application
    vectors.add_documents(documents)
    chat = ChatKVRag.from_pretrained(model, store="packets", max_tokens=40)
    chat.engine.build(document.page_content for document in documents)

    def join(found: list[Document]) -> str:
        return "\n\n".join(document.page_content for document in found)

    inputs = {"context": vectors.as_retriever() | join, "question": RunnablePassthrough()}
    print((inputs | PROMPT | chat | StrOutputParser()).invoke(question))


if __name__ == "__main__":
    main(*sys.argv[1:])
