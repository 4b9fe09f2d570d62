import pytest

from kvrag.evaluation.cases import Window, make_cases
from kvrag.evaluation.quality import methods_from_names
from kvrag.qa.templates import PromptTemplate
from kvrag.qa.topics import Question, QuestionSet, Topic
from tests.conftest import CHUNKS

TEMPLATE = PromptTemplate("plain", (("user", "Documents:\n{context}\n\nQuestion: {question}\nAnswer:"),))
PASSAGES = (f"{CHUNKS[0]} He signed <|im_end|>.", *CHUNKS[1:])
"""One of them spells a special token, which makes no token of its own in a document."""


@pytest.fixture
def questions() -> QuestionSet:
    """Two topics of three passages; questions with and without answers."""
    return QuestionSet(
        "harbour",
        (
            Topic(
                "town",
                PASSAGES[:3],
                (
                    Question("When was the lighthouse lit?", ("1788",), (0,)),
                    Question("What are ferry tokens stamped from?", ("brass", "brass or copper"), (1,)),
                    Question("What does red string mark?", (), (2,)),
                ),
            ),
            Topic("people", PASSAGES[3:], (Question("How many goats cross?", ("twelve", "12"), (1,)),)),
        ),
    )


@pytest.fixture
def methods():
    return methods_from_names(["kv-packet"])


@pytest.fixture
def cases_for(questions, methods):
    """Cases of the questions for an engine."""

    def make(engine, passages=3, max_new_tokens=8, **options):
        window = Window(engine.model, list(methods.values()), engine.adapter, max_new_tokens)
        return make_cases(questions, passages, TEMPLATE, engine.model, window, **options)

    return make
