"""The engine as LlamaIndex components hold it."""

from typing import Any, Self

from kvrag.engine import PacketEngine
from kvrag.errors import EngineError, SettingsError

__all__ = ["EngineReference"]


class EngineReference:
    """An engine that stays in its process when the component that holds it is pickled.

    LlamaIndex finds out what can be pickled by trying; with an engine it would begin with the weights of its model.
    Copies within a process share the engine.

    Args:
        engine: to refer to.
        advice: what to do in a process that has no engine; ends the error message.

    Raises:
        SettingsError: it is no engine.
    """

    def __init__(self, engine: PacketEngine | None, advice: str) -> None:
        if not isinstance(engine, PacketEngine | None):
            raise SettingsError(
                f"expected a PacketEngine, found {engine!r}; make one with PacketEngine.from_pretrained"
            )
        self._engine = engine
        self._advice = advice

    def get(self) -> PacketEngine:
        """The engine.

        Raises:
            EngineError: this is a pickled copy.
        """
        if self._engine is None:
            raise EngineError(
                "expected a component with an engine, found a pickled copy, and engines are not pickled; "
                + self._advice
            )
        return self._engine

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type["EngineReference"], tuple[None, str]]:
        return EngineReference, (None, self._advice)
