import random

from hypothesis import given
from hypothesis import strategies as st

from kvrag.qa import Question, QuestionSet, Topic


@st.composite
def question_sets(draw) -> QuestionSet:
    """Sets whose texts are all different, of topics of any size."""
    topics = []
    for t in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 6))
        gold = st.lists(st.integers(0, count - 1), max_size=3).map(tuple)
        questions = tuple(
            Question(f"question {t}.{q}", (f"answer {t}.{q}",), draw(gold)) for q in range(draw(st.integers(1, 4)))
        )
        topics.append(Topic(f"topic {t}", tuple(f"text {t}.{p}" for p in range(count)), questions))
    return QuestionSet("some", tuple(topics))


DRAWS = given(data=question_sets(), seed=st.integers(0, 99), passages=st.integers(1, 12), questions=st.integers(1, 5))


def asked(data: QuestionSet, seed: int) -> tuple[Topic, Question, tuple[int, int]]:
    place = random.Random(seed).choice(data.places)
    return data.topics[place[0]], data.topics[place[0]].questions[place[1]], place


@DRAWS
def test_a_context_holds_what_its_questions_need_under_new_numbers(data, seed, passages, questions):
    topic, question, place = asked(data, seed)
    context = data.draw(random.Random(seed), passages, place=place, questions=questions)
    assert context.questions[0].text == question.text
    assert 1 <= len(context.questions) <= questions
    by_text = {q.text: q for q in topic.questions}
    for found in context.questions:
        original = by_text.pop(found.text)  # none is asked twice
        assert found.answers == original.answers
        assert [context.passages[n] for n in found.passages] == [topic.passages[n] for n in original.passages]


@DRAWS
def test_passages_are_different_and_those_of_the_topic_come_first(data, seed, passages, questions):
    topic, question, place = asked(data, seed)
    context = data.draw(random.Random(seed), passages, place=place, questions=questions)
    assert len(set(context.passages)) == len(context.passages) <= max(passages, len(set(question.passages)))
    own = [text for text in context.passages if text in topic.passages]
    assert len(own) == min(len(topic.passages), max(passages, len(set(question.passages))))


@DRAWS
def test_the_same_seed_gives_the_same_context(data, seed, passages, questions):
    _, _, place = asked(data, seed)
    first, second = (data.draw(random.Random(seed), passages, place=place, questions=questions) for _ in range(2))
    assert first == second


def test_duplicates_in_other_topics_are_left_out():
    data = QuestionSet("twice", (Topic("a", ("x",), (Question("q", (), (0,)),)), Topic("b", ("x", "y"))))
    context = data.draw(random.Random(0), 5, place=(0, 0))
    assert sorted(context.passages) == ["x", "y"]


def test_places_count_questions_of_all_topics():
    data = QuestionSet("two", (Topic("a", ("x",)), Topic("b", ("y",), (Question("p"), Question("q")))))
    assert data.places == ((1, 0), (1, 1))
    assert len(data) == 2
