"""The end of a stream that its reader leaves."""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from typing import Any, TypeVar

from kvrag.completion import AsyncStream, Stream

__all__ = ["ends_generation", "note_opened"]

F = TypeVar("F", bound=Callable[..., Any])
_opened: ContextVar[list[Stream | AsyncStream] | None] = ContextVar("llama_index_kvrag_opened", default=None)


def note_opened(stream: Stream | AsyncStream) -> None:
    """Have the method that is being called end this stream when its responses are left."""
    streams = _opened.get()
    if streams is not None:
        streams.append(stream)


def ends_generation(method: F) -> F:
    """Make leaving a method's responses end the generation, even while somebody keeps the exception that it raises.

    LlamaIndex's callback decorators put a generator of their own around a method's and do not close the inner one. When
    the outer one is left, they hand the exception to all handlers; one that keeps it (`LlamaDebugHandler` does) keeps
    with its traceback the inner generator, and the model would go on for nobody.

    Args:
        method: decorated by LlamaIndex; it returns a generator, or is a coroutine function that returns one.
    """

    def collecting() -> tuple[list[Stream | AsyncStream], Any]:
        streams: list[Stream | AsyncStream] = []
        return streams, _opened.set(streams)

    @functools.wraps(method)
    def start(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        streams, token = collecting()
        try:
            responses = method(*args, **kwargs)
        finally:
            _opened.reset(token)
        return _until_left(responses, streams)

    @functools.wraps(method)
    async def astart(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        streams, token = collecting()
        try:
            responses = await method(*args, **kwargs)
        finally:
            _opened.reset(token)
        return _auntil_left(responses, streams)

    return astart if inspect.iscoroutinefunction(method) else start  # type: ignore[return-value]


def _until_left(responses: Any, streams: list[Any]) -> Generator[Any, None, None]:
    try:
        yield from responses
    finally:
        for stream in streams:
            stream.close()


async def _auntil_left(responses: Any, streams: list[Any]) -> AsyncGenerator[Any, None]:
    try:
        async for response in responses:
            yield response
    finally:
        for stream in streams:
            await stream.aclose()
        await responses.aclose()
