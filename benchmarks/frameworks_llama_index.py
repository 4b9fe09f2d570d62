"""One query engine over llama-index-llms-huggingface and over kvrag: benchmarks/results/frameworks-llama-index.json.

    python benchmarks/frameworks_llama_index.py            # 2 to 3 minutes on 2 quiet CPU cores

Index, prompts (LlamaIndex's compact mode), weights, dtype and sampling are the same; only the LLM differs. LLMs take
turns in going first, so that a machine that slows down slows all of them. Times begin with the question, so retrieval
and templates count, and are taken where scores are there (`TokenClock`); `first_text_ms` is when a reader of the stream
sees something. `full-recompute` is kvrag without packets; packets are in host memory. `observed` is what each does with
stop strings, options of a call, usage, the event loop, a reader who leaves, and a template that begins with the
tokenizer's own first token.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

from frameworks import Side, TokenClock, run
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.schema import TextNode
from llama_index.llms.huggingface import HuggingFaceLLM
from llama_index_kvrag import KVRagLLM
from transformers import LogitsProcessorList

from kvrag import PacketEngine

Make = Callable[[int, TokenClock], LLM]


class Application(Side):
    """An LLM, which `make` makes for a number of tokens and a clock."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def rag(self, question: str, texts: Sequence[str], limit: int, clock: TokenClock) -> Iterator[str]:
        index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=MockEmbedding(embed_dim=4))
        llm = self._make(limit, clock)
        return index.as_query_engine(llm=llm, streaming=True, similarity_top_k=len(texts)).query(question).response_gen

    def answer(self, prompt: str, limit: int, clock: TokenClock, **call: Any) -> tuple[str, bool]:
        response = self._make(limit, clock).chat(_messages(prompt), **call)
        return response.message.content or "", "usage" in response.raw

    def stream(self, prompt: str, limit: int, clock: TokenClock, **call: Any) -> Iterator[str]:
        with closing(self._make(limit, clock).stream_chat(_messages(prompt), **call)) as responses:
            for response in responses:
                yield response.delta or ""

    async def aanswer(self, prompt: str, limit: int, clock: TokenClock) -> str:
        return (await self._make(limit, clock).achat(_messages(prompt))).message.content or ""

    async def astream(self, prompt: str, limit: int, clock: TokenClock) -> AsyncIterator[str]:
        async with aclosing(await self._make(limit, clock).astream_chat(_messages(prompt))) as responses:
            async for response in responses:
                yield response.delta or ""


def _messages(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(content=prompt, role="user")]


def huggingface(model: Any, tokenizer: Any) -> Make:
    def make(limit: int, clock: TokenClock) -> LLM:
        return HuggingFaceLLM(
            model=model,
            tokenizer=tokenizer,
            context_window=8192,
            max_new_tokens=limit,
            is_chat_model=True,
            generate_kwargs={"do_sample": False, "logits_processor": LogitsProcessorList([clock])},
        )

    return make


def kvrag(engine: PacketEngine, strategy: str | None) -> Make:
    def make(limit: int, clock: TokenClock) -> LLM:
        additional = {"logits_processor": [clock]}
        return KVRagLLM(engine, max_tokens=limit, strategy=strategy, additional_kwargs=additional)

    return make


if __name__ == "__main__":
    run(
        "frameworks-llama-index.json",
        lambda model, tokenizer: Application(huggingface(model, tokenizer)),
        lambda engine, strategy: Application(kvrag(engine, strategy)),
        package="llama-index-llms-huggingface",
        core="llama-index-core",
        limit_name="max_new_tokens",
    )
