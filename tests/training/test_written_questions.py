"""Questions that the model writes about passages nobody asked anything about."""

import pytest
import torch

from kvrag.batched import Generated
from kvrag.errors import DataError
from kvrag.qa import Question, QuestionSet, Topic
from kvrag.training import writing
from kvrag.training.writing import with_answers, with_questions
from tests.conftest import CHUNKS

BARE = QuestionSet("harbour", (Topic("sea", CHUNKS[:2]), Topic("land", CHUNKS[2:3])))


@pytest.fixture
def says(monkeypatch, tiny):
    """Let the model give these replies to prompts in which their key stands; returns the prompts."""

    def patch(replies: dict[str, str | list[str]]) -> list[str]:
        prompts: list[str] = []

        def generate(model, rows, soft, writer, most):
            tokens = []
            for reads in rows.layout.reads.tolist():
                prompts.append(tiny.tokenizer.decode(rows.ids[[row for row in reads if row >= 0]].tolist()))
                found = next((reply for key, reply in replies.items() if key in prompts[-1]), "")
                text = found.pop(0) if isinstance(found, list) else found
                tokens.append([[*tiny.tokenizer.encode(text, literal=True), tiny.end_id]])
            return Generated(tokens, torch.empty(0), torch.empty(0))

        monkeypatch.setattr(writing, "generate_greedily", generate)
        return prompts

    return patch


def texts(questions: QuestionSet) -> list[list[tuple[str, tuple[int, ...]]]]:
    return [[(q.text, q.passages) for q in topic.questions] for topic in questions.topics]


def test_the_first_line_that_is_a_question_is_kept(says, tiny):
    says(
        {"lighthouse": 'Sure.\n "Who lit the lighthouse?" \nWho else was it?', "Ferry": "Who?\nnothing", "archive": "?"}
    )
    found = with_questions(tiny, BARE, 0)
    assert texts(found) == [[("Who lit the lighthouse?", (0,))], []]
    assert [topic.passages for topic in found.topics] == [topic.passages for topic in BARE.topics]
    assert found.name == "harbour"
    assert len(found) == 1
    assert found.topics[0].questions[0].answers == ()


def test_no_question_is_written_twice_about_a_topic(says, tiny):
    says({"light": ["What is lit here?", "What is lit here?"], "Ferry": "What is lit here?", "archive": "What is red?"})
    found = texts(with_questions(tiny, BARE, 0))
    assert [[text for text, _ in topic] for topic in found] == [["What is lit here?"], ["What is red?"]]
    prompts = says({"": [f"What is number {n}?" for n in range(6)]})
    assert len(with_questions(tiny, BARE, 0)) == 6
    assert len(prompts) == len(set(prompts)) == 6


def test_a_passage_is_shown_as_a_message(says, tiny):
    prompts = says({"": "What is lit here?"})
    with_questions(tiny, BARE, 0, requests=1)
    assert sorted(prompts) == sorted(
        tiny.render([{"role": "user", "content": f"{text}\n\n{writing._REQUESTS[0]}"}]) for text in CHUNKS[:3]
    )


def test_nothing_that_is_a_question_is_an_error(says, tiny):
    says({"": "I cannot ask anything."})
    with pytest.raises(DataError, match="expected tiny to write questions about harbour.*give --data with questions"):
        with_questions(tiny, BARE, 0)


def test_passages_beyond_the_context_window_are_left_out(says, new_model):
    model = new_model(max_position_embeddings=256)
    says({"": "What is lit here?"})
    long = QuestionSet("long", (Topic("", ("bell " * 300,)), Topic("", CHUNKS[:1])))
    assert texts(with_questions(model, long, 0, requests=1)) == [[], [("What is lit here?", (0,))]]


def test_the_models_own_words_are_read(tiny):
    """Whatever a random model says, it is no question."""
    with pytest.raises(DataError, match="question mark"):
        with_questions(tiny, BARE, 0, requests=1)


def asked(*questions: Question) -> QuestionSet:
    return QuestionSet("harbour", (Topic("sea", tuple(CHUNKS[:2]), questions),))


def test_questions_without_answers_are_answered_from_their_own_passages(says, tiny):
    prompts = says({"Who lit": " the keeper ", "Which boat": "none"})
    given = Question("When?", ("at dusk",), (0,))
    found = with_answers(tiny, asked(Question("Who lit it?", (), (0,)), given, Question("Which boat?", (), (0, 1))))
    assert [q.answers for q in found.topics[0].questions] == [("the keeper",), ("at dusk",), ("none",)]
    assert sorted(prompts) == sorted(
        tiny.render([{"role": "user", "content": content}])
        for content in (f"{CHUNKS[0]}\n\nWho lit it?", f"{CHUNKS[0]}\n\n{CHUNKS[1]}\n\nWhich boat?")
    )


def test_questions_that_cannot_be_answered_stay_as_they_are(says, new_model):
    model = new_model(max_position_embeddings=256)
    says({"Silence": "", "": "an answer"})
    topic = Topic("", (CHUNKS[0], "bell " * 300))
    questions = (Question("Silence?", (), (0,)), Question("Long?", (), (1,)), Question("Nowhere?", (), ()))
    found = with_answers(model, QuestionSet("few", (Topic("", topic.passages, questions),)))
    assert found.topics[0].questions == questions


def test_a_request_that_is_repeated_is_no_question(says, tiny, monkeypatch):
    monkeypatch.setattr(writing, "_REQUESTS", ("Write a question such as: What is lit here?",))
    says({"": "What is lit here?"})
    with pytest.raises(DataError, match="question mark"):
        with_questions(tiny, BARE, 0, requests=1)
