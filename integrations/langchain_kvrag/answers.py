"""kvrag's answers in LangChain's words."""

from dataclasses import asdict
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from kvrag.completion import Completion

__all__ = ["PROVIDER", "chat_result", "last_chunk", "text_chunk"]

PROVIDER = "kvrag"
"""What traces and messages call whoever answers."""


def chat_result(completion: Completion, model: str) -> ChatResult:
    """The whole answer of `model`."""
    message = AIMessage(
        content=completion.text,
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion, model),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def text_chunk(piece: str) -> ChatGenerationChunk:
    """A piece of an answer."""
    return ChatGenerationChunk(message=AIMessageChunk(content=piece))


def last_chunk(completion: Completion, model: str) -> ChatGenerationChunk:
    """The end of a streamed answer: no text, and what is known only now.

    Usage is in this chunk alone, since adding chunks adds up their usage.
    """
    message = AIMessageChunk(
        content="",
        usage_metadata=_usage(completion),
        response_metadata=_metadata(completion, model),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


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
        "timings": asdict(completion.timings),
    }
