"""A division between computing and loading that is fixed before anything begins."""

from collections.abc import Sequence

from kvrag.loading.parts import GRAIN, Item, Part
from kvrag.loading.rates import Rates
from kvrag.loading.schedule import Schedule
from kvrag.loading.settings import LoadingMode
from kvrag.packet import PacketKey

__all__ = ["Division", "divide"]

_CHUNK = 512  # tokens that are computed at a time of a packet that is loaded too


def divide(items: Sequence[Item], rates: Rates, mode: LoadingMode) -> dict[PacketKey, int]:
    """How many tokens of each packet are computed, so that both sides are done as early as they can be.

    Args:
        items: in their line: what stands in front is computed.
        rates: of both sides.
        mode: "auto" and "both" divide.
    """
    if mode == "load":
        return {item.key: 0 for item in items}
    if mode == "compute":
        return {item.key: item.tokens for item in items}
    computed, loaded = 0.0, sum(rates.load_s(item.nbytes) for item in items if item.nbytes)
    best, found = (float("inf") if any(not item.nbytes for item in items) else loaded), (0, 0)
    for number, item in enumerate(items):
        alone = rates.load_s(item.nbytes) if item.nbytes else 0.0
        unstored = any(not later.nbytes for later in items[number + 1 :])
        cuts = range(GRAIN, item.tokens, GRAIN) if item.splits else ()
        for cut in (*cuts, item.tokens):
            left = 0.0 if cut == item.tokens else rates.load_s(item.share(cut, item.tokens))
            seconds = max(computed + rates.compute_s(0, cut), loaded - alone + left)
            if seconds < best and not unstored:
                best, found = seconds, (number, cut)
        computed, loaded = computed + rates.compute_s(0, item.tokens), loaded - alone
    number, cut = found
    cuts = [item.tokens if at < number else cut if at == number else 0 for at, item in enumerate(items)]
    return {item.key: cut for item, cut in zip(items, cuts, strict=True)}


class Division(Schedule):
    """The same work for both sides in every run: nothing is measured, nothing taken over, one packet at a time.

    Args:
        items: to bring.
        rates: that decide.
        mode: which sides work.
        loads: at a time, which changes nothing about who brings what.
    """

    def __init__(self, items: Sequence[Item], rates: Rates, mode: LoadingMode, loads: int = 1) -> None:
        super().__init__(items, lambda: rates, mode, loads=loads)
        self.computed = divide(self.items, rates, mode)

    def next_to_load(self, now: float) -> Part | None:
        """The rest of the last packet that has one."""
        for item in reversed(self.items):
            first = self.computed[item.key]
            if item.nbytes and first < item.back and not item.lost:
                part = Part(item, first, item.back, True, now, item.share(first, item.back))
                item.back = first
                item.parts.append(part)
                return part
        return None

    def next_to_compute(self, now: float) -> list[Part]:
        """The next tokens of the first packet that has some."""
        for item in self.items:
            end = self.computed[item.key] if item.nbytes else item.tokens
            if item.front < end and not item.lost and self._mode != "load":
                whole = end == item.tokens and not item.front
                return [self._computed_part(item, end if whole else min(_CHUNK, end - item.front), now)]
        return []

    def load_whole(self, part: Part) -> bool:
        """The packet turns out not to split: it is computed, since nobody knows how far that is."""
        part.item.parts.remove(part)
        part.item.back = self.computed[part.item.key] = part.item.tokens
        part.item.splits = False
        return False
