"""Which way of running cases is taken."""

from kvrag.engine import PacketEngine
from kvrag.errors import SettingsError
from kvrag.evaluation.answering import Answerer
from kvrag.evaluation.batched_answerer import BatchedAnswerer
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.strategies import Strategy

__all__ = ["BACKENDS", "AnswererChoice", "check_backend"]

BACKENDS = ("auto", "batched", "engine")

_ROOM = 1 << 30  # bytes of packets to keep in a store that only the measurement uses


def check_backend(backend: str, codec: str = "raw") -> None:
    """Refuse an unknown backend, and one that meets no stored packets where their codec is what matters.

    Raises:
        SettingsError: naming those there are.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"expected a backend out of {', '.join(BACKENDS)}, found {backend!r}")
    if backend == "batched" and codec != "raw":
        raise SettingsError(f"expected the backend engine for codec {codec}, found batched, which stores no packets")


class AnswererChoice:
    """Who answers by which strategy.

    Args:
        engine: to run on, with a store that nobody else uses.
        backend: "engine" answers one case after the other by the parts that serve; "batched" many in one pass, where a
            strategy packs, and is what "auto" takes, unless packets have a codec that makes stored ones differ.
        max_new_tokens: of an answer.

    Raises:
        SettingsError: as from `check_backend`.
    """

    def __init__(self, engine: PacketEngine, backend: str, max_new_tokens: int) -> None:
        check_backend(backend, engine.codec)
        self._engine: Answerer = EngineAnswerer(engine, max_new_tokens, room=_ROOM)
        self._batched: Answerer = self._engine
        if backend != "engine" and engine.codec == "raw":
            self._batched = BatchedAnswerer(engine.model, engine.adapter, max_new_tokens)

    def __call__(self, strategy: Strategy) -> Answerer:
        """The answerer for a strategy; those that do not pack get cases one by one."""
        return self._batched if strategy.packs else self._engine
