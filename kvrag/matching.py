"""Finds the texts of known chunks inside a prompt: a million of them in a few milliseconds.

Every window of `HEAD_CHARS` characters of the prompt is looked up; where a window is the head of known texts, all
their lengths are tried at once. Hashes only propose: one sha256 per proposal decides, so a collision costs time and
never makes a wrong match.
"""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from kvrag.fingerprints import HEAD_CHARS, Fingerprint, HashFilter, Spans, digest, fingerprint, scramble

__all__ = ["HEAD_CHARS", "Fingerprint", "Match", "TextMatcher", "fingerprint"]

V = TypeVar("V")

_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_TRIALS_AT_ONCE = 1 << 16  # bounds the memory of a search, and fits into a core's cache
_TRIALS_IN_ALL = 1 << 24  # bounds its time to a second or two


@dataclass(frozen=True)
class Match(Generic[V]):
    """A known text at `[start, end)` of the prompt, in characters, and what `confirm` returned for it."""

    start: int
    end: int
    value: V


class TextMatcher:
    """The fingerprints of known texts, and where those texts occur in a prompt.

    Takes about 40 bytes a text. One thread may add while others find: a search sees an addition whole or not at all.
    """

    def __init__(self) -> None:
        self._runs: tuple[_Run, ...] = ()
        self._filter = HashFilter(0)
        self._texts = 0

    def __len__(self) -> int:
        """Number of different texts added."""
        return self._texts

    def add(self, heads: np.ndarray, hashes: np.ndarray, lengths: np.ndarray) -> None:
        """Add texts by their fingerprints; texts already known are no harm.

        Args:
            heads: `[N]` uint64, `Fingerprint.head`.
            hashes: `[N]` uint64, `Fingerprint.hash`.
            lengths: `[N]` int64, `Fingerprint.length`, below 2**32.
        """
        if not len(heads):
            return
        lengths = np.ascontiguousarray(lengths, np.int64)
        run = _Run(heads, lengths.view(np.uint64), _keys(hashes, lengths))
        self._texts += int(np.count_nonzero(~_known(self._runs, run.keys)))
        runs = [*self._runs, run]
        # Sizes grow geometrically, so there are few runs and every text is merged a few times only.
        while len(runs) > 1 and len(runs[-2].keys) <= 4 * len(runs[-1].keys):
            runs[-2:] = [runs[-2].merged(runs[-1])]
        known, fresh = self._filter, [run]
        if not known.has_room(run.entries):
            known, fresh = HashFilter(sum(run.entries for run in runs)), runs
        for run in fresh:
            known.add(run.heads)
            known.add(run.keys)
        self._filter, self._runs = known, tuple(runs)  # a search reads them the other way round

    def find(self, text: str, confirm: Callable[[bytes], V | None]) -> list[Match[V]]:
        """The known texts in a prompt: the longest first, then the leftmost, none overlapping another.

        A prompt that repeats one head tens of thousands of times (100,000 times the letter a) is searched for the
        longest texts only, for a second or two: what was not found is merely computed.

        Args:
            text: the prompt.
            confirm: given the sha256 of a proposed span, returns what is known under it, or None to reject the span.

        Returns:
            Matches sorted by `start`.
        """
        if len(text) < HEAD_CHARS or not self._runs:
            return []
        runs, possible = self._runs, self._filter
        spans = Spans(text)
        trials = _Trials(spans, runs, possible)
        selection = _Selection(spans, confirm)
        tried = 0
        while trials.remain and tried < _TRIALS_IN_ALL:
            starts, lengths = trials.next()
            tried += len(starts)
            keys = _keys(spans.hashes(starts, lengths), lengths)
            proposed = possible.search(keys)
            proposed = proposed[starts[proposed] + lengths[proposed] <= len(text)]
            proposed = proposed[_known(runs, keys[proposed])]
            if selection.extend(starts[proposed], lengths[proposed]):
                trials.keep(selection.free(trials.starts, HEAD_CHARS))
        return selection.matches


class _Run:
    """Sorted arrays over some of the texts; never changed.

    Attributes:
        heads: `[A]` different heads.
        rows: `[B]` different pairs of head and length, as `index into heads << 32 | length`.
        keys: `[C]` different keys (hash and length) of whole texts.
    """

    def __init__(self, heads: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> None:
        self.heads, index = np.unique(heads, return_inverse=True)
        self.rows = _distinct((index.astype(np.uint64) << _HALF) | lengths)
        self.keys = _distinct(keys)

    @property
    def entries(self) -> int:
        return len(self.heads) + len(self.keys)

    def merged(self, other: "_Run") -> "_Run":
        heads = np.concatenate([run.heads[run.rows >> _HALF] for run in (self, other)])
        lengths = np.concatenate([self.rows, other.rows]) & _LOW
        return _Run(heads, lengths, np.concatenate([self.keys, other.keys]))

    def lengths(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lengths under the heads at `indices` [G], one after another, and how many each head has [G]."""
        bounds = indices.astype(np.uint64) << _HALF
        first, last = np.searchsorted(self.rows, bounds), np.searchsorted(self.rows, bounds | _LOW)
        return (self.rows[_ranges(first, last)] & _LOW).astype(np.int64), last - first


class _Trials:
    """The spans of a prompt that may be known texts, the longest first: where a head stands, all its lengths.

    Attributes:
        starts: `[M]` places of heads, those of one head side by side.
        rows: `[3, R]` what is left to try: a length (negative, so they ascend), and the range of `starts` to try it at.
    """

    def __init__(self, spans: Spans, runs: tuple[_Run, ...], possible: HashFilter) -> None:
        heads = spans.heads()
        starts = possible.search(heads)
        self.starts = starts[np.argsort(heads[starts], kind="stable")]
        heads, first, counts = np.unique(heads[self.starts], return_index=True, return_counts=True)
        parts = []
        for run in runs:
            found, indices = _lookup(run.heads, heads)
            lengths, number = run.lengths(indices)
            ranges = np.stack([first[found], first[found] + counts[found]])
            parts.append(np.vstack([-lengths, np.repeat(ranges, number, axis=1)]))
        rows = np.concatenate(parts, axis=1)
        self.rows = rows[:, np.argsort(rows[0], kind="stable")]

    @property
    def remain(self) -> bool:
        return self.rows.shape[1] > 0

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts [M] and lengths [M] of the next spans, some beyond the end of the text; takes their rows off."""
        _, first, last = self.rows[:, :_TRIALS_AT_ONCE]
        size = max(1, int(np.searchsorted(np.cumsum(last - first), _TRIALS_AT_ONCE, side="right")))
        # All spans of one length are decided together, or the leftmost might come too late.
        size = int(np.searchsorted(self.rows[0], self.rows[0, size - 1], side="right"))
        (lengths, first, last), self.rows = self.rows[:, :size], self.rows[:, size:]
        lengths = np.repeat(-lengths, last - first)
        return self.starts[_ranges(first, last)], lengths

    def keep(self, mask: np.ndarray) -> None:
        """Keep only the starts where `mask` [M] is true."""
        kept = np.concatenate([[0], np.cumsum(mask)])
        self.starts = self.starts[mask]
        self.rows[1:] = kept[self.rows[1:]]
        self.rows = self.rows[:, self.rows[1] < self.rows[2]]


class _Selection(Generic[V]):
    """The matches chosen so far, sorted; grows by proposals that come longest first."""

    def __init__(self, spans: Spans, confirm: Callable[[bytes], V | None]) -> None:
        self._spans, self._confirm = spans, confirm
        self.matches: list[Match[V]] = []

    def free(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`[M]` bool: whether `[start, start + length)` touches no match."""
        before = np.searchsorted([match.start for match in self.matches], starts + length)
        return np.array([0, *(match.end for match in self.matches)])[before] <= starts

    def extend(self, starts: np.ndarray, lengths: np.ndarray) -> bool:
        """Decide on the spans at `starts` [M] of `lengths` [M], descending; return whether any was chosen."""
        chosen = len(self.matches)
        bounds = [0, *(np.flatnonzero(np.diff(lengths)) + 1), len(lengths)]
        for first, last in pairwise(bounds if len(lengths) else []):
            self._extend(np.sort(starts[first:last]), int(lengths[first]))
        return len(self.matches) > chosen

    def _extend(self, starts: np.ndarray, length: int) -> None:
        starts = starts[self.free(starts, length)]
        while len(starts):
            start = int(starts[0])
            value = self._confirm(digest(self._spans.text[start : start + length]))
            if value is None:  # and so it would be for the same text elsewhere
                hashes = self._spans.hashes(starts, np.full_like(starts, length))
                starts = starts[hashes != hashes[0]]
            else:
                insort(self.matches, Match(start, start + length, value), key=lambda match: match.start)
                starts = starts[np.searchsorted(starts, start + length) :]


def _keys(hashes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`[M]` what texts of these `hashes` [M] uint64 and `lengths` [M] int64 are looked up by."""
    return scramble(hashes ^ lengths.view(np.uint64))


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, without duplicates (`np.unique` hashes integers, which takes 70 times as long)."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])]


def _lookup(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which `values` stand in the sorted `table`, and where in it."""
    places = np.minimum(np.searchsorted(table, values), len(table) - 1)
    found = np.flatnonzero(table[places] == values)
    return found, places[found]


def _known(runs: tuple[_Run, ...], keys: np.ndarray) -> np.ndarray:
    """`[M]` bool: which `keys` [M] are those of texts in any of the runs."""
    known = np.zeros(len(keys), bool)
    for run in runs:
        known[_lookup(run.keys, keys)[0]] = True
    return known


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The numbers from `first[0]` to below `last[0]`, then from `first[1]` on, and so forth, in one array."""
    ends = np.cumsum(last - first)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(last - ends, last - first)
