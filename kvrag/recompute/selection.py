"""What a selection of packet tokens knows and says."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from kvrag.attach import Seen, Watcher
from kvrag.errors import SettingsError

__all__ = ["Choice", "Inquiry", "PromptLayout", "Selection", "check_share"]


@dataclass(frozen=True)
class PromptLayout:
    """Where packets stand among the `N` rows of a prompt.

    Attributes:
        tokens: N.
        packets: first and one past the last row of each packet's tokens, in order; at least one.
        layers: L of the model.
        device: of everything that is computed from here on.
        soft: likewise of the rows beside these tokens that an adapter made; they stay as they are.
    """

    tokens: int
    packets: Sequence[tuple[int, int]]
    layers: int
    device: torch.device
    soft: Sequence[tuple[int, int]] = ()

    @cached_property
    def is_text(self) -> torch.Tensor:
        """`[N]` bool: rows that are computed in any case."""
        text = torch.ones(self.tokens, dtype=torch.bool)
        for first, last in (*self.packets, *self.soft):
            text[first:last] = False
        return text.to(self.device)

    @cached_property
    def is_token(self) -> torch.Tensor:
        """`[N]` bool: rows of packets' tokens, those that may be computed anew."""
        token = self.none()
        for first, last in self.packets:
            token[first:last] = True
        return token.to(self.device)

    @property
    def question(self) -> int:
        """The first row behind the last packet: what is asked about them."""
        return max(last for _, last in (*self.packets, *self.soft))

    @property
    def packet_tokens(self) -> int:
        """Rows of packets."""
        return sum(last - first for first, last in self.packets)

    def none(self) -> torch.Tensor:
        """`[N]` bool on the host, all False."""
        return torch.zeros(self.tokens, dtype=torch.bool)


class Inquiry(ABC):
    """A pass over few rows, before anything is chosen, that finds out what the question looks for.

    Attributes:
        places: `[n]` rows to compute, ascending; the prompt's last row among them.
        sees: `[n, N]` which rows they see, if not all before them.
    """

    places: torch.Tensor
    sees: torch.Tensor | None = None

    @abstractmethod
    def watch(self, seen: Seen) -> None:
        """Take from a layer what the choice needs."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What is computed of the packets of one prompt.

    Attributes:
        rows: `[N]` bool, rows of packets that the first layer computes.
        watch: may go on with fewer of them behind each layer.
        kept: `[N]` bool, rows of packets that are there for any row to see; None is all of them.
        share: of what is computed anew in the keys and values that are used.
    """

    rows: torch.Tensor
    watch: Watcher | None = None
    kept: torch.Tensor | None = None
    share: float = 1.0


class Selection(ABC):
    """Decides which packet tokens of a prompt are computed anew."""

    def inquire(self, layout: PromptLayout) -> Inquiry | None:
        """A pass that has to come before the choice; None needs none."""
        return None

    @abstractmethod
    def choose(self, layout: PromptLayout, inquiry: Inquiry | None) -> Choice:
        """Which tokens are computed.

        Args:
            layout: of the prompt.
            inquiry: that was asked for, after its pass.
        """


def check_share(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises:
        SettingsError: the value is no number between 0 and 1.
    """
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SettingsError(f"expected {name} between 0 and 1, found {value}")
