"""How a text is recognised: 64-bit hashes that propose, and a sha256 that decides.

Hashes are polynomial over code points modulo 2**64. From one array of prefix sums the hash of any span of a text costs
a subtraction and a multiplication, because an odd base has an inverse; a span's hash does not depend on its place.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

__all__ = ["HEAD_CHARS", "Fingerprint", "Spans", "digest", "fingerprint", "scramble"]

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
        """`[M]` hashes of the spans at `starts` [M] of `lengths` [M]."""
        hashes = self.sums[starts + lengths]
        hashes -= self.sums[starts]
        hashes *= self._inverses[starts]
        return hashes


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
