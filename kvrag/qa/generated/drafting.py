"""What generated sets are made with: random choices, texts composed from word lists, passages with their questions."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from kvrag.qa.topics import Question, Topic

__all__ = ["Draft", "Draw", "Fact", "Grammar", "sentence_case", "to_topic"]

T = TypeVar("T")

Grammar = dict[str, tuple[str, ...]]
"""What a slot may become; the texts may have slots again."""

_SLOT = re.compile(r"\{([^{}]+)\}")
_SEPARATOR = re.compile(r"[-_.]")
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Fact:
    """Something that a passage may say about what it is about, and how one asks for it.

    Attributes:
        value: slots that become the answer.
        says: sentences with `{value}`; `{name}` is what the passage is about, `{other}` a value that does not hold.
        asks: questions, all with `{name}`.
    """

    value: str
    says: tuple[str, ...]
    asks: tuple[str, ...]


@dataclass
class Draft:
    """A passage in the making: its text, and (question, answer) pairs about it."""

    text: str
    asked: list[tuple[str, str]] = field(default_factory=list)


class Draw:
    """The random choices of one topic.

    Args:
        seed: decides all of them.
        grammar: what slots become.
    """

    def __init__(self, seed: str, grammar: Grammar) -> None:
        self.random = random.Random(seed)  # of a string: by its sha512, the same in every process
        self.grammar = grammar
        self._names: list[str] = []
        self._values: set[tuple[str, str]] = set()
        self._used = ""  # names and values, a line each: one search in a string is faster than many

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[int(self.random.random() * len(options))]

    def some(self, options: Iterable[T], low: int, high: int) -> list[T]:
        """Between `low` and `high` of these, in random order."""
        options = list(options)
        return self.random.sample(options, min(self.number(low, high), len(options)))

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return low + int(self.random.random() * (high - low + 1))

    def compose(self, text: str, **known: str) -> str:
        """A text with its slots filled.

        A slot is a key of `known` or of the grammar, or `{one|of|these}`, or a range of numbers such as `{10-99}`, with
        leading zeros if its first number has some.
        """
        filled: list[str] = []
        for literal, slot, options, bounds in _slots(text):
            filled.append(literal)
            if options:
                filled.append(self.pick(options))
            elif bounds:
                low, high, width = bounds
                filled.append(str(self.number(low, high)).zfill(width))
            elif slot:
                filled.append(known[slot] if slot in known else self.compose(self.pick(self.grammar[slot]), **known))
        return "".join(filled)

    def name(self, pattern: str) -> str:
        """A composed name that is part of no other name or value of this topic, and no other name part of it."""
        for _ in range(1000):
            made = self.compose(pattern)
            folded = _fold(made)
            if folded not in self._used and not self._holds_name(folded):
                self._names.append(folded)
                self._used += folded + "\n"
                return made
        raise AssertionError(f"{pattern} has too few names")

    def value(self, kind: str, pattern: str) -> str:
        """A composed value without a name of the topic in it, and new for this kind if there are enough."""
        made = ""
        for _ in range(8):
            made = self.compose(pattern)
            folded = _fold(made)
            if (kind, folded) not in self._values and not self._holds_name(folded):
                break
        self._values.add((kind, _fold(made)))
        self._used += _fold(made) + "\n"
        return made

    def tell(self, fact: Fact, name: str) -> tuple[str, tuple[str, str]]:
        """A sentence that says the fact of what is called `name`, and (question, answer)."""
        value = self.value(fact.value, fact.value)
        says = self.pick(fact.says)
        known = {"name": name, "value": value}
        if "{other}" in says:
            known["other"] = self.value(fact.value, fact.value)
        if known.get("other") == value:
            says = next(text for text in fact.says if "{other}" not in text)
        said = sentence_case(self.compose(says, **known))
        return said, (sentence_case(self.compose(self.pick(fact.asks), name=name)), value)

    def fill(self, words: int, slot: str) -> list[str]:
        """Texts of a slot, no two the same, until they have so many words; all of its wordings come equally often."""
        made: dict[str, None] = {}
        order: list[str] = []
        count = 0
        for _ in range(words):
            if count >= words:
                break
            order = order or self.random.sample(self.grammar[slot], len(self.grammar[slot]))
            text = self.compose(order.pop())
            if text not in made:
                made[text] = None
                count += len(text.split())
        return list(made)

    def _holds_name(self, folded: str) -> bool:
        return len(folded) > 3 and any(name in folded for name in self._names)


def _fold(text: str) -> str:
    """The text without what hides that one name is part of another."""
    return _SEPARATOR.sub(" ", text.casefold())


@cache
def _slots(text: str) -> tuple[tuple[str, str, tuple[str, ...], tuple[int, int, int] | None], ...]:
    """The slots of a text: what stands in front, its name, what to choose from, bounds and width of a number."""
    found = []
    parts = [*_SLOT.split(text), ""]
    for literal, slot in zip(parts[::2], parts[1::2], strict=True):
        bounds = _RANGE.fullmatch(slot)
        limits = (int(bounds[1]), int(bounds[2]), len(bounds[1])) if bounds else None
        found.append((literal, slot, tuple(slot.split("|")) if "|" in slot else (), limits))
    return tuple(found)


def sentence_case(text: str) -> str:
    """The text with a capital letter in front."""
    return text[:1].upper() + text[1:]


def to_topic(title: str, drafts: Sequence[Draft]) -> Topic:
    """The topic of these passages."""
    questions: list[Question] = []
    for number, draft in enumerate(drafts):
        for question, answer in draft.asked:
            assert answer in draft.text, (answer, draft.text)
            questions.append(Question(question, (answer,), (number,)))
    return Topic(title, tuple(draft.text for draft in drafts), tuple(questions))
