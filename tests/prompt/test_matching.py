from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrag import matching
from kvrag.matching import HEAD_CHARS, Match, TextMatcher, fingerprint

from .naive import KnownTexts, naive_find

LETTERS = ["a", "b", " ", "\r\n", "é", "e\u0301", "🎉", "\ud800", "\0"]
WORDS = st.lists(st.sampled_from(LETTERS), max_size=120).map("".join)


@st.composite
def prompts_and_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Prompts with much repetition, and texts that overlap, contain, repeat and nearly equal parts of them."""
    period = draw(WORDS)
    prompt = draw(st.one_of(WORDS, st.just((period * 20)[:250]))) + draw(WORDS)
    cut = st.tuples(st.integers(0, len(prompt)), st.integers(HEAD_CHARS, 90))
    texts = [prompt[start : start + length] for start, length in draw(st.lists(cut, max_size=8))]
    texts += [text[:-1] + "x" for text in texts[:3]] + [text[:HEAD_CHARS] for text in texts[3:5]]
    return prompt, texts


@given(prompts_and_texts(), st.sampled_from([1, 7, 1 << 16]), st.integers(1, 4))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_finds_what_str_find_finds(case: tuple[str, list[str]], trials: int, batch: int) -> None:
    prompt, texts = case
    known = KnownTexts()
    for first in range(0, len(texts), batch):
        known.add(texts[first : first + batch])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_TRIALS_AT_ONCE", trials)
        assert known.find(prompt) == naive_find(prompt, texts)
    assert len(known.matcher) == len(known.by_digest)


@given(prompts_and_texts(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_rejected_text_leaves_room_for_others(case: tuple[str, list[str]], random) -> None:
    prompt, texts = case
    known = KnownTexts(texts)
    for digest in random.sample(sorted(known.by_digest), len(known.by_digest) // 2):
        del known.by_digest[digest]
    assert known.find(prompt) == naive_find(prompt, known.by_digest.values())


def numbered(count: int, *, header: str = "") -> list[str]:
    return [f"{header}Chunk {i:05d} of a corpus: {'lorem ipsum ' * (3 + i % 7)}end {i}." for i in range(count)]


def test_a_thousand_texts_with_one_common_head() -> None:
    texts = numbered(1000, header="# Copyright 2026 The Authors. All rights reserved.\n")
    known = KnownTexts(texts)
    prompt = "\n\n".join([texts[0][:-1], texts[7], texts[999], texts[7], texts[500] + texts[501], texts[3][:60]])
    assert known.find(prompt) == naive_find(prompt, texts)
    assert [text for _, _, text in known.find(prompt)] == [texts[i] for i in (7, 999, 7, 500, 501)]


def test_texts_at_both_ends_adjacent_and_alone() -> None:
    one, two = numbered(2)
    known = KnownTexts([one, two])
    assert known.find(one) == [(0, len(one), one)]
    assert known.find(one + two) == [(0, len(one), one), (len(one), len(one + two), two)]
    assert known.find(f"{two} and {two}") == [(0, len(two), two), (len(two) + 5, 2 * len(two) + 5, two)]
    assert known.find(one[:-1]) == []


def test_the_longest_wins_and_of_equals_the_leftmost() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(100))
    left, right, longest = text[:50], text[40:90], text[10:61]
    assert KnownTexts([left, right]).find(text) == [(0, 50, left)]
    assert KnownTexts([left, right, longest]).find(text) == [(10, 61, longest)]


@pytest.mark.parametrize("trials", [1, 1 << 16])
def test_of_equals_with_different_heads_the_leftmost_wins_too(monkeypatch: pytest.MonkeyPatch, trials: int) -> None:
    monkeypatch.setattr(matching, "_TRIALS_AT_ONCE", trials)
    for i in range(20):
        text = "".join(chr(0x4E00 + 100 * i + j) for j in range(60))
        assert KnownTexts([text[:40], text[20:]]).find(text) == [(0, 40, text[:40])]


def test_a_rejected_text_does_not_hide_another_of_its_length() -> None:
    gone, kept = (text[:60] for text in numbered(2))
    known = KnownTexts([gone, kept])
    del known.by_digest[next(iter(known.by_digest))]
    assert known.find(gone + gone + kept + gone + kept) == [(120, 180, kept), (240, 300, kept)]


def test_many_small_additions_equal_one() -> None:
    texts = numbered(300)
    prompt = " ".join(texts[::7])
    known = KnownTexts()
    for text in texts:
        known.add([text])
    assert known.find(prompt) == KnownTexts(texts).find(prompt) == naive_find(prompt, texts)
    assert len(known.matcher) == 300
    assert len(known.matcher._runs) < 8


def test_adding_again_changes_nothing() -> None:
    texts = numbered(20)
    known = KnownTexts(texts + texts)
    known.add(texts)
    known.add([])
    assert len(known.matcher) == 20
    assert len(known.find("".join(texts))) == 20


def test_texts_are_still_found_among_many_added_later() -> None:
    texts = numbered(20)
    known = KnownTexts(texts)
    known.matcher.add(*random_fingerprints(50_000))
    assert len(known.matcher) == 50_020
    assert [text for _, _, text in known.find("".join(texts))] == texts


def test_texts_that_differ_by_a_final_zero_are_two() -> None:
    text = numbered(1)[0]
    known = KnownTexts([text, text + "\0"])
    assert len(known.matcher) == 2
    assert [found for _, _, found in known.find(f"{text}\0\0{text}")] == [text + "\0", text]


def test_an_empty_matcher_and_a_short_prompt_find_nothing() -> None:
    assert TextMatcher().find("x" * 100, lambda digest: digest) == []
    assert KnownTexts(["x" * 40]).find("x" * 39) == []
    assert KnownTexts(["x" * 40]).find("") == []


@pytest.mark.parametrize(("shortest", "longest"), [(32, 33), (32, 400), (300, 900)])
def test_one_letter_repeated(shortest: int, longest: int) -> None:
    texts = ["a" * length for length in range(shortest, longest)]
    known = KnownTexts(texts)
    found = known.find("a" * 5000)
    assert [end - start for start, end, _ in found] == [longest - 1] * (5000 // (longest - 1)) + [
        rest for rest in [5000 % (longest - 1)] if rest >= shortest
    ]


def test_a_search_that_is_cut_short_finds_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    short = numbered(1)[0][:35]
    known = KnownTexts(["a" * length + "b" for length in range(40, 300)] + ["a" * 299, short])
    prompt = "a" * 900 + short + "a" * 290
    longest = [(start, start + 299, "a" * 299) for start in (0, 299, 598)]
    assert known.find(prompt) == [*longest, (900, 935, short)]
    monkeypatch.setattr(matching, "_TRIALS_AT_ONCE", 100)
    monkeypatch.setattr(matching, "_TRIALS_IN_ALL", 2000)
    assert known.find(prompt) == longest


def thue_morse(bits: int, first: str, second: str) -> str:
    return "".join((first, second)[i.bit_count() % 2] for i in range(1 << bits))


def test_texts_with_equal_hashes_are_told_apart() -> None:
    """Thue-Morse words collide under every polynomial hash modulo a power of two."""
    head = "head of both texts, which is the same."
    one, two = (head + thue_morse(12, *letters) for letters in ("ab", "ba"))
    first, second = fingerprint(one), fingerprint(two)
    assert first is not None
    assert second is not None
    assert (first.head, first.hash, first.length) == (second.head, second.hash, second.length)
    assert KnownTexts([one]).find(two) == []
    assert KnownTexts([one, two]).find(two + one) == [(0, len(two), two), (len(two), 2 * len(two), one)]


def test_confirm_gets_the_digest_and_its_value_is_handed_on() -> None:
    text = "A lone surrogate \ud800 in a text that is long enough."
    known = KnownTexts([text])
    seen: list[bytes] = []
    matches = known.matcher.find(f"<{text}>", lambda digest: seen.append(digest) or 42)
    assert matches == [Match(1, 1 + len(text), 42)]
    assert seen == list(known.by_digest)


def random_fingerprints(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    heads, hashes = rng.integers(0, 2**64, (2, count), np.uint64)
    return heads, hashes, rng.integers(HEAD_CHARS, 4000, count)


def test_random_fingerprints_find_nothing() -> None:
    matcher = TextMatcher()
    matcher.add(*random_fingerprints(50_000))
    prompt = "".join(map("".join, product("abcdef", repeat=5)))
    assert matcher.find(prompt, lambda digest: digest) == []
