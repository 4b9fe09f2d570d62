"""Questions that a model writes about passages nobody asked anything about, and answers where none are given."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvrag.batched import generate_greedily
from kvrag.errors import DataError
from kvrag.model import LanguageModel
from kvrag.packed_rows import Branch, PromptTree
from kvrag.packing import pack_prompts
from kvrag.prompt import TextSegment, segment_prompt
from kvrag.qa import Question, QuestionSet, Topic
from kvrag.strategies import FullRecompute
from kvrag.training.examples import micro_batches

__all__ = ["with_answers", "with_questions"]

_REQUESTS = (
    "Write one short question that the text answers. Write nothing but the question.",
    "Ask about a name, a number or a date in the text. Write one question only.",
    "Write one question that begins with Who, Where, When or How many and that can be answered from the text.",
)
_LONGEST = 40
_LONGEST_ANSWER = 24
_MOST_PASSAGES = 20_000
_ROWS = 32_768


def with_questions(model: LanguageModel, questions: QuestionSet, seed: int, requests: int = 2) -> QuestionSet:
    """The set with up to `requests` questions a passage, written by the model under full recompute.

    Args:
        model: writes them.
        questions: a set without any.
        seed: of the choice of passages, where there are more than 20,000.
        requests: different requests to make for each passage, at most 3.

    Raises:
        DataError: no question came of it.
    """
    places = [(t, p) for t, topic in enumerate(questions.topics) for p in range(len(topic.passages))]
    random.Random(f"{seed}:written questions").shuffle(places)
    asked = [
        (t, p, f"{questions.topics[t].passages[p]}\n\n{request}")
        for t, p in places[:_MOST_PASSAGES]
        for request in _REQUESTS[:requests]
    ]
    written: dict[int, list[Question]] = {}
    for (t, p), line in _written(model, asked, _LONGEST):
        text = _question(line)
        if text and text not in "".join(_REQUESTS) and all(text != q.text for q in written.get(t, ())):
            written.setdefault(t, []).append(Question(text, (), (p,)))
    if not written:
        raise DataError(
            f"expected {model.name} to write questions about {questions.name}, found no line that ends in a question "
            "mark; give --data with questions"
        )
    topics = (replace(topic, questions=tuple(written.get(t, ()))) for t, topic in enumerate(questions.topics))
    return replace(questions, topics=tuple(topics))


def with_answers(model: LanguageModel, questions: QuestionSet) -> QuestionSet:
    """The set with answers to the questions that have none, from their own passages alone.

    Args:
        model: answers, under full recompute.
        questions: those that need no passage, or more than fit into the model's window, stay without an answer.
    """
    asked = [
        (t, number, "\n\n".join([*(topic.passages[p] for p in question.passages), question.text]))
        for t, topic in enumerate(questions.topics)
        for number, question in enumerate(topic.questions)
        if question.passages and not question.answers
    ]
    found = {(t, n): answer for (t, n), answer in _written(model, asked, _LONGEST_ANSWER) if answer}
    topics: list[Topic] = []
    for t, topic in enumerate(questions.topics):
        answered = tuple(
            replace(q, answers=(found[t, n],)) if (t, n) in found else q for n, q in enumerate(topic.questions)
        )
        topics.append(replace(topic, questions=answered))
    return replace(questions, topics=tuple(topics))


def _written(
    model: LanguageModel, asked: Sequence[tuple[int, int, str]], longest: int
) -> Iterator[tuple[tuple[int, int], str]]:
    """What the model replies to each message that fits into its window, with the two numbers it came with."""
    trees: list[PromptTree] = []
    by_tree: dict[int, tuple[int, int]] = {}
    for first, second, message in asked:
        prompt = model.render([{"role": "user", "content": message}])
        (segment,) = segment_prompt(prompt, [], model.tokenizer)
        assert isinstance(segment, TextSegment)
        if len(segment.ids) + longest < model.max_positions:
            trees.append(PromptTree((), (Branch(segment.ids),)))
            by_tree[id(trees[-1])] = (first, second)
    for group in micro_batches(trees, _ROWS):
        rows = pack_prompts(group, FullRecompute(), None).to(model.device)
        answers = generate_greedily(model, rows, None, None, longest).tokens
        for tree, (tokens,) in zip(group, answers, strict=True):
            yield by_tree[id(tree)], model.tokenizer.decode([i for i in tokens if i not in model.stop_ids]).strip()


def _question(text: str) -> str:
    """The first line that is a question, without quotation marks around it."""
    lines = (line.strip().strip('"').strip() for line in text.splitlines())
    return next((line for line in lines if line.endswith("?") and len(line) > 10), "")
