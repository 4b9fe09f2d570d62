"""What comes back: an answer, what it used, how long it took, and streams of it."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Self

__all__ = ["AsyncStream", "Completion", "Delivery", "LoadReport", "Stream", "Timings", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `prompt_tokens` is `cached_tokens + computed_tokens`.

    Attributes:
        prompt_tokens: rows of the prompt; where it was read twice, of what the second reading had of it.
        cached_tokens: rows that came from packets and from states of earlier prompts.
        computed_tokens: rows that went through the model; of a prompt that was read twice, or answered once more, the
            last time alone.
        completion_tokens: tokens generated.
    """

    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one answer, by the caller's clock.

    Attributes:
        match_ms: finding known chunks in the prompt and tokenising the rest.
        load_ms: bringing packets into host memory.
        attach_ms: giving packets their places.
        first_token_ms: from the prompt's arrival in the engine to the first token id; includes all of the above.
        per_token_ms: mean over the tokens after the first; 0 when there is none.
    """

    match_ms: float
    load_ms: float
    attach_ms: float
    first_token_ms: float
    per_token_ms: float


@dataclass(frozen=True)
class LoadReport:
    """How packets that were not in host memory got there.

    Attributes:
        mode: "load" or "compute" if one side did all of it, "both", or "none" if everything was there.
        loaded_packets: loaded as a whole.
        computed_packets: computed as a whole; those of neither kind were computed in front and loaded behind.
        loaded_tokens: that came from the store.
        computed_tokens: that were computed anew.
        ms: until all of them were there.
    """

    mode: Literal["none", "load", "compute", "both"] = "none"
    loaded_packets: int = 0
    computed_packets: int = 0
    loaded_tokens: int = 0
    computed_tokens: int = 0
    ms: float = 0.0

    @classmethod
    def of(cls, packets: Iterable[tuple[int, int]], ms: float = 0.0) -> "LoadReport":
        """Of packets with so many tokens computed, and so many in all."""
        counts = list(packets)
        computed = sum(front for front, _ in counts)
        loaded = sum(tokens for _, tokens in counts) - computed
        mode = "both" if computed and loaded else "load" if loaded else "compute" if computed else "none"
        wholes = sum(not front for front, _ in counts), sum(front == tokens for front, tokens in counts)
        return cls(mode, *wholes, loaded, computed, ms)


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: without stop strings.
        token_ids: of the answer, an end token included.
        finish_reason: "stop" (end token or stop string), "length" or "cancelled".
        usage: tokens.
        timings: milliseconds.
        model: its name.
        strategy: the reuse strategy's name.
        fell_back: whether its fallback gave the answer, since packets left the model in doubt.
        kept: which of the prompt's packets, counted from 0, it was answered from, the most attended last; None if
            it was read once, as it is.
        loading: how its packets got into host memory.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length", "cancelled"]
    usage: Usage
    timings: Timings
    model: str
    strategy: str
    fell_back: bool = False
    kept: tuple[int, ...] | None = None
    loading: LoadReport = field(default_factory=LoadReport, compare=False)


@dataclass(frozen=True)
class Delivery:
    """The worker's end of a stream: where pieces go, and whether anybody still wants them."""

    put: Callable[[str | Completion | BaseException], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Stream:
    """Pieces of text as they are generated; `completion` holds the whole once they are exhausted.

    Closing it, leaving its `with` block or dropping it ends the generation.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str | Completion | BaseException] = queue.SimpleQueue()
        self.delivery = Delivery(self._queue.put)
        self.completion: Completion | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self.completion is not None or self.delivery.cancelled.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, str):
            return item
        if isinstance(item, BaseException):
            self.close()
            raise item
        self.completion = item
        raise StopIteration

    def result(self) -> Completion:
        """The whole answer, once it is there."""
        for _ in self:
            pass
        assert self.completion is not None, "a closed stream has no result"
        return self.completion

    def close(self) -> None:
        """End the generation; what it computed so far is released."""
        self.delivery.cancelled.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.delivery.cancelled.set()


class AsyncStream:
    """The same for one event loop, which it never blocks."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | Completion | BaseException] = asyncio.Queue()

        def put(item: str | Completion | BaseException) -> None:
            if loop.is_closed():
                self.delivery.cancelled.set()
            else:
                loop.call_soon_threadsafe(self._queue.put_nowait, item)

        self.delivery = Delivery(put)
        self.completion: Completion | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self.completion is not None or self.delivery.cancelled.is_set():
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:
            self.delivery.cancelled.set()
            raise
        if isinstance(item, str):
            return item
        if isinstance(item, BaseException):
            self.delivery.cancelled.set()
            raise item
        self.completion = item
        raise StopAsyncIteration

    async def result(self) -> Completion:
        """The whole answer, once it is there."""
        async for _ in self:
            pass
        assert self.completion is not None, "a closed stream has no result"
        return self.completion

    async def aclose(self) -> None:
        """End the generation."""
        self.delivery.cancelled.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self.delivery.cancelled.set()
