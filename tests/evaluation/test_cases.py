"""Which prompts are made of a question set."""

from dataclasses import replace

import pytest
import torch

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.evaluation.cases import Case, Window, in_batches, make_cases
from kvrag.qa.topics import Question, QuestionSet, Topic
from tests.conftest import CHUNKS
from tests.evaluation.conftest import PASSAGES, TEMPLATE


def test_every_question_stands_among_as_many_passages_as_asked_for(engine, questions, cases_for):
    made = cases_for(engine, 4)
    assert (made.dataset, made.template, made.passages, made.dropped) == ("harbour", "plain", 4, 0)
    assert len(made.cases) == len(questions)
    for case, (topic, question) in zip(made.cases, questions.places, strict=True):
        asked = questions.topics[topic].questions[question]
        needed = [questions.topics[topic].passages[number] for number in asked.passages]
        assert (case.question, case.answers) == (asked.text, asked.answers)
        assert asked.text in case.prompt
        assert len(case.passages) == 4
        assert set(needed) <= set(case.passages) <= set(PASSAGES)


def test_a_limit_takes_any_questions_and_changes_nothing_about_them(engine, cases_for):
    whole = {case.question: case for case in cases_for(engine, seed=3).cases}
    first = {case.question for seed in range(20) for case in cases_for(engine, seed=seed, limit=1).cases}
    assert first == set(whole)
    two = cases_for(engine, seed=3, limit=2).cases
    assert len(two) == 2
    assert all(whole[case.question] == case for case in two)


def test_seeds_decide_about_distractors(engine, cases_for):
    assert cases_for(engine, seed=1) == cases_for(engine, seed=1)
    assert cases_for(engine, seed=1) != cases_for(engine, seed=2)


def test_prompts_beyond_the_window_are_left_out_and_counted(engine, methods, questions):
    window = Window(engine.model, list(methods.values()), None, engine.model.max_positions - 150)
    made = make_cases(questions, 6, TEMPLATE, engine.model, window)
    assert (len(made.cases), made.dropped) == (0, 4)


def test_questions_without_marked_passages_keep_to_the_contexts_they_came_with(engine, methods):
    tasks = QuestionSet(
        "tasks",
        (
            Topic("many", CHUNKS[:4], (Question("Which?"),)),
            Topic("two", CHUNKS[4:], (Question("Who?"),)),
            Topic("one", CHUNKS[:1], (Question("Where?"),)),
        ),
    )
    window = Window(engine.model, list(methods.values()), None, 8)
    made = make_cases(tasks, 3, TEMPLATE, engine.model, window)
    assert [(case.question, len(case.passages)) for case in made.cases] == [("Which?", 3), ("Who?", 2)]
    assert set(made.cases[1].passages) == set(CHUNKS[4:])
    assert made.dropped == 1
    rows = sorted(case.rows for case in make_cases(tasks, 2, TEMPLATE, engine.model, window).cases)
    window._limit = rows[-1]  # now three do not fit, but two do
    assert [len(case.passages) for case in make_cases(tasks, 3, TEMPLATE, engine.model, window).cases] == [2, 2]


@pytest.mark.parametrize("soft", [0, 5])
def test_rows_are_an_upper_bound_for_every_method(new_engine, methods, cases_for, soft):
    made = {"adapter": "none"}
    if soft:
        model = new_engine(folder="other").model
        header = AdapterHeader(weights=model.identity.weights, config=model.identity.config)
        made["adapter"] = Adapter(header, {n: torch.randn(soft, 64) for n in ("header", "trailer", "link")})
    engine = new_engine(**made)
    for case in cases_for(engine, max_new_tokens=0).cases:
        for strategy in methods.values():
            if strategy.attaches:
                engine.build(case.passages, strategy=strategy)
            prepared = engine.prepare(case.prompt, strategy=strategy, documents=case.passages)
            assert prepared.tokens <= case.rows
        assert case.rows <= 1.3 * prepared.tokens + 3 * soft * len(case.spans)


def test_batches_hold_so_many_rows():
    cases = [Case(str(rows), (), rows=rows) for rows in (5, 5, 6, 20, 1)]
    assert [[case.rows for case in batch] for batch in in_batches(cases, 11)] == [[5, 5], [6], [20], [1]]
    assert list(in_batches([], 11)) == []
    assert replace(cases[0], spans=((0, 1),)).passages == ["5"]
