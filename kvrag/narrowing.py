"""A prompt with only those of its packets that its question attends to."""

from collections.abc import Hashable, Sequence

from kvrag.packet import PacketKey
from kvrag.prompt import PacketSegment, Segment, TextSegment

__all__ = ["ASKING_ROWS", "best_packets", "narrowed", "narrows", "packet_keys"]

ASKING_ROWS = 64
"""At most so many rows at the end of a prompt say what it asks for."""

_SEPARATOR = 8  # tokens; a longer text between two packets says something


def best_packets(attention: Sequence[float], keys: Sequence[Hashable], top_n: int) -> list[int]:
    """The numbers of the packets that get the most attention, the most attended last.

    Of a packet that stands there twice the more attended one counts, and the first of equals.

    Args:
        attention: that each packet gets.
        keys: what each packet is known by.
        top_n: how many to take.
    """
    best: dict[Hashable, int] = {}
    for number in sorted(range(len(attention)), key=lambda number: (-attention[number], number)):
        best.setdefault(keys[number], number)
    return [*best.values()][:top_n][::-1]


def packet_keys(segments: Sequence[Segment]) -> list[PacketKey]:
    """The packets of a prompt in their order."""
    return [segment.key for segment in segments if isinstance(segment, PacketSegment)]


def narrows(segments: Sequence[Segment], top_n: int) -> bool:
    """Whether a prompt with its `top_n` best packets is another one."""
    return len(set(packet_keys(segments))) > top_n or _may_move(segments)


def narrowed(segments: Sequence[Segment], best: Sequence[int]) -> list[Segment]:
    """The prompt with these of its packets alone.

    Where packets may move, they come in the order of `best` with the same gap between them: models read best what
    stands last. Otherwise what stands between packets says something about them, such as a number: all of it stays
    where it is, and so do the packets that are kept.

    Args:
        segments: of a prompt, some of them packets.
        best: numbers of packets, counted from the first.
    """
    places = [place for place, segment in enumerate(segments) if isinstance(segment, PacketSegment)]
    if not _may_move(segments):
        kept = {places[number] for number in best}
        return [s for place, s in enumerate(segments) if place in kept or not isinstance(s, PacketSegment)]
    gap = _gaps(segments)[0]
    middle: list[Segment] = []
    for number in best:
        middle += [*(gap if middle else ()), segments[places[number]]]
    return [*segments[: places[0]], *middle, *segments[places[-1] + 1 :]]


def _may_move(segments: Sequence[Segment]) -> bool:
    """Whether packets may change places: the same few tokens, such as an empty line, stand in all gaps between them.

    A single gap is like no other, so two packets stay where they are.
    """
    gaps = _gaps(segments)
    same = all(_said(gap) == _said(gaps[0]) for gap in gaps)
    return len(gaps) > 1 and same and sum(map(len, _said(gaps[0]))) <= _SEPARATOR


def _gaps(segments: Sequence[Segment]) -> list[Sequence[Segment]]:
    """What stands between each packet and the next."""
    places = [place for place, segment in enumerate(segments) if isinstance(segment, PacketSegment)]
    return [segments[a + 1 : b] for a, b in zip(places, places[1:], strict=False)]


def _said(texts: Sequence[Segment]) -> list[tuple[int, ...]]:
    """The same without its place."""
    return [segment.ids for segment in texts if isinstance(segment, TextSegment)]
