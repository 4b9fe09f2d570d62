"""Controls that train nothing and recompute nothing: what a better place to encode a chunk in is worth by itself.

Papers on reuse compare with bare chunks, which no prompt would contain. These strategies give a chunk the surroundings
that a model knows, for some more tokens while it is built. KV Packet tries repeated tokens on both sides
(https://arxiv.org/abs/2604.13226), and EPIC's LegoLink-0 a sink that is left out (https://arxiv.org/abs/2410.15332).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvrag.framing import Framing
from kvrag.strategies.encased import Encased

__all__ = ["ControlChat", "ControlPreamble", "ControlSeparator", "ControlSink"]


@dataclass(frozen=True)
class ControlChat(Encased):
    """Make every chunk a user's message of its own.

    Stores chunks with the chat template's tokens around them, which take places in the prompt. Computes the text only.
    Approximates: no chunk sees another.
    """

    name: ClassVar[str] = "control-chat"
    keeps: ClassVar[bool] = True

    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """The chat template's opening and closing."""
        return framing.begin(framing.opening), framing.encode(framing.closing)


@dataclass(frozen=True)
class ControlPreamble(Encased):
    """Encode every chunk behind one preamble, and leave the preamble out.

    Stores the chunk's own rows, from positions behind the preamble on. Computes the text only. Approximates: no chunk
    sees another, and the preamble is not the text that stands before it in the prompt.

    Attributes:
        preamble: the text; None takes what the model's chat template opens a message with.
    """

    name: ClassVar[str] = "control-preamble"
    preamble: str | None = None

    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """The preamble."""
        return framing.begin(framing.opening if self.preamble is None else self.preamble), ()


@dataclass(frozen=True)
class ControlSeparator(Encased):
    """Give every chunk a separator on either side.

    Stores chunks with it, and it takes places in the prompt. Computes the text only. Approximates: no chunk sees
    another.

    Attributes:
        separator: the text.
    """

    name: ClassVar[str] = "control-separator"
    keeps: ClassVar[bool] = True
    separator: str = "\n\n"

    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """The separator twice."""
        ids = framing.encode(self.separator)
        return ids, ids


@dataclass(frozen=True)
class ControlSink(Encased):
    """Give every chunk an attention sink of its own, and leave it there.

    Stores chunks with it, and it takes places in the prompt; LegoLink-0 leaves it out. Computes the text only.
    Approximates: no chunk sees another, and the prompt has a sink per chunk.

    Attributes:
        sinks: how often the token stands there that prompts begin with.
    """

    name: ClassVar[str] = "control-sink"
    keeps: ClassVar[bool] = True
    sinks: int = 1

    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """The sink."""
        return [framing.sink] * self.sinks, ()
