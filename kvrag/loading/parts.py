"""Packets to bring, and the parts of them that are under way."""

from dataclasses import dataclass, field

from kvrag.packet import PacketKey

__all__ = ["GRAIN", "Item", "Part"]

GRAIN = 128
"""Tokens at whose multiples a packet is cut, those of a segment."""


@dataclass(eq=False)
class Item:
    """A packet to bring: computed from its front, loaded from its back.

    Attributes:
        key: of the packet.
        tokens: T.
        nbytes: of its numbers where they are stored; 0 when they are not.
        splits: whether some of its tokens can be loaded without the others.
        remote: whether it comes from a remote, where most of a load is waiting.
        front: tokens in front of this one are computed, or being computed.
        back: tokens from this one on are loaded, or being loaded.
        lost: nobody can bring it.
        parts: that are under way.
        interrupted: whether a load was given up, so that what was loaded may still be written to.
    """

    key: PacketKey
    tokens: int
    nbytes: int
    splits: bool = False
    remote: bool = False
    front: int = 0
    back: int = -1
    lost: bool = False
    parts: list["Part"] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.back = self.tokens

    @property
    def open(self) -> bool:
        """Whether nobody has begun some of its tokens."""
        return self.front < self.back and not self.lost

    @property
    def done(self) -> bool:
        """Whether all of it is there, or it is lost."""
        return self.lost or (self.front >= self.back and not self.parts)

    def share(self, first: int, last: int) -> float:
        """Bytes of some of its tokens."""
        return self.nbytes * (last - first) / self.tokens


@dataclass(eq=False)
class Part:
    """Tokens `first` to `last` of a packet that one side brings.

    Attributes:
        item: the packet.
        first: token.
        last: token, exclusive.
        loading: or computing.
        moved: when it began, or last went on.
        left: bytes still to come.
        dropped: the other side does it now; whoever brings it may stop.
    """

    item: Item
    first: int
    last: int
    loading: bool
    moved: float
    left: float = 0.0
    dropped: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is all of the packet."""
        return self.last - self.first == self.item.tokens
