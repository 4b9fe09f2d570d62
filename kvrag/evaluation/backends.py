"""Which way of running cases is taken."""

from kvrag.engine import PacketEngine
from kvrag.errors import SettingsError
from kvrag.evaluation.answering import Answerer
from kvrag.evaluation.engine_answerer import EngineAnswerer
from kvrag.strategies import Strategy

__all__ = ["BACKENDS", "AnswererChoice", "check_backend"]

BACKENDS = ("auto", "engine")

_ROOM = 1 << 30  # bytes of packets to keep in a store that only the measurement uses


def check_backend(backend: str) -> None:
    """Refuse an unknown backend.

    Raises:
        SettingsError: naming those there are.
    """
    if backend not in BACKENDS:
        raise SettingsError(f"expected a backend out of {', '.join(BACKENDS)}, found {backend!r}")


class AnswererChoice:
    """Who answers by which strategy.

    Args:
        engine: to run on, with a store that nobody else uses.
        backend: "engine" answers one case after the other by the parts that serve; "auto" takes the fastest backend
            that can run a strategy.
        max_new_tokens: of an answer.

    Raises:
        SettingsError: an unknown backend.
    """

    def __init__(self, engine: PacketEngine, backend: str, max_new_tokens: int) -> None:
        check_backend(backend)
        self._one_by_one = EngineAnswerer(engine, max_new_tokens, room=_ROOM)

    def __call__(self, strategy: Strategy) -> Answerer:
        """The answerer for a strategy."""
        return self._one_by_one
