"""What a training run draws its contexts from."""

import random
from collections.abc import Sequence
from dataclasses import replace

from kvrag.errors import DataError
from kvrag.qa import Context, Question, QuestionSet, Topic
from kvrag.training.settings import TrainingSettings

__all__ = ["Mixture", "merged", "split"]

_HELD_OUT_SHARE = 0.03
_FOLDERS = ("docs", "data", "archive", "notes", "wiki", "handbook", "reports", "kb")


class Mixture:
    """Question sets with shares, drawn from by number: the same number gives the same context, in any process.

    Args:
        sets: with their shares; they need not sum up to 1.
        settings: of the run.
        kind: part of the seed, so that two mixtures differ.

    Raises:
        DataError: no set has a question.
    """

    def __init__(self, sets: Sequence[tuple[QuestionSet, float]], settings: TrainingSettings, kind: str) -> None:
        usable = [(questions, share) for questions, share in sets if len(questions) and share > 0]
        if not usable:
            names = ", ".join(questions.name for questions, _ in sets) or "no data at all"
            raise DataError(
                f"expected questions to train on, and others to hold out, found none for the {kind} part in {names}; "
                "give --data with more questions"
            )
        self._settings = settings
        self._kind = kind
        self._shares = [share for _, share in usable]
        self._sets = [tuple(merged(questions, run) for run in (1, 2, 3)) for questions, _ in usable]

    def context(self, number: int | str) -> Context:
        """The context of that number."""
        settings = self._settings
        rng = random.Random(f"{settings.seed}:{self._kind}:{number}")
        variants = rng.choices(self._sets, self._shares)[0]
        longer = rng.random() < settings.longer_chunks
        questions = variants[rng.choice((1, 2)) if longer else 0]
        count = rng.randint(settings.min_passages, settings.max_passages)
        place = rng.choice(questions.places)
        context = questions.draw(rng, count, place=place, questions=settings.questions)
        return _with_metadata(context, rng) if rng.random() < settings.metadata else context


def split(questions: QuestionSet, seed: int) -> tuple[QuestionSet, QuestionSet]:
    """A set without its held-out part, and that part: whole topics, or questions when few topics have any."""
    rng = random.Random(f"{seed}:held out:{questions.name}")
    topics = questions.topics
    asked = [number for number, topic in enumerate(topics) if topic.questions]
    if len(asked) >= 10:
        held = set(rng.sample(asked, max(1, round(_HELD_OUT_SHARE * len(asked)))))
        kept = tuple(topic for number, topic in enumerate(topics) if number not in held)
        return replace(questions, topics=kept), replace(questions, topics=tuple(topics[n] for n in sorted(held)))
    count = max(min(len(asked), len(questions) // 2), round(_HELD_OUT_SHARE * len(questions)))
    chosen = set(rng.sample(questions.places, count))
    kept, aside = (
        tuple(
            replace(topic, questions=tuple(q for i, q in enumerate(topic.questions) if ((t, i) in chosen) == held_out))
            for t, topic in enumerate(topics)
        )
        for held_out in (False, True)
    )
    return replace(questions, topics=kept), replace(questions, topics=aside)


def merged(questions: QuestionSet, run: int) -> QuestionSet:
    """The set with passages of `run` neighbours each, so that chunks of other lengths are met."""
    if run == 1:
        return questions
    topics: list[Topic] = []
    for topic in questions.topics:
        passages = tuple("\n\n".join(topic.passages[i : i + run]) for i in range(0, len(topic.passages), run))
        moved = tuple(
            Question(q.text, q.answers, tuple(dict.fromkeys(number // run for number in q.passages)))
            for q in topic.questions
        )
        topics.append(Topic(topic.title, passages, moved))
    return QuestionSet(questions.name, tuple(topics))


def _with_metadata(context: Context, rng: random.Random) -> Context:
    """Chunks as an ingestion pipeline may show them: lines of metadata first."""
    folder, suffix = rng.choice(_FOLDERS), rng.choice((".md", ".txt", ".html", ".pdf"))
    paged = rng.random() < 0.3

    def lines(number: int) -> str:
        path = f"file_path: {folder}/{rng.choice(_FOLDERS)}-{rng.randint(1, 400)}{suffix}"
        return f"page_label: {rng.randint(1, 90)}\n{path}" if paged else path

    return Context(tuple(f"{lines(n)}\n\n{text}" for n, text in enumerate(context.passages)), context.questions)
