from dataclasses import dataclass
from typing import ClassVar

from kvrag.adapter import Adapter
from kvrag.packet import Recipe
from kvrag.strategies.base import Strategy

__all__ = ["KVPacket"]


@dataclass(frozen=True)
class KVPacket(Strategy):
    """Wrap every chunk in a trained header and trailer, and attach it without recomputing anything.

    The wrapped chunk is encoded alone; its soft tokens take places in the prompt like ordinary ones. Without an adapter
    header and trailer are empty, and this is NoRecompute. Source: KV Packet (https://arxiv.org/abs/2604.13226).
    """

    name: ClassVar[str] = "kv-packet"

    def recipe(self, adapter: Adapter | None) -> Recipe:
        """A chunk between as many soft tokens as the adapter has."""
        if adapter is None:
            return Recipe()
        return Recipe(soft_before=len(adapter.soft("header")), soft_after=len(adapter.soft("trailer")))
