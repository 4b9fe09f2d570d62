"""A prompt with only those of its packets that its question attends to."""

from collections.abc import Sequence

from kvrag.prompt import PacketSegment, Segment, TextSegment

__all__ = ["ASKING_ROWS", "best_packets", "narrowed"]

ASKING_ROWS = 64
"""At most so many rows at the end of a prompt say what it asks for."""


def best_packets(attention: Sequence[float], top_n: int) -> list[int]:
    """The numbers of the packets that get the most attention, the most attended last; equal ones in their order."""
    ranked = sorted(range(len(attention)), key=lambda number: (-attention[number], number))
    return ranked[:top_n][::-1]


def narrowed(segments: Sequence[Segment], best: Sequence[int]) -> list[Segment]:
    """The prompt with these of its packets alone.

    Where the same text stands between all packets, such as an empty line, they come in the order of `best` with that
    text between them: models read best what stands last. Where texts between packets differ, they say something about
    them, such as a number: all of them stay where they are, and so do the packets that are kept.

    Args:
        segments: of a prompt, some of them packets.
        best: numbers of packets, counted from the first.
    """
    places = [place for place, segment in enumerate(segments) if isinstance(segment, PacketSegment)]
    first, last = places[0], places[-1]
    between = [segments[a + 1 : b] for a, b in zip(places, places[1:], strict=False)]
    if any(_said(texts) != _said(between[0]) for texts in between):
        kept = {places[number] for number in best}
        return [s for place, s in enumerate(segments) if place in kept or not isinstance(s, PacketSegment)]
    middle: list[Segment] = []
    for number in best:
        middle += [*(between[0] if middle else ()), segments[places[number]]]
    return [*segments[:first], *middle, *segments[last + 1 :]]


def _said(texts: Sequence[Segment]) -> list[tuple[int, ...]]:
    """What stands between two packets, wherever."""
    return [segment.ids for segment in texts if isinstance(segment, TextSegment)]
