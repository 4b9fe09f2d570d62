"""The demo's collection keeps its shape: one section is one chunk, and every question has its answer in one section."""

from collections import Counter
from pathlib import Path

import pytest

import kvrag.demo.collection
from kvrag.demo.collection import Question, Section, load_questions, load_sections

DOCUMENTS = sorted((Path(kvrag.demo.collection.__file__).parent / "collection").glob("*.md"))
SECTIONS = load_sections()
QUESTIONS = load_questions()


def test_documents_and_sections_are_many_enough():
    assert 8 <= len(DOCUMENTS) <= 12
    assert len(SECTIONS) >= 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_nothing_stands_outside_a_section(path: Path):
    assert path.read_text(encoding="utf-8").startswith("## ")


def test_headings_are_unique():
    headings = Counter(section.name.partition("#")[2] for section in SECTIONS)
    assert [heading for heading, n in headings.items() if n > 1] == []


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_section_has_the_length_of_a_chunk(section: Section):
    assert 600 <= len(section.text) <= 2000


def test_sixteen_different_questions():
    assert len(QUESTIONS) == 16
    assert len({question.question for question in QUESTIONS}) == 16
    assert len({question.source for question in QUESTIONS}) == 16


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.source)
def test_answer_stands_in_the_source_and_in_no_other_section(question: Question):
    assert [section.name for section in SECTIONS if question.reference in section.text] == [question.source]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.source)
def test_answer_is_short_and_not_given_away_by_the_question(question: Question):
    assert 1 <= len(question.reference.split()) <= 5
    assert question.reference.lower() not in question.question.lower()
