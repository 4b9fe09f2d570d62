"""The demo: the same questions through the same query engine, with packets attached and by full recompute."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrag.demo.cache import cache_folder
from kvrag.demo.collection import Question, load_questions, load_sections
from kvrag.demo.report import Answer, DemoReport, DemoRow
from kvrag.engine import PacketEngine
from kvrag.evaluation.metrics import contains_answer

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex

__all__ = ["DemoSetup", "open_demo", "run_demo"]


@dataclass(frozen=True)
class DemoSetup:
    """An engine and an index over the collection, ready to be asked.

    Attributes:
        engine: with the packets of every section.
        index: over a Chroma collection of the same sections.
        packets_built: 0 when an earlier run left them.
        build_seconds: for the packets.
    """

    engine: PacketEngine
    index: "VectorStoreIndex"
    packets_built: int
    build_seconds: float

    def query_engine(self, strategy: str, *, top_k: int, max_new_tokens: int) -> Any:
        """LlamaIndex's own query engine in its default mode; nothing but the strategy sets the two columns apart."""
        from llama_index_kvrag import KVRagLLM, KVRagPostprocessor

        return self.index.as_query_engine(
            llm=KVRagLLM(self.engine, strategy=strategy, max_tokens=max_new_tokens, stop=["\n"]),
            node_postprocessors=[
                KVRagPostprocessor(self.engine)
            ],  # packets reach host memory before the prompt is made
            similarity_top_k=top_k,
            response_mode="compact",
        )


def open_demo(
    model: str = "demo",
    *,
    strategy: str = "kv-packet",
    adapter: str = "auto",
    device: str = "auto",
    folder: Path | None = None,
) -> DemoSetup:
    """Open the demo's engine, collection and packets, and make what is missing.

    Args:
        model: "demo", "demo-base", a local folder or a hub id.
        strategy: packets are built for.
        adapter: "auto", "none" or a file.
        device: "auto", "cpu" or "cuda".
        folder: for collection and packets; by default in the user's cache.
    """
    from llama_index.core.schema import TextNode

    from kvrag.demo.retrieval import add_nodes, node_count, open_index, sentence_embedding

    folder = folder or cache_folder() / "demo"
    sections = load_sections()
    texts = [section.text for section in sections]
    name = f"demo-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:12]}"
    with ExitStack() as undo:
        engine = PacketEngine.from_pretrained(
            model, store=folder / "packets", device=device, strategy=strategy, adapter=adapter
        )
        undo.callback(engine.close)
        index = open_index(folder / "chroma", name, sentence_embedding())
        if node_count(index) < len(sections):
            add_nodes(index, [TextNode(id_=section.name, text=section.text) for section in sections])
        built = engine.build(texts, strategy=strategy)
        undo.pop_all()
    return DemoSetup(engine, index, built.built, built.seconds)


def run_demo(
    setup: DemoSetup,
    *,
    strategy: str = "kv-packet",
    top_k: int = 8,
    questions: int | None = None,
    max_new_tokens: int = 32,
    show: Callable[[DemoRow], None] = lambda row: None,
) -> DemoReport:
    """Ask every question both ways; the two kinds of run take turns in going first.

    Args:
        setup: from `open_demo`.
        strategy: of the first column; the second is full recompute.
        top_k: chunks to retrieve.
        questions: ask only so many.
        max_new_tokens: of an answer.
        show: called with each row as soon as it is there.
    """
    kinds = {
        kind: setup.query_engine(kind, top_k=top_k, max_new_tokens=max_new_tokens)
        for kind in (strategy, "full-recompute")
    }
    chosen = load_questions()[:questions]
    for kind in kinds.values():  # the first call of a process pays for more than its tokens
        _ask(kind, Question("What is this collection about?", "", ""))
    rows: list[DemoRow] = []
    for number, question in enumerate(chosen):
        order = list(kinds) if number % 2 == 0 else list(reversed(kinds))
        answers = {kind: _ask(kinds[kind], question) for kind in order}
        rows.append(DemoRow(question.question, question.reference, answers[strategy], answers["full-recompute"]))
        show(rows[-1])
    model = setup.engine.model
    adapter = setup.engine.adapter
    return DemoReport(
        rows=tuple(rows),
        model=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        adapter="untrained" if adapter is None else adapter.digest[:16],
        strategy=strategy,
        top_k=top_k,
    )


def _ask(query_engine: Any, question: Question) -> Answer:
    """One question; usage and timings come from the event that LlamaIndex sends for every chat."""
    from llama_index.core.instrumentation import get_dispatcher  # pyright: ignore[reportPrivateImportUsage]
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler
    from llama_index.core.instrumentation.events.llm import LLMChatEndEvent

    raws: list[dict[str, Any]] = []

    class Listener(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            if isinstance(event, LLMChatEndEvent) and event.response is not None:
                raws.append(dict(event.response.raw or {}))

    root, listener = get_dispatcher(), Listener()
    root.add_event_handler(listener)
    try:
        text = str(query_engine.query(question.question)).strip()
    finally:
        root.event_handlers.remove(listener)
    usage, timings = raws[0]["usage"], raws[0]["timings"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Answer(
        answer=text,
        right=contains_answer(text, [question.reference]),
        ttft_ms=timings["first_token_ms"],
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=cached,
        computed_tokens=usage["prompt_tokens"] - cached,
    )
