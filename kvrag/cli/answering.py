"""A question to a query engine, and what its answer cost. Imported late: it needs LlamaIndex."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llama_index.core import VectorStoreIndex, get_response_synthesizer
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_kvrag import KVRagLLM, WholeChunkPromptHelper

from kvrag.engine import PacketEngine
from kvrag.errors import PromptTooLongError

__all__ = ["Answer", "answer_from"]


@dataclass(frozen=True)
class Answer:
    """What one strategy answered.

    Attributes:
        strategy: its name.
        answer: the text.
        prompts: how many it took: one, unless the chunks did not fit into one. The numbers below are their sums.
        prompt_tokens: rows of the prompts.
        cached_tokens: rows that came from packets.
        computed_tokens: rows that went through the model.
        completion_tokens: tokens generated.
        first_token_ms: from the prompt's arrival in the engine to the first token.
        fell_back: whether packets left the model in doubt about one of them, so that it was answered once more.
        kept: which of its packets, counted from 0, each prompt was answered from, the most attended last; None of a
            prompt that was read once, as it is.
    """

    strategy: str
    answer: str
    prompts: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    completion_tokens: int
    first_token_ms: float
    fell_back: bool
    kept: list[list[int] | None]


def answer_from(
    nodes: list[NodeWithScore],
    question: str,
    *,
    index: VectorStoreIndex,
    engine: PacketEngine,
    strategy: str,
    max_new_tokens: int,
) -> Answer:
    """The answer that a query engine in mode "compact" gives from retrieved nodes.

    Raises:
        PromptTooLongError: question and answer leave no room for a chunk.
    """
    llm = KVRagLLM(engine, strategy=strategy, max_tokens=max_new_tokens)
    helper = WholeChunkPromptHelper.from_llm(llm)
    synthesizer = get_response_synthesizer(llm=llm, response_mode="compact", prompt_helper=helper)  # pyright: ignore[reportArgumentType]
    query_engine = RetrieverQueryEngine(index.as_retriever(), synthesizer)
    try:
        with _recorded() as raws:
            text = str(query_engine.synthesize(QueryBundle(question), nodes)).strip()
    except ValueError as error:  # LlamaIndex's, when it packs the prompts
        raise PromptTooLongError(
            f"expected question, answer and a chunk to fit into {engine.model.max_positions} tokens, the context "
            f"window of {engine.model.name}, found no room ({error}); lower --max-new-tokens or shorten the question"
        ) from error
    used = [raw["usage"] for raw in raws]
    rows = sum(usage["prompt_tokens"] for usage in used)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in used)
    return Answer(
        strategy=strategy,
        answer=text,
        prompts=len(raws),
        prompt_tokens=rows,
        cached_tokens=cached,
        computed_tokens=rows - cached,
        completion_tokens=sum(usage["completion_tokens"] for usage in used),
        first_token_ms=sum(raw["timings"]["first_token_ms"] for raw in raws),
        fell_back=any(raw["fell_back"] for raw in raws),
        kept=[raw["kept"] for raw in raws],
    )


class _Recorder(BaseEventHandler):
    _raws: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, LLMChatEndEvent) and event.response is not None and event.response.raw:
            self._raws.append(event.response.raw)


@contextmanager
def _recorded() -> Iterator[list[dict[str, Any]]]:
    """The `raw` of every answer that an LLM gives meanwhile; a query engine's response does not carry it."""
    recorder, dispatcher = _Recorder(), get_dispatcher()
    dispatcher.add_event_handler(recorder)
    try:
        yield recorder._raws
    finally:
        dispatcher.event_handlers.remove(recorder)
