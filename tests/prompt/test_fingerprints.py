import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrag.fingerprints import Spans
from kvrag.matching import HEAD_CHARS, fingerprint

LONG = "The moat is 12 metres wide.\nIt was dug in 1311."


def test_values_are_those_that_stores_have_written() -> None:
    mark = fingerprint(LONG)
    assert mark is not None
    assert (mark.head, mark.hash, mark.length) == (0x6F8FE3DAD578AE8D, 0xCF4CCA0E4D27C3D0, 47)
    assert mark.digest == hashlib.sha256(LONG.encode()).digest()


def test_outer_whitespace_does_not_count() -> None:
    assert fingerprint(f" \r\n{LONG}\u2003\t") == fingerprint(LONG)


def test_short_texts_have_none() -> None:
    assert fingerprint("x" * (HEAD_CHARS - 1)) is None
    assert fingerprint(" " + "x" * (HEAD_CHARS - 1) + " ") is None
    assert fingerprint("") is None
    mark = fingerprint("x" * HEAD_CHARS)
    assert mark is not None
    assert mark.head == mark.hash


@pytest.mark.parametrize(
    "other",
    ["e\u0301" + LONG, "É" + LONG, "é" + LONG[:-1], f"é{LONG}\0", f"\0é{LONG}", "é" + LONG.replace("\n", "\r\n")],
)
def test_texts_that_look_alike_are_told_apart(other: str) -> None:
    first, second = fingerprint("é" + LONG), fingerprint(other)
    assert first is not None
    assert second is not None
    assert (first.hash, first.length) != (second.hash, second.length)
    assert first.digest != second.digest


def test_length_counts_code_points() -> None:
    mark = fingerprint("🎉" * 40)
    assert mark is not None
    assert mark.length == 40


@pytest.mark.parametrize("other", ["🎉" * 40, "?" * 40, "\ud83c" * 40])
def test_lone_surrogates_are_characters_of_their_own(other: str) -> None:
    first, second = fingerprint("\ud83c\udf89" * 20), fingerprint(other)
    assert first is not None
    assert second is not None
    assert first.length == second.length
    assert first.digest != second.digest
    assert first.hash != second.hash


@given(st.text(max_size=20), st.text(min_size=HEAD_CHARS, max_size=60), st.text(max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_span_has_the_hash_of_its_text(before: str, text: str, after: str) -> None:
    spans = Spans(before + text + after)
    start, length = np.array([len(before)]), np.array([len(text)])
    assert spans.hashes(start, length)[0] == Spans(text).sums[-1]
    assert spans.heads()[len(before)] == Spans(text).sums[HEAD_CHARS]
