"""A web page whose answers stream in: FastAPI and server-sent events. Whoever leaves the page ends the answer."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from kvrag import PacketEngine
from kvrag.demo import retrieval
from kvrag.demo.collection import load_sections

PAGE = Path(__file__).with_suffix(".html")
TASK = "Answer the question from the text above, in a full sentence.\nQuestion: "


def create_app(engine: PacketEngine, index: VectorStoreIndex) -> FastAPI:
    app = FastAPI()
    retriever = index.as_retriever(similarity_top_k=5)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.get("/answers", response_class=EventSourceResponse)
    async def answer(question: str) -> AsyncIterator[ServerSentEvent]:
        found = [node.text for node in await asyncio.to_thread(retriever.retrieve, question)]
        yield ServerSentEvent(event="sources", data=found)
        prompt = [{"role": "user", "content": "\n\n".join([*found, TASK + question])}]
        async with await engine.astream(prompt, max_new_tokens=100) as stream:  # leaving the block ends the request
            async for piece in stream:
                yield ServerSentEvent(event="piece", data=piece)
            assert (done := stream.completion)
        told = {"first_token_ms": done.timings.first_token_ms, "cached_tokens": done.usage.cached_tokens}
        yield ServerSentEvent(event="done", data=told | {"prompt_tokens": done.usage.prompt_tokens})

    return app


def main(model: str = "demo", port: str = "8000") -> None:
    texts = [section.text for section in load_sections()]
    with PacketEngine.from_pretrained(model, store="packets") as engine:
        engine.build(texts)
        index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=retrieval.sentence_embedding())
        print(f"http://127.0.0.1:{port}", flush=True)
        uvicorn.run(create_app(engine, index), port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
