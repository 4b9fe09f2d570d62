"""kvrag's answers in LangChain's words."""

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk, ToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from kvrag.completion import AsyncStream, Completion, Stream
from langchain_kvrag.tools import CallReader

__all__ = ["PROVIDER", "achunks", "chat_result", "chunks"]

PROVIDER = "kvrag"
"""What traces and messages call whoever answers."""


def chat_result(completion: Completion, model: str, reader: CallReader) -> ChatResult:
    """The whole answer of `model`, in which `reader` tells text from calls."""
    parts = [*reader.push(completion.text), *reader.finish()]
    message = AIMessage(
        content="".join(part for part in parts if isinstance(part, str)),
        tool_calls=[part | {"id": _new_id()} for part in parts if not isinstance(part, str)],
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion, model),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def chunks(stream: Stream, model: str, reader: CallReader) -> Iterator[ChatGenerationChunk]:
    """A streamed answer of `model`: text as it comes, calls when they are whole, then what is known only at the end."""
    writer = _ChunkWriter()
    for piece in stream:
        yield from writer.write(reader.push(piece))
    yield from writer.write(reader.finish())
    assert stream.completion is not None, "whoever iterates closes it"
    yield _last_chunk(stream.completion, model)


async def achunks(stream: AsyncStream, model: str, reader: CallReader) -> AsyncIterator[ChatGenerationChunk]:
    """As `chunks`, without blocking the event loop."""
    writer = _ChunkWriter()
    async for piece in stream:
        for chunk in writer.write(reader.push(piece)):
            yield chunk
    for chunk in writer.write(reader.finish()):
        yield chunk
    assert stream.completion is not None, "whoever iterates closes it"
    yield _last_chunk(stream.completion, model)


class _ChunkWriter:
    """Writes parts of one answer as chunks, calls with their number in it."""

    def __init__(self) -> None:
        self._calls = 0

    def write(self, parts: Iterable[str | ToolCall]) -> list[ChatGenerationChunk]:
        """A chunk of each part."""
        return [ChatGenerationChunk(message=self._message(part)) for part in parts]

    def _message(self, part: str | ToolCall) -> AIMessageChunk:
        if isinstance(part, str):
            return AIMessageChunk(content=part)
        arguments = json.dumps(part["args"], ensure_ascii=False)
        call = tool_call_chunk(name=part["name"], args=arguments, id=_new_id(), index=self._calls)
        self._calls += 1
        return AIMessageChunk(content="", tool_call_chunks=[call])


def _last_chunk(completion: Completion, model: str) -> ChatGenerationChunk:
    """The end of a streamed answer: no text. Usage is here alone, since adding chunks adds up their usage."""
    message = AIMessageChunk(
        content="",
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion, model),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _new_id() -> str:
    return f"call_{uuid4().hex}"


def _usage(completion: Completion) -> UsageMetadata:
    usage = completion.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def _metadata(completion: Completion, model: str) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": completion.finish_reason,
        "strategy": completion.strategy,
        "fell_back": completion.fell_back,
        "kept": None if completion.kept is None else list(completion.kept),
        "timings": asdict(completion.timings),
    }
