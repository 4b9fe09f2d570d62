"""The prompts that quality is measured on: questions among passages, filled into a template."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvrag.adapter import Adapter
from kvrag.model import LanguageModel
from kvrag.qa.templates import PromptTemplate
from kvrag.qa.topics import QuestionSet, Topic
from kvrag.strategies import Strategy

__all__ = ["Case", "Cases", "Window", "in_batches", "make_cases", "make_prompt"]

_SEAM = 2  # tokens that a cut between two segments may add
_LEAST_CONTEXTS = 2  # of a question that came with its contexts and without a word on which of them it needs


@dataclass(frozen=True)
class Case:
    """One prompt.

    Attributes:
        prompt: the final string.
        spans: `(start, end)` in characters of every passage in it.
        question: that it asks.
        answers: accepted ones; may be empty.
        rows: that prompt and answer take at most, whatever the method.
    """

    prompt: str
    spans: tuple[tuple[int, int], ...]
    question: str = ""
    answers: tuple[str, ...] = ()
    rows: int = 0

    @property
    def passages(self) -> list[str]:
        """Their texts."""
        return [self.prompt[start:end] for start, end in self.spans]


@dataclass(frozen=True)
class Cases:
    """The cases of a data set, a template and a number of passages.

    Attributes:
        dataset: its name.
        template: its name.
        passages: asked for; a question that needs more has more.
        cases: those that fit into the model's window.
        dropped: number of those that do not.
    """

    dataset: str
    template: str
    passages: int
    cases: tuple[Case, ...]
    dropped: int


class Window:
    """The model's context window, and what a prompt takes of it by the most demanding of several methods.

    Every method is to answer the same questions, so a prompt that does not fit for one of them is left out for all.

    Args:
        model: whose window and tokenizer count.
        strategies: to be compared.
        adapter: whose soft tokens take rows too.
        answer: tokens to leave free for the answer.
    """

    def __init__(
        self, model: LanguageModel, strategies: Sequence[Strategy], adapter: Adapter | None, answer: int
    ) -> None:
        self._tokenizer = model.tokenizer
        self._limit = model.max_positions
        self._answer = answer
        links = 0 if adapter is None else len(adapter.soft("link"))
        recipes = [strategy.fitted(model.framing).recipe(adapter) for strategy in strategies]
        wrapping = max((recipe.extra_tokens for recipe in recipes), default=0)
        self._per_passage = max(wrapping, 0) + links + 2 * _SEAM

    def rows(self, prompt: str, spans: Sequence[tuple[int, int]]) -> int:
        """Rows of the prompt, cut as the engine cuts it, and of its answer: an upper bound."""
        rows, place = self._answer + 1, 0  # one for a BOS
        for start, end in [*spans, (len(prompt), len(prompt))]:
            rows += len(self._tokenizer.encode(prompt[place:start]))
            rows += len(self._tokenizer.encode(prompt[start:end], literal=True)) + self._per_passage
            place = end
        return rows

    def fits(self, case: Case) -> bool:
        """Whether the case's rows fit."""
        return case.rows <= self._limit


def make_prompt(
    template: PromptTemplate,
    model: LanguageModel,
    window: Window,
    passages: Sequence[str],
    question: str,
    answers: tuple[str, ...] = (),
) -> Case:
    """The case of a question and its passages.

    Raises:
        PromptError: the model's chat template does not keep the passages as they are.
    """
    filled = template.fill(lambda messages: model.render(messages), passages, question)
    return Case(filled.text, filled.spans, question, answers, window.rows(filled.text, filled.spans))


def make_cases(
    questions: QuestionSet,
    passages: int,
    template: PromptTemplate,
    model: LanguageModel,
    window: Window,
    *,
    seed: int = 0,
    limit: int | None = None,
) -> Cases:
    """Put every question of a set among passages.

    A question that names its passages stands among others of its topic (`QuestionSet.draw`). One that names none, such
    as a task of a retrieval benchmark, keeps to the contexts it came with: as many as asked for and as fit, but at
    least two of them.

    Args:
        questions: the set.
        passages: how many around each question.
        template: for all of them.
        model: whose chat template and window count.
        window: of that model, for the methods to compare.
        seed: of distractors and of their order, for each question alone: a limit changes nothing about the others.
        limit: take the first so many of the questions, in an order shuffled by the seed.
    """
    places = list(questions.places)
    if limit is not None and limit < len(places):
        random.Random(f"{seed}:order").shuffle(places)
        places = places[:limit]
    kept: list[Case] = []
    for place in places:
        for count in _counts(questions.topics[place[0]], place[1], passages):
            context = questions.draw(random.Random(f"{seed}:{place}"), count, place=place)
            asked = context.questions[0]
            case = make_prompt(template, model, window, context.passages, asked.text, asked.answers)
            if window.fits(case):
                kept.append(case)
                break
    return Cases(questions.name, template.name, passages, tuple(kept), len(places) - len(kept))


def in_batches(cases: Sequence[Case], tokens: int) -> Iterator[list[Case]]:
    """The cases in their order, in batches of at most `tokens` rows together, or of a single larger one."""
    batch: list[Case] = []
    size = 0
    for case in cases:
        if batch and size + case.rows > tokens:
            yield batch
            batch, size = [], 0
        batch.append(case)
        size += case.rows
    if batch:
        yield batch


def _counts(topic: Topic, question: int, wanted: int) -> Sequence[int]:
    """How many passages to try, the best first."""
    if topic.questions[question].passages:
        return [wanted]
    most = min(wanted, len(topic.passages))
    return range(most, min(wanted, _LEAST_CONTEXTS) - 1, -1)
