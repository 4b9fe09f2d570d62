"""Who brings which packet, or which part of one: no threads and no clock, callers lock and tell the time."""

from collections.abc import Callable, Iterator, Sequence

from kvrag.loading.parts import GRAIN, Item, Part
from kvrag.loading.rates import Rates
from kvrag.loading.settings import LoadingMode

__all__ = ["Schedule"]

_CHUNK = 512  # tokens of a longer packet that are computed at a time
_SHARE = 0.8  # few large passes take less time than many small ones; the rest is for estimates that are wrong


class Schedule:
    """Divides packets between a side that computes and a side that loads while both are at work.

    Packets stand in a line by the seconds of computing that a second of loading saves: the computing side takes them
    from the beginning, the loading side from the end. In mode "auto" nobody begins what the other side would have done
    sooner with everything else; so where one side is hopeless, it does nothing. A load that turns out slower than
    computing is dropped, and its tokens are computed.

    Args:
        items: to bring.
        rates: asked for whenever something is decided.
        mode: which sides work, and whether they ask first if it is worth it.
        on_drop: told of loads that are dropped, and when: the only sign of a store that has stopped answering.
        loads: at a time; each of them is taken to be as fast as the rates say.
        batch: tokens of short packets that share a pass.
    """

    def __init__(
        self,
        items: Sequence[Item],
        rates: Callable[[], Rates],
        mode: LoadingMode = "auto",
        on_drop: Callable[[Part, float], None] = lambda part, now: None,
        loads: int = 1,
        batch: int = 1024,
    ) -> None:
        now = rates()
        self.loads, self._batch = loads, batch
        self._on_drop = on_drop
        self.items = sorted(items, key=lambda item: _value(item, now))  # stable: otherwise as in the prompt
        self._rates, self._mode = rates, mode
        for item in self.items:
            item.lost = mode == "load" and not item.nbytes

    @property
    def finished(self) -> bool:
        """Whether everything is there or lost."""
        return all(item.done for item in self.items)

    def next_to_load(self, now: float) -> Part | None:
        """What the loading side shall do next; None: nothing, for now."""
        if self._mode == "compute":
            return None
        rates = self._rates()
        for item in reversed(self.items):
            if not item.open or not item.nbytes:
                continue
            first = self._first_to_load(item, rates, now) if item.splits else 0
            needed = rates.load_s(item.share(first, item.back))
            if item.front and not item.splits:  # all of it again, if that is sooner than computing the rest
                needed = rates.load_s(item.nbytes)
                if needed >= rates.compute_s(item.front, item.tokens):
                    continue
                for part in item.parts:
                    part.dropped = True
                item.parts.clear()
                item.front = 0
            elif self._mode == "auto" and needed > self._compute_left(rates, now):
                continue
            part = Part(item, first, item.back, True, now, item.share(first, item.back))
            item.back = first
            item.parts.append(part)
            return part
        return None

    def next_to_compute(self, now: float) -> list[Part]:
        """What the computing side shall do next, in one pass; empty: nothing, for now."""
        rates = self._rates()
        items = [item for item in self.items if item.open]
        hopeless = [] if items else self._hopeless(rates, now)
        items = items or hopeless
        if self._mode == "load" or not items:
            return []
        item, limit = items[0], self._limit(rates)
        length = item.back - item.front
        if self._mode != "compute" and len(items) == 1 and item.splits:
            length = min(_CHUNK, self._until_met(item, rates, now))
        elif self._mode != "compute" and (item.front or item.tokens > _CHUNK):
            length = min(length, _CHUNK, max(GRAIN, limit // GRAIN * GRAIN))
        needed = rates.compute_s(item.front, item.front + length)
        if self._mode == "auto" and item.nbytes and not hopeless and needed >= self._load_left(rates, now):
            return []
        parts = [self._computed_part(item, length, now)]
        if parts[0].whole:
            for other in items[1:]:
                most = length + other.tokens
                if most > self._batch or length + other.tokens // 2 > limit or other.front or other.back < other.tokens:
                    break
                length = most
                parts.append(self._computed_part(other, other.tokens, now))
        return parts

    def moved(self, part: Part, now: float, left: float) -> None:
        """A load goes on; so many bytes are left of it."""
        part.moved, part.left = now, left

    def finish(self, part: Part) -> None:
        """A part is there."""
        if not part.dropped:
            part.item.parts.remove(part)

    def fail(self, part: Part) -> None:
        """The packet cannot be loaded: what is loaded of it does not count, and it is computed if anybody may."""
        item = part.item
        if not part.dropped:
            item.parts.remove(part)
            item.back = item.tokens
        item.nbytes, item.lost = 0, self._mode == "load"

    def load_whole(self, part: Part) -> bool:
        """The packet turns out not to split: make the part all of it. False: its front is computed already."""
        item = part.item
        item.splits = False
        if part.dropped:
            return False
        if item.front:
            item.parts.remove(part)
            item.back = part.last
            return False
        part.first = item.back = 0
        part.left = item.nbytes
        return True

    def _computed_part(self, item: Item, length: int, now: float) -> Part:
        part = Part(item, item.front, item.front + length, False, now)
        item.front += length
        item.parts.append(part)
        return part

    def _first_to_load(self, item: Item, rates: Rates, now: float) -> int:
        """Where the next load of a packet begins: it takes half as long as the two sides together need.

        Or all of it is loaded, if the computing side, even at twice its speed, could do nothing for it meanwhile.
        """
        least = rates.compute_s(item.front, min(item.front + GRAIN, item.back)) if self._mode == "auto" else 0.0
        alone = rates.load_s(item.share(item.front, item.back))
        if self._mode == "load" or alone <= self._compute_left(rates, now, without=item) + least / 2:
            return item.front
        tokens = int(self._together(rates) / 2 * rates.bandwidth / item.nbytes * item.tokens)
        first = (item.back - max(tokens, 1)) // GRAIN * GRAIN
        return max(first, item.front)

    def _limit(self, rates: Rates) -> int:
        """Tokens to compute at a time: most of what the computing side has to do until the two sides meet.

        All of it, where another pass would cost more than what is left for it.
        """
        if self._mode == "compute":
            return self._batch
        together = self._together(rates) - rates.pass_seconds
        share = _SHARE if (1 - _SHARE) * together > rates.pass_seconds else 1.0
        return max(0, int(share * together / rates.token_seconds))

    def _until_met(self, item: Item, rates: Rates, now: float) -> int:
        """Tokens of the last packet to compute in a pass: what is left then, the loading side has brought meanwhile.

        At most a fifth of them is left for another pass, where that costs little: estimates are wrong.
        """
        open_tokens = item.back - item.front
        busy = self._load_left(rates, now) - rates.load_s(item.share(item.front, item.back))
        for tokens in range(GRAIN, open_tokens, GRAIN):
            rest = rates.load_s(item.share(item.front + tokens, item.back))
            if busy + rest <= rates.compute_s(item.front, item.front + tokens):
                break
        else:
            tokens = open_tokens
        fewer = -(-int(_SHARE * tokens) // GRAIN) * GRAIN
        spared = rates.token_seconds * rates.work(item.front + fewer, item.front + tokens)
        return fewer if spared > rates.pass_seconds else tokens

    def _together(self, rates: Rates) -> float:
        """Seconds until all open tokens are there, with both sides at work."""
        items = [item for item in self.items if item.open]
        compute = _compute_s(items, rates, self._batch)
        load = self._at_a_time([rates.load_s(item.share(item.front, item.back)) for item in items if item.nbytes])
        if not load or any(not item.nbytes for item in items):
            return compute
        return 1 / (1 / compute + 1 / load)

    def _hopeless(self, rates: Rates, now: float) -> list[Item]:
        """A packet whose load takes longer than computing would; the load is dropped."""
        if self._mode not in ("auto", "both"):
            return []
        for part in self._under_way(loading=True):
            item = part.item
            if rates.compute_s(item.front, part.last) < self._load_left(rates, now):
                part.dropped = item.interrupted = True
                item.parts.remove(part)
                item.back = part.last
                self._on_drop(part, now)
                return [item]
        return []

    def _load_left(self, rates: Rates, now: float) -> float:
        """Seconds until the loading side alone would have brought everything that is not being computed."""
        if self._mode == "compute":
            return float("inf")
        under_way, slower = [], 1.0
        for part in self._under_way(loading=True):
            expected, elapsed = max(1e-9, rates.load_s(part.left)), now - part.moved
            slower = max(slower, elapsed / expected)
            under_way.append(abs(expected - elapsed))  # what is late will be as late again
        items = [item for item in self.items if item.open]
        if any(not item.nbytes for item in items):
            return float("inf")
        waiting = [slower * rates.load_s(item.share(item.front, item.back)) for item in items]
        return self._at_a_time(under_way + waiting)

    def _at_a_time(self, seconds: list[float]) -> float:
        """How long loads of so many seconds take, as many at a time as are allowed."""
        return max([sum(seconds) / self.loads, *seconds])

    def _compute_left(self, rates: Rates, now: float, without: Item | None = None) -> float:
        """Seconds until the computing side alone would have brought all others that are not being loaded."""
        parts = list(self._under_way(loading=False))
        under_way = 0.0
        if parts:
            needed = rates.pass_seconds + rates.token_seconds * sum(rates.work(p.first, p.last) for p in parts)
            under_way = max(0.0, needed - (now - parts[0].moved))
        others = [item for item in self.items if item.open and item is not without]
        return under_way + _compute_s(others, rates, self._batch)

    def _under_way(self, *, loading: bool) -> Iterator[Part]:
        return (part for item in self.items for part in item.parts if part.loading == loading)


def _compute_s(items: Sequence[Item], rates: Rates, batch: int) -> float:
    """Seconds to compute what is open of some packets, in passes that short ones share."""
    passes = sum(item.back - item.front for item in items) / batch
    work = sum(rates.work(item.front, item.back) for item in items)
    return rates.pass_seconds * (max(1.0, passes) if items else 0.0) + rates.token_seconds * work


def _value(item: Item, rates: Rates) -> float:
    """Seconds of computing that a second of loading saves; packets that are not stored come first."""
    return rates.compute_s(0, item.tokens) / rates.load_s(item.nbytes) if item.nbytes else 0.0
