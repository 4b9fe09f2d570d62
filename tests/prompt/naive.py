"""What the matcher must find, written with `str.find` and nothing clever."""

from collections.abc import Iterable

import numpy as np

from kvrag.matching import HEAD_CHARS, TextMatcher, fingerprint


def naive_find(prompt: str, texts: Iterable[str]) -> list[tuple[int, int, str]]:
    """`(start, end, text)` of known texts: the longest first, then the leftmost, none overlapping another."""
    known = {text.strip() for text in texts if len(text.strip()) >= HEAD_CHARS}
    places = sorted((-len(text), start, text) for text in known for start in occurrences(prompt, text))
    chosen: list[tuple[int, int, str]] = []
    for length, start, text in places:
        if all(start - length <= first or last <= start for first, last, _ in chosen):
            chosen.append((start, start - length, text))
    return sorted(chosen)


def occurrences(prompt: str, text: str) -> Iterable[int]:
    start = prompt.find(text)
    while start >= 0:
        yield start
        start = prompt.find(text, start + 1)


class KnownTexts:
    """A matcher over texts, and the texts by their digests."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.matcher = TextMatcher()
        self.by_digest: dict[bytes, str] = {}
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        marks = [(mark, text.strip()) for text in texts if (mark := fingerprint(text))]
        self.by_digest |= {mark.digest: text for mark, text in marks}
        self.matcher.add(
            np.array([mark.head for mark, _ in marks], np.uint64),
            np.array([mark.hash for mark, _ in marks], np.uint64),
            np.array([mark.length for mark, _ in marks], np.int64),
        )

    def find(self, prompt: str) -> list[tuple[int, int, str]]:
        return [(match.start, match.end, match.value) for match in self.matcher.find(prompt, self.by_digest.get)]
