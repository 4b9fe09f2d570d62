"""Passages with questions, in the one shape that every data set is brought into."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Context", "Question", "QuestionSet", "Topic"]


@dataclass(frozen=True)
class Question:
    """A question about the passages of a topic or of a context.

    Attributes:
        text: the question.
        answers: accepted ones; empty when nobody wrote any.
        passages: numbers of the passages that it takes to answer it.
    """

    text: str
    answers: tuple[str, ...] = ()
    passages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Topic:
    """Passages that belong together, such as the paragraphs of an article, and questions about them."""

    title: str
    passages: tuple[str, ...]
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Context:
    """Passages in the order of a prompt, and questions whose `passages` are numbers in this order."""

    passages: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class QuestionSet:
    """A data set.

    Attributes:
        name: in reports.
        topics: what it consists of.
    """

    name: str
    topics: tuple[Topic, ...]

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(topic, question) numbers of every question."""
        return tuple((t, q) for t, topic in enumerate(self.topics) for q in range(len(topic.questions)))

    def __len__(self) -> int:
        return len(self.places)

    def draw(self, rng: random.Random, passages: int, *, place: tuple[int, int], questions: int = 1) -> Context:
        """The question at `place` among `passages` passages, hard distractors first.

        Its own passages come first, then others of the same topic, then any of the set; all of them are shuffled.

        Args:
            rng: what decides.
            passages: how many; more when the question itself needs more, fewer when the set has no more.
            place: of the question that must be there, one of `places`.
            questions: at most so many, the first of them at `place`, the others about passages that happen to be there.
        """
        topic = self.topics[place[0]]
        asked = topic.questions[place[1]]
        needed = list(dict.fromkeys(asked.passages))
        others = [number for number in range(len(topic.passages)) if number not in set(needed)]
        chosen = needed + rng.sample(others, max(0, min(passages - len(needed), len(others))))
        texts = [topic.passages[number] for number in chosen]
        taken = set(texts)
        for _ in range(20 * passages):
            if len(texts) >= passages:
                break
            elsewhere = rng.choice(self.topics).passages
            text = rng.choice(elsewhere) if elsewhere else ""
            if text and text not in taken:
                texts.append(text)
                taken.add(text)
        order = list(range(len(texts)))
        rng.shuffle(order)
        place_of = {chosen[old]: new for new, old in enumerate(order) if old < len(chosen)}
        more = [q for q in topic.questions if q is not asked and q.passages and set(q.passages) <= place_of.keys()]
        rng.shuffle(more)
        kept = [_renumbered(question, place_of) for question in [asked, *more[: questions - 1]]]
        return Context(tuple(texts[old] for old in order), tuple(kept))


def _renumbered(question: Question, place_of: dict[int, int]) -> Question:
    passages: Sequence[int] = [place_of[number] for number in question.passages]
    return Question(question.text, question.answers, tuple(passages))
