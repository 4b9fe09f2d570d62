"""kvrag's answers as LlamaIndex's responses."""

from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import asdict
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

from kvrag.completion import AsyncStream, Completion, Stream

__all__ = ["arespond", "chat_response", "completion_response", "respond"]

R = TypeVar("R", ChatResponse, CompletionResponse)


def completion_response(
    text: str, completion: Completion | None = None, delta: str | None = None
) -> CompletionResponse:
    """A whole answer, or the answer so far.

    Args:
        text: of the answer up to here.
        completion: what the answer used and how long it took, once it is finished.
        delta: the new text, in a stream.
    """
    return CompletionResponse(text=text, delta=delta, **_accounts(completion))


def chat_response(text: str, completion: Completion | None = None, delta: str | None = None) -> ChatResponse:
    """The same as an assistant's message."""
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, **_accounts(completion))


def respond(stream: Stream, make: Callable[..., R]) -> Generator[R, None, None]:
    """A response per piece of text, and a last one without new text that carries usage and timings.

    Leaving the generator ends the generation.
    """
    text = ""
    with stream:
        for piece in stream:
            text += piece
            yield make(text, None, piece)
        yield make(text, stream.completion, "")


async def arespond(stream: AsyncStream, make: Callable[..., R]) -> AsyncGenerator[R, None]:
    """As `respond`, for an event loop."""
    text = ""
    async with stream:
        async for piece in stream:
            text += piece
            yield make(text, None, piece)
        yield make(text, stream.completion, "")


def _accounts(completion: Completion | None) -> dict[str, Any]:
    """`raw` and `additional_kwargs` in the names of OpenAI's API, which is where LlamaIndex looks for token counts."""
    if completion is None:
        return {}
    used = completion.usage
    counts = {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
    raw = {
        "model": completion.model,
        "strategy": completion.strategy,
        "fell_back": completion.fell_back,
        "kept": None if completion.kept is None else list(completion.kept),
        "finish_reason": completion.finish_reason,
        "usage": counts | {"prompt_tokens_details": {"cached_tokens": used.cached_tokens}},
        "timings": asdict(completion.timings),
    }
    return {"raw": raw, "additional_kwargs": counts}
