"""Answers that the model gives itself, and what the student is compared with."""

import pytest
import torch

from kvrag.batched import compute_rows
from kvrag.qa import Context, Question
from kvrag.training import AdapterShape, AdapterTask
from kvrag.training.examples import Batch, Grower
from tests.conftest import CHUNKS

from .toy_runs import CHAT, EVERYTHING, PLAIN, toy_run

WRITER = AdapterShape(header=0, trailer=0, writer_rank=4, sink=0)


@pytest.fixture
def batches(monkeypatch) -> list[Batch]:
    """Everything whose loss was computed."""
    seen: list[Batch] = []
    loss = AdapterTask.loss
    monkeypatch.setattr(AdapterTask, "loss", lambda self, batch: (seen.append(batch), loss(self, batch))[1])
    return seen


def answers_of(batch: Batch) -> list[list[int]]:
    rows = batch.teacher
    begins = (rows.answer_rows.diff() != 1).nonzero().flatten() + 1  # between answers lie their questions
    return [answer.tolist() for answer in rows.answer_ids.tensor_split(begins)]


def test_the_teachers_answers_are_its_likeliest_tokens(new_model, tmp_path, batches):
    model = new_model()
    model._model.lm_head.weight.data[model.end_id] *= 3  # or a random model never ends an answer
    toy_run(AdapterTask(model, EVERYTHING), tmp_path, steps=2, max_answer_tokens=5)
    answers = [answer for batch in batches for answer in answers_of(batch)]
    assert min(map(len, answers)) < 5 == max(map(len, answers))
    for answer in answers:
        assert (answer[-1] in model.stop_ids) or len(answer) == 5
        assert not model.stop_ids & set(answer[:-1])
    for batch in batches:
        rows = batch.teacher
        with torch.no_grad():
            logits, _ = compute_rows(model, rows, None, rows.answer_rows)
        assert logits.argmax(-1).tolist() == rows.answer_ids.tolist() == batch.student.answer_ids.tolist()


def test_given_answers_are_cut_to_the_most_tokens(new_model, tmp_path, batches):
    model = new_model()
    toy_run(AdapterTask(model, EVERYTHING), tmp_path, steps=1, max_answer_tokens=2, answers="given")
    answers = [answer for batch in batches for answer in answers_of(batch)]
    assert answers
    assert all(len(answer) == 2 and answer[-1] == model.end_id for answer in answers)


@pytest.mark.parametrize(
    ("passages", "template", "same"),
    [(CHUNKS[:1], PLAIN, True), (CHUNKS[:1], CHAT, False), (CHUNKS[:2], PLAIN, False)],
    ids=["a packet at position 0", "a packet further back", "two packets"],
)
def test_an_untrained_writer_loses_nothing_only_where_a_chunk_has_no_context(passages, template, same, tiny):
    task = AdapterTask(tiny, WRITER)
    context = Context(tuple(passages), (Question("why?", ("goats and bells",)), Question("when?", ("in 1788",))))
    batch = task.pack(Grower(tiny, 1000, 8).trees(context, template, answers=True))
    with torch.no_grad(), task.loss(batch) as loss:
        per_token = loss.item() / len(batch.teacher.answer_ids)
    assert len(batch.teacher.answer_ids) > 4
    assert per_token == 0 if same else per_token > 0.01
