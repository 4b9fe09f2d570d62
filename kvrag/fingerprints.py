"""How a text is recognised: 64-bit hashes that propose, and a sha256 that decides.

Hashes are polynomial over code points modulo 2**64. From one array of prefix sums the hash of any span of a text costs
a subtraction and a multiplication, because an odd base has an inverse; a span's hash does not depend on its place.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

__all__ = ["HEAD_CHARS", "Fingerprint", "HashFilter", "Spans", "digest", "fingerprint", "scramble"]

HEAD_CHARS = 32
"""Length of a head in characters; shorter texts have no fingerprint."""

# Stores keep these hashes: another constant makes every fingerprint written before worthless.
_BASE = 0xD1342543DE82EF95
_MIX = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


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


def fingerprint(text: str) -> Fingerprint | None:
    """The fingerprint of `text.strip()`, or None when that is shorter than `HEAD_CHARS` characters."""
    text = text.strip()
    if len(text) < HEAD_CHARS:
        return None
    sums = Spans(text).sums
    return Fingerprint(int(sums[HEAD_CHARS]), int(sums[-1]), len(text), digest(text))


class Spans:
    """Hashes of all spans of a text.

    Attributes:
        text: the text, of `N` characters.
        sums: `[N + 1]` uint64, hashes of the text's beginnings.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        powers, self._inverses = _powers(max(12, len(codes).bit_length()))
        terms = scramble(codes)
        terms *= powers[: len(codes)]
        self.sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(terms, out=self.sums[1:])

    def heads(self) -> np.ndarray:
        """`[N - HEAD_CHARS + 1]` hashes of all windows of `HEAD_CHARS` characters."""
        heads = self.sums[HEAD_CHARS:] - self.sums[:-HEAD_CHARS]
        heads *= self._inverses[: len(heads)]
        return heads

    def hashes(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """`[M]` hashes of the spans at `starts` [M] of `lengths` [M]; of no meaning where a span passes the end."""
        hashes = self.sums.take(starts + lengths, mode="clip")
        hashes -= self.sums.take(starts, mode="clip")
        hashes *= self._inverses.take(starts, mode="clip")
        return hashes


class HashFilter:
    """Tells nearly all hashes that were never added, by two bits at places that the hash itself names.

    Args:
        entries: hashes to make room for; at first each has 64 to 128 bits, when the filter is full 32.
    """

    def __init__(self, entries: int) -> None:
        size = max(13, (8 * entries).bit_length())
        self._bits = np.zeros(1 << size, np.uint8)
        self._shift = np.uint64(64 - size)
        self._room = (1 << size) // 4

    def has_room(self, entries: int) -> bool:
        """Whether so many more can be added."""
        return entries <= self._room

    def add(self, values: np.ndarray) -> None:
        """Add `values` [N] uint64."""
        for places in (values, scramble(values)):
            bits = np.left_shift(np.uint8(1), places.astype(np.uint8) & 7)
            np.bitwise_or.at(self._bits, (places >> self._shift).view(np.int64), bits)
        self._room -= len(values)

    def search(self, values: np.ndarray) -> np.ndarray:
        """`[K]` indices of those `values` [M] uint64 that may have been added."""
        found = np.flatnonzero(self._look(values))
        return found[self._look(scramble(values[found]))]

    def _look(self, places: np.ndarray) -> np.ndarray:
        bits = self._bits.take((places >> self._shift).view(np.int64), mode="clip")  # faster than a check of each place
        bits >>= places.astype(np.uint8) & 7
        bits &= 1
        return bits.view(bool)


def digest(text: str) -> bytes:
    """The sha256 of a text in UTF-8, lone surrogates passed through."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def scramble(values: np.ndarray) -> np.ndarray:
    """`values` [M] uint64, mapped one to one so that every bit in the upper and lower half is a good one."""
    values = values * _MIX
    values ^= values >> _HALF
    return values


@cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse, `2**bits` of each."""
    factors = np.ones((2, 1 << bits), np.uint64)
    factors[:, 1:] = np.array([[_BASE], [pow(_BASE, -1, 1 << 64)]], np.uint64)
    powers, inverses = np.multiply.accumulate(factors, axis=1)
    return powers, inverses
