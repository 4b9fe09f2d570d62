import hashlib
import os
import re
import subprocess
import sys
from functools import cache

import pytest

from kvrag.errors import SettingsError
from kvrag.qa import QuestionSet
from kvrag.qa.generated import (
    EVALUATION_SETS,
    TRAINING_DOMAINS,
    biography,
    code,
    dialogues,
    directories,
    generate_questions,
    manuals,
    needle,
    news,
)
from kvrag.qa.generated.drafting import Draw

EVERY = [*EVALUATION_SETS, *TRAINING_DOMAINS]
FACTS = [
    (module.GRAMMAR, key, fact)
    for module, stories in (
        (needle, needle.STORIES),
        (biography, [biography.STORY]),
        (news, news.STORIES),
        (dialogues, dialogues.STORIES),
        (directories, directories.STORIES),
    )
    for story in stories
    for key, fact in story.facts.items()
] + [(manuals.GRAMMAR, key, fact) for key, fact in manuals.STEPS.items()]


@cache
def generated(name: str) -> QuestionSet:
    return generate_questions(name, 40, 5)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """Its words, `length` in a row."""
    found = words(text)
    return set(zip(*(found[start:] for start in range(length)), strict=False))


@pytest.mark.parametrize("name", EVERY)
def test_answers_stand_in_their_passage(name):
    for topic in generated(name).topics:
        for question in topic.questions:
            (passage,) = question.passages
            (answer,) = question.answers
            assert answer
            assert answer in topic.passages[passage]
            assert len(answer.split()) <= 12


@pytest.mark.parametrize("name", EVERY)
def test_a_question_names_what_no_other_passage_of_its_topic_names(name):
    for topic in generated(name).topics:
        texts = [" ".join(words(text)) for text in topic.passages]
        for question in topic.questions:
            (gold,) = question.passages
            named = [
                run
                for length in range(1, 8)
                for run in map(" ".join, runs(question.text, length))
                if f" {run} " in f" {texts[gold]} "
                and not any(f" {run} " in f" {text} " for number, text in enumerate(texts) if number != gold)
            ]
            assert named, (question.text, topic.passages[gold])


@pytest.mark.parametrize("name", EVERY)
def test_topics_have_hard_distractors_and_different_questions(name):
    for topic in generated(name).topics:
        assert 8 <= len(set(topic.passages)) == len(topic.passages) <= 16
        assert len({question.text for question in topic.questions}) == len(topic.questions)
        asked = [question.passages[0] for question in topic.questions]
        most = 1 if name == "needle" else 4
        assert all(most / 2 <= asked.count(number) <= most for number in range(len(topic.passages)))


@pytest.mark.parametrize("name", EVERY)
def test_passages_are_neither_tiny_nor_huge(name):
    lengths = [len(text.split()) for topic in generated(name).topics for text in topic.passages]
    assert min(len(text) for topic in generated(name).topics for text in topic.passages) >= 150
    assert max(lengths) <= 420
    if name in TRAINING_DOMAINS:
        assert min(lengths) < 60
        assert max(lengths) > 180


def test_needles_and_biographies_have_the_length_that_they_claim():
    for name, low, high in (("needle", 100, 220), ("biography", 70, 130)):
        assert all(low <= len(text.split()) <= high for topic in generated(name).topics for text in topic.passages)


@pytest.mark.parametrize("name", sorted({*EVERY} - {"code"}))
def test_every_slot_is_filled(name):
    for topic in generated(name).topics:
        for text in [*topic.passages, *(question.text for question in topic.questions)]:
            assert not re.search(r"\{(?!\s|\")|\|\w+\}", text), text
            assert all(question.text[0] == question.text[0].upper() for question in topic.questions)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_but_name_count_and_seed_decides(name):
    assert generate_questions(name, 2, 5).topics == generated(name).topics[:2]
    assert generate_questions(name, 2, 6).topics[0] != generated(name).topics[0]
    texts = [text for topic in generated(name).topics for text in topic.passages]
    assert len(set(texts)) == len(texts)


def test_other_processes_make_the_same_sets():
    program = (
        "import hashlib; from kvrag.qa.generated import *; "
        "print(hashlib.sha256(repr([generate_questions(n, 3, 1) for n in EVALUATION_SETS + TRAINING_DOMAINS])"
        ".encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here = [generate_questions(name, 3, 1) for name in EVALUATION_SETS + TRAINING_DOMAINS]
    assert digests == {hashlib.sha256(repr(here).encode()).hexdigest()}


@pytest.mark.parametrize("held_out", EVALUATION_SETS)
def test_evaluation_shares_no_wording_and_no_answer_with_training(held_out):
    def five_in_a_row(name: str) -> set[tuple[str, ...]]:
        topics = generated(name).topics
        return {
            run
            for topic in topics
            for text in [*topic.passages, *(question.text for question in topic.questions)]
            for run in runs(text, 5)
        }

    def answers(name: str) -> set[str]:
        return {answer for topic in generated(name).topics for q in topic.questions for answer in q.answers}

    for name in TRAINING_DOMAINS:
        assert not five_in_a_row(held_out) & five_in_a_row(name), name
        assert not answers(held_out) & answers(name), name


def test_evaluation_shares_no_word_list_with_training():
    calendar = {"month", "moon"}

    def entries(*grammars) -> set[str]:
        return {
            text
            for grammar in grammars
            for slot, texts in grammar.items()
            if slot not in calendar
            for text in texts
            if "{" not in text and len(text) > 1
        }

    training = entries(code.GRAMMAR, dialogues.GRAMMAR, directories.GRAMMAR, manuals.GRAMMAR, news.GRAMMAR)
    assert not entries(needle.GRAMMAR, biography.GRAMMAR) & training
    assert not entries(needle.GRAMMAR) & entries(biography.GRAMMAR)


@pytest.mark.parametrize(("grammar", "key", "fact"), FACTS, ids=[f"{n}-{key}" for n, (_, key, _) in enumerate(FACTS)])
def test_facts_are_said_and_asked_in_many_ways(grammar, key, fact):
    draw = Draw(key, grammar)
    known = {"name": "N", "value": "V", "other": "O", "task": "T"}
    assert len({draw.compose(draw.pick(fact.says), **known) for _ in range(300)}) >= 4
    assert len({draw.compose(draw.pick(fact.asks), **known) for _ in range(300)}) >= 4
    assert all("{value}" in says for says in fact.says)
    assert all("{name}" in asks for asks in fact.asks)


def test_names_never_contain_each_other():
    draw = Draw("x", {"place": ("Oak", "Oakford", "New Oakford", "Elm")})
    names = {draw.name("{place}") for _ in range(2)}
    assert "Elm" in names
    with pytest.raises(AssertionError, match="too few names"):
        draw.name("{place}")


def test_numbers_keep_their_zeros():
    draw = Draw("x", {})
    assert {len(draw.compose("{01-12}")) for _ in range(50)} == {2}
    assert {int(draw.compose("{1-3}")) for _ in range(50)} == {1, 2, 3}


def test_unknown_sets_are_refused():
    with pytest.raises(SettingsError, match="'nedle'"):
        generate_questions("nedle", 1, 0)
    with pytest.raises(SettingsError, match="at least one topic"):
        generate_questions("needle", 0, 0)
