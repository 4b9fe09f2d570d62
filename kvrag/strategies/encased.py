from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from kvrag.adapter import Adapter
from kvrag.errors import SettingsError
from kvrag.framing import Framing
from kvrag.packet import Recipe
from kvrag.strategies.base import Strategy

__all__ = ["Encased"]


@dataclass(frozen=True)
class Encased(Strategy):
    """Encode every chunk between tokens that are the same for all of them.

    Attributes:
        keeps: whether they stay in the packet and take places in the prompt; if not, those in front are left out of it.
        before, after: token ids, found by `fitted` where they are not given.
    """

    keeps: ClassVar[bool] = False
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] = ()

    @abstractmethod
    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """Token ids in front of a chunk and behind it, for one model."""

    def fitted(self, framing: Framing) -> Self:
        """The strategy with the token ids of one model."""
        if self.before is not None:
            return self
        before, after = self.around(framing)
        return replace(self, before=tuple(before), after=tuple(after))

    def recipe(self, adapter: Adapter | None) -> Recipe:
        """A chunk between those tokens.

        Raises:
            SettingsError: the strategy is fitted to no model yet.
        """
        if self.before is None:
            raise SettingsError(f"expected {self.name} with token ids of a model, found none; call fitted() first")
        dropped = 0 if self.keeps else len(self.before)
        return Recipe(ids_before=self.before, ids_after=self.after, dropped=dropped)
