"""Questions that a model writes, here one that cannot."""

from dataclasses import replace

import pytest

from kvrag.errors import DataError
from kvrag.evaluation import asking
from kvrag.evaluation.asking import write_questions
from kvrag.qa.topics import Question
from tests.conftest import CHUNKS


def scripted(monkeypatch, question_of):
    """Stands in for the model: what it writes about each chunk."""
    calls = []

    def write(model, questions, seed, requests):
        (topic,) = questions.topics
        calls.append((len(topic.passages), requests))
        asked = tuple(Question(text) for p in topic.passages for n in range(requests) for text in question_of(p, n))
        if not asked:
            raise DataError("none")
        return replace(questions, topics=(replace(topic, questions=asked),))

    monkeypatch.setattr(asking, "with_questions", write)
    return calls


def test_so_many_questions_about_different_chunks(engine, monkeypatch):
    calls = scripted(monkeypatch, lambda passage, n: [f"What of {passage}?"])
    done = []
    chunks = [f"chunk {n}" for n in range(40)]
    found = write_questions(engine, chunks, 20, 1, advance=done.append)
    assert len(set(found)) == 20 == sum(done)
    assert calls == [(8, 1)] * 3
    assert found == write_questions(engine, chunks, 20, 1) != write_questions(engine, chunks, 20, 2)


def test_few_chunks_are_asked_about_several_times(engine, monkeypatch):
    calls = scripted(monkeypatch, lambda passage, n: [f"What of {passage}, {n}?"])
    assert len(write_questions(engine, ["a", "b"], 5)) == 5
    assert len(write_questions(engine, ["a", "b"], 50)) == 6  # and no more than three times
    assert calls == [(2, 3), (2, 3)]


def test_chunks_that_no_question_comes_of_are_passed_over(engine, monkeypatch):
    scripted(monkeypatch, lambda passage, n: [f"What of {passage}?"] if passage == "chunk 30" else [])
    assert write_questions(engine, [f"chunk {n}" for n in range(40)], 5) == ["What of chunk 30?"]


def test_a_model_that_writes_none_is_named(engine):
    with pytest.raises(DataError, match="expected tiny to write questions about 6 chunks"):
        write_questions(engine, CHUNKS, 3)
