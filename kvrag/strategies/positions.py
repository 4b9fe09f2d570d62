"""Places of packets that are not behind each other."""

from collections.abc import Sequence

from kvrag.prompt import PacketSegment, Segment

__all__ = ["parallel_starts"]


def parallel_starts(segments: Sequence[Segment], lengths: Sequence[int], at: int | None = None) -> list[int]:
    """Starts of segments whose packets all stand at one place; the text behind the first goes on behind the longest.

    Args:
        segments: of a prompt, in order.
        lengths: rows of each.
        at: the packets' place; by default where the first of them would stand.
    """
    packets = [number for number, segment in enumerate(segments) if isinstance(segment, PacketSegment)]
    longest = max((lengths[number] for number in packets), default=0)
    starts: list[int] = []
    end = 0
    for number, (segment, length) in enumerate(zip(segments, lengths, strict=True)):
        if isinstance(segment, PacketSegment):
            at = end if at is None else at
            starts.append(at)
        else:
            starts.append(end)
            end += length
        if number in packets[:1] and at is not None:
            end = max(end, at + longest)
    return starts
