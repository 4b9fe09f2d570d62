"""Finds the texts of known chunks inside a prompt: a million of them in a few milliseconds.

A text is known by its `Fingerprint`. Hashes are polynomial over code points modulo 2**64, so with one array of prefix
sums the hash of any span of the prompt costs two additions and a multiplication (the odd base has an inverse). Every
window of `HEAD_CHARS` characters is looked up first; where a window is the head of known texts, all their lengths are
tried at once. Hashes only propose: one sha256 per proposal decides, so a collision costs time and never a wrong match.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

__all__ = ["HEAD_CHARS", "Fingerprint", "Match", "TextMatcher", "fingerprint"]

V = TypeVar("V")

HEAD_CHARS = 32
"""Length of a head in characters; shorter texts have no fingerprint."""

# Indexes store these hashes: a change of a constant makes every stored fingerprint worthless.
_BASE = 0xD1342543DE82EF95
_MIX = np.uint64(0x9E3779B97F4A7C15)
_LENGTH_MIX = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)

_SPANS_AT_ONCE = 1 << 18  # bounds the memory of one round of `find`: about 10 MB
_RUN_RATIO = 4


@dataclass(frozen=True)
class Fingerprint:
    """What a matcher and an index need to know of a text.

    Attributes:
        head: 64-bit hash of the first `HEAD_CHARS` characters.
        hash: 64-bit hash of the whole text.
        length: characters (code points).
        digest: sha256 of the text in UTF-8, lone surrogates passed through.
    """

    head: int
    hash: int
    length: int
    digest: bytes


@dataclass(frozen=True)
class Match(Generic[V]):
    """A known text at `[start, end)` of the prompt, in characters, and what `confirm` returned for it."""

    start: int
    end: int
    value: V


def fingerprint(text: str) -> Fingerprint | None:
    """The fingerprint of `text.strip()`, or None when that is shorter than `HEAD_CHARS` characters."""
    text = text.strip()
    if len(text) < HEAD_CHARS:
        return None
    sums = _Spans(text).sums
    return Fingerprint(int(sums[HEAD_CHARS]), int(sums[-1]), len(text), _digest(text))


class TextMatcher:
    """The fingerprints of known texts, and where those texts occur in a prompt.

    Takes about 40 bytes a text. One thread may add while others find: a search sees an addition whole or not at all.
    """

    def __init__(self) -> None:
        self._runs: tuple[_Run, ...] = ()
        self._filter = _Filter(0)
        self._texts = 0

    def __len__(self) -> int:
        """Number of different texts added."""
        return self._texts

    def add(self, heads: np.ndarray, hashes: np.ndarray, lengths: np.ndarray) -> None:
        """Adds texts by their fingerprints; texts already known are no harm.

        Args:
            heads: `[N]` uint64, `Fingerprint.head`.
            hashes: `[N]` uint64, `Fingerprint.hash`.
            lengths: `[N]` int64, `Fingerprint.length`, below 2**32.
        """
        lengths = lengths.astype(np.uint64)
        run = _Run(heads, lengths, _keys(hashes, lengths))
        self._texts += int(np.count_nonzero(~_known(self._runs, run.keys)))
        runs = [*self._runs, run]
        # Sizes grow geometrically, so there are few runs and every text is merged a few times only.
        while len(runs) > 1 and len(runs[-2].keys) <= _RUN_RATIO * len(runs[-1].keys):
            runs[-2:] = [runs[-2].merged(runs[-1])]
        fresh = [run]
        if not self._filter.has_room(run.entries):
            self._filter, fresh = _Filter(sum(run.entries for run in runs)), runs
        for run in fresh:
            self._filter.add(run.heads)
            self._filter.add(run.keys)
        self._runs = tuple(runs)

    def find(self, text: str, confirm: Callable[[bytes], V | None]) -> list[Match[V]]:
        """The known texts in a prompt: the longest first, then the leftmost, none overlapping another.

        Args:
            text: the prompt.
            confirm: given the sha256 of a proposed span, returns what is known under it, or None to reject the span.

        Returns:
            Matches sorted by `start`.
        """
        if len(text) < HEAD_CHARS or not self._runs:
            return []
        spans = _Spans(text)
        known, runs = self._filter, self._runs
        chosen = _Selection(spans, confirm)
        hits = _Hits.search(spans, known, runs)
        while len(hits.row_lengths):
            starts, lengths = hits.next_candidates()
            fits = starts + lengths <= len(text)
            starts, lengths = starts[fits], lengths[fits]
            keys = spans.keys(starts, lengths)
            maybe = np.flatnonzero(known.mask(keys))
            sure = maybe[_known(runs, keys[maybe])]
            if chosen.extend(starts[sure], lengths[sure]):
                hits.keep(chosen.free(hits.starts, HEAD_CHARS))
        return [Match(start, end, value) for start, end, value in zip(chosen.starts, chosen.ends, chosen.values)]


class _Spans:
    """Hashes of all spans of a text, from prefix sums of `code point * base**position`."""

    def __init__(self, text: str) -> None:
        self.text = text
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        powers, self.inverses = _powers(max(12, len(codes).bit_length()))
        self.sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(_scramble(codes) * powers[: len(codes)], out=self.sums[1:])

    def heads(self) -> np.ndarray:
        """`[N - HEAD_CHARS + 1]` hashes of all windows of `HEAD_CHARS` characters."""
        return (self.sums[HEAD_CHARS:] - self.sums[:-HEAD_CHARS]) * self.inverses[: len(self.sums) - HEAD_CHARS]

    def keys(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """`[M]` keys of the spans at `starts` [M] of `lengths` [M]."""
        hashes = (self.sums[starts + lengths] - self.sums[starts]) * self.inverses[starts]
        return _keys(hashes, lengths.astype(np.uint64))


class _Run:
    """Sorted arrays over some of the texts; never changed.

    Attributes:
        heads: `[A]` different heads.
        rows: `[B]` different pairs of head and length, as `index into heads << 32 | length`.
        keys: `[C]` different keys (hash and length) of whole texts.
    """

    def __init__(self, heads: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> None:
        self.heads, index = np.unique(heads, return_inverse=True)
        self.rows = np.unique((index.astype(np.uint64) << _HALF) | lengths)
        self.keys = np.unique(keys)

    @property
    def entries(self) -> int:
        return len(self.heads) + len(self.keys)

    def merged(self, other: "_Run") -> "_Run":
        heads = [run.heads[run.rows >> _HALF] for run in (self, other)]
        rows = np.concatenate([self.rows, other.rows])
        return _Run(np.concatenate(heads), rows & _LOW, np.concatenate([self.keys, other.keys]))

    def lengths_of(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lengths under the heads numbered `groups` [G], one after another, and how many each has [G]."""
        bounds = groups.astype(np.uint64) << _HALF
        first = np.searchsorted(self.rows, bounds)
        counts = np.searchsorted(self.rows, bounds | _LOW) - first
        return (self.rows[_ranges(first, counts)] & _LOW).astype(np.int64), counts


class _Filter:
    """One bit per 64-bit value at a place its hash chooses: most values never added are told apart by one look."""

    def __init__(self, entries: int) -> None:
        size = max(16, (64 * entries).bit_length())  # 64 to 128 bits an entry, until it is full at 32
        self._shift = np.uint64(64 - size)
        self._bits = np.zeros(1 << (size - 3), np.uint8)
        self._room = (1 << size) // 32

    def has_room(self, entries: int) -> bool:
        return entries <= self._room

    def add(self, values: np.ndarray) -> None:
        places = (values * _MIX) >> self._shift
        np.bitwise_or.at(self._bits, (places >> np.uint64(3)).view(np.int64), _bit(places))
        self._room -= len(values)

    def mask(self, values: np.ndarray) -> np.ndarray:
        """`[M]` bool: False where `values` [M] were certainly never added."""
        places = (values * _MIX) >> self._shift
        return (self._bits[(places >> np.uint64(3)).view(np.int64)] & _bit(places)) != 0


class _Hits:
    """Places of the prompt where heads of known texts stand, and the lengths to try there, longest first.

    Attributes:
        starts: `[M]` places, grouped by head.
        row_lengths: `[R]` lengths still to try, descending; each is tried at all places of its row's head.
    """

    def __init__(self, starts: np.ndarray, groups: np.ndarray, row_lengths: np.ndarray, row_groups: np.ndarray):
        order = np.argsort(-row_lengths, kind="stable")
        self.starts, self._groups = starts, groups
        self.row_lengths, self._row_groups = row_lengths[order], row_groups[order]

    @classmethod
    def search(cls, spans: _Spans, known: _Filter, runs: "tuple[_Run, ...]") -> "_Hits":
        heads = spans.heads()
        maybe = np.flatnonzero(known.mask(heads))
        heads = heads[maybe]
        columns, groups_before = [], 0
        for run in runs:
            index = np.searchsorted(run.heads, heads)
            found = np.flatnonzero(run.heads[np.minimum(index, len(run.heads) - 1)] == heads)
            groups, group_of = np.unique(index[found], return_inverse=True)
            order = np.argsort(group_of, kind="stable")
            lengths, counts = run.lengths_of(groups)
            row_groups = np.repeat(np.arange(len(groups)), counts)
            columns.append((maybe[found[order]], group_of[order] + groups_before, lengths, row_groups + groups_before))
            groups_before += len(groups)
        return cls(*(np.concatenate(column) for column in zip(*columns)))

    def next_candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of the next spans to test; takes their rows off the list."""
        first = np.searchsorted(self._groups, self._row_groups)
        counts = np.searchsorted(self._groups, self._row_groups, side="right") - first
        rows = max(1, int(np.searchsorted(np.cumsum(counts), _SPANS_AT_ONCE, side="right")))
        lengths = np.repeat(self.row_lengths[:rows], counts[:rows])
        starts = self.starts[_ranges(first[:rows], counts[:rows])]
        self.row_lengths, self._row_groups = self.row_lengths[rows:], self._row_groups[rows:]
        return starts, lengths

    def keep(self, mask: np.ndarray) -> None:
        self.starts, self._groups = self.starts[mask], self._groups[mask]


class _Selection(Generic[V]):
    """The matches chosen so far, sorted; grows by proposals that come longest first."""

    def __init__(self, spans: _Spans, confirm: Callable[[bytes], V | None]) -> None:
        self._spans, self._confirm = spans, confirm
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.values: list[V] = []

    def free(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`[M]` bool: whether `[start, start + length)` touches no match."""
        before = np.searchsorted(self.starts, starts + length)  # matches that begin left of the span's end
        return np.concatenate([[0], self.ends])[before] <= starts

    def extend(self, starts: np.ndarray, lengths: np.ndarray) -> bool:
        """Decides on the spans at `starts` [M] of `lengths` [M]; returns whether any was chosen."""
        chosen = len(self.starts)
        for length in np.unique(lengths)[::-1].tolist():
            self._extend(np.unique(starts[lengths == length]), length)
        return len(self.starts) > chosen

    def _extend(self, starts: np.ndarray, length: int) -> None:
        starts = starts[self.free(starts, length)]
        while len(starts):
            start = int(starts[0])
            value = self._confirm(_digest(self._spans.text[start : start + length]))
            if value is None:  # so will be the same text elsewhere
                keys = self._spans.keys(starts, np.full_like(starts, length))
                starts = starts[keys != keys[0]]
                continue
            place = bisect_left(self.starts, start)
            self.starts.insert(place, start)
            self.ends.insert(place, start + length)
            self.values.insert(place, value)
            starts = starts[np.searchsorted(starts, start + length) :]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@lru_cache(maxsize=None)
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse, `2**bits` of each."""
    powers = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(1 << bits, base, np.uint64)
        factors[0] = 1
        powers.append(np.multiply.accumulate(factors))
    return powers[0], powers[1]


def _scramble(values: np.ndarray) -> np.ndarray:
    values = values * _MIX
    return values ^ (values >> _HALF)


def _keys(hashes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return _scramble(hashes ^ (lengths * _LENGTH_MIX))


def _bit(places: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))


def _known(runs: tuple[_Run, ...], keys: np.ndarray) -> np.ndarray:
    """`[M]` bool: which `keys` [M] are keys of texts in any of the runs."""
    known = np.zeros(len(keys), bool)
    for run in runs:
        index = np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)
        known |= run.keys[index] == keys
    return known


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`first[0], first[0] + 1, ...`: `counts[i]` numbers from each `first[i]` on, in one array."""
    return np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
