"""One RAG chain over langchain-huggingface and over kvrag, into benchmarks/results/frameworks-langchain.json.

    pip install --no-deps langchain-huggingface==1.2.3     # it wants an older huggingface-hub than transformers does
    python benchmarks/frameworks_langchain.py              # 2 to 3 minutes on 2 quiet CPU cores

Prompt, documents, weights, dtype and sampling are the same; only the chat model differs. Chat models take turns in
going first, so that a machine that slows down slows all of them. Times begin with the question, so retrieval and
templates count, and are taken where scores are there (`TokenClock`); `first_text_ms` is when a reader of the stream
sees something. `full-recompute` is kvrag without packets; packets are in host memory. `observed` is what each does with
stop strings, options of a call, usage, the event loop, a reader who leaves, and a template that begins with the
tokenizer's own first token.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from frameworks import Side, TokenClock, run
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_kvrag import ChatKVRag
from transformers import LogitsProcessorList, pipeline

from kvrag import PacketEngine

TEMPLATE = ChatPromptTemplate.from_messages(
    [("human", "Answer from these documents.\n\n{context}\n\nQuestion: {question}\nAnswer briefly.")]
)
Make = Callable[[int, TokenClock], Any]


class Chat(Side):
    """A chat model, which `make` makes for a number of tokens and a clock."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def rag(self, question: str, texts: Sequence[str], limit: int, clock: TokenClock) -> Iterator[str]:
        def join(found: list[Document]) -> str:
            return "\n\n".join(document.page_content for document in found)

        vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        vectors.add_documents([Document(text) for text in texts])
        retriever = vectors.as_retriever(search_kwargs={"k": len(texts)})
        chain = {"context": retriever | join, "question": RunnablePassthrough()} | TEMPLATE | self._make(limit, clock)
        return (chunk.text for chunk in chain.stream(question))

    def answer(self, prompt: str, limit: int, clock: TokenClock, **call: Any) -> tuple[str, bool]:
        message = self._make(limit, clock).invoke(prompt, **call)
        return message.text, message.usage_metadata is not None

    def stream(self, prompt: str, limit: int, clock: TokenClock, **call: Any) -> Iterator[str]:
        for chunk in self._make(limit, clock).stream(prompt, **call):
            yield chunk.text

    async def aanswer(self, prompt: str, limit: int, clock: TokenClock) -> str:
        return (await self._make(limit, clock).ainvoke(prompt)).text

    async def astream(self, prompt: str, limit: int, clock: TokenClock) -> AsyncIterator[str]:
        async for chunk in self._make(limit, clock).astream(prompt):
            yield chunk.text


def huggingface(model: Any, tokenizer: Any) -> Make:
    """Options are the pipeline's, as `HuggingFacePipeline.from_model_id` hands them on."""

    def make(limit: int, clock: TokenClock) -> BaseChatModel:
        generate = pipeline(
            "text-generation",
            model=model,
            tokenizer=tokenizer,
            max_new_tokens=limit,
            do_sample=False,
            return_full_text=False,
            logits_processor=LogitsProcessorList([clock]),
        )
        return ChatHuggingFace(llm=HuggingFacePipeline(pipeline=generate), tokenizer=tokenizer, model_id="demo")

    return make


def kvrag(engine: PacketEngine, strategy: str | None) -> Make:
    def make(limit: int, clock: TokenClock) -> Any:
        return ChatKVRag(engine=engine, max_tokens=limit, strategy=strategy).bind(logits_processor=[clock])

    return make


if __name__ == "__main__":
    run(
        "frameworks-langchain.json",
        lambda model, tokenizer: Chat(huggingface(model, tokenizer)),
        lambda engine, strategy: Chat(kvrag(engine, strategy)),
        package="langchain-huggingface",
        core="langchain-core",
        limit_name="max_tokens",
    )
