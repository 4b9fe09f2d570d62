"""One query engine over llama-index-llms-huggingface and over kvrag: benchmarks/results/frameworks-llama-index.json.

    python benchmarks/frameworks_llama_index.py            # 2 to 3 minutes on 2 quiet CPU cores

Index, prompts (LlamaIndex's compact mode), weights, dtype and sampling are the same; only the LLM differs. LLMs take
turns in going first, so that a machine that slows down slows all of them. Times begin with the question, so retrieval
and templates count, and are taken where scores are there (`TokenClock`); `first_text_ms` is when a reader of the stream
sees something. `full-recompute` is kvrag without packets; packets are in host memory. `observed` is what each does with
stop strings, options of a call, usage, the event loop, a reader who leaves, and a template that begins with the
tokenizer's own first token.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

from frameworks import (
    Side,
    TokenClock,
    compare,
    demo_parts,
    first_tokens,
    observe,
    setting,
    tasks,
    with_two_beginnings,
)
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.schema import TextNode
from llama_index.llms.huggingface import HuggingFaceLLM
from llama_index_kvrag import KVRagLLM
from transformers import LogitsProcessorList

from kvrag import PacketEngine
from kvrag.demo.weights import demo_folder

RESULT = Path(__file__).parent / "results" / "frameworks-llama-index.json"
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


def kvrag(engine: PacketEngine, strategy: str | None = None) -> Make:
    def make(limit: int, clock: TokenClock) -> LLM:
        additional = {"logits_processor": [clock]}
        return KVRagLLM(engine, max_tokens=limit, strategy=strategy, additional_kwargs=additional)

    return make


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    folder = demo_folder("demo")
    model, tokenizer = demo_parts(folder)
    ends = [tokenizer.eos_token_id]
    with tempfile.TemporaryDirectory() as store:
        engine = PacketEngine.from_pretrained("demo", store=f"{store}/packets", computed_bytes=0)
        beginnings = with_two_beginnings(folder)
        other = PacketEngine.from_pretrained(
            (demo_parts(folder)[0], beginnings), store=f"{store}/other", adapter="none", strategy="no-recompute"
        )
        with engine, other:
            sides: dict[str, Side] = {
                "llama-index-llms-huggingface": Application(huggingface(model, tokenizer)),
                "kvrag, full-recompute": Application(kvrag(engine, "full-recompute")),
                "kvrag, packets": Application(kvrag(engine)),
            }
            engine.build(text for _, texts in tasks(options.questions, options.documents) for text in texts)
            result = setting("llama-index-core", "llama-index-llms-huggingface") | {
                "documents": options.documents,
                **compare(sides, options.questions, options.documents, options.tokens, ends),
            }
            result["observed"] = {
                name: observe(sides[name], ends, "max_new_tokens")
                | {"first_tokens_of_a_prompt": first_tokens(twice, beginnings.bos_token_id)}
                for name, twice in (
                    ("llama-index-llms-huggingface", Application(huggingface(model, beginnings))),
                    ("kvrag, packets", Application(kvrag(other))),
                )
            }
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1))


if __name__ == "__main__":
    main()
