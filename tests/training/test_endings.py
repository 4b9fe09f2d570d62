"""How fast a run learns, when it ends, and which step it keeps."""

import pytest
import torch
from pydantic import ValidationError

from .toy_runs import ScriptedTask, read_lines, toy_run, toy_settings


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 0.03), (100, 0.5), (7, 0.03), (1, 0.03), (10, 1), (10, 0)])
def test_the_learning_rate_rises_and_falls_to_nothing(steps, warmup):
    settings = toy_settings(steps=steps, warmup=warmup)
    rates = [settings.rate(step) for step in range(steps)]
    highest = max(rates)
    top = rates.index(highest)
    assert highest == 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate > 0 for rate in rates)
    assert top + 1 == max(1, round(warmup * steps))
    if warmup < 1:
        assert rates[-1] <= 1 / max(1, steps - top - 1)


def test_every_kind_of_parameter_has_its_rate(tiny, tmp_path):
    task = ScriptedTask(tiny)
    toy_run(task, tmp_path / "matrix", steps=1, answers="given", learning_rate=0.5, soft_learning_rate=0.25)
    torch.testing.assert_close(task.parameters["number"].item(), 0.5, rtol=1e-4, atol=0)
    soft = ScriptedTask(tiny)
    soft.soft = frozenset({"number"})
    toy_run(soft, tmp_path / "soft", steps=1, answers="given", learning_rate=0.5, soft_learning_rate=0.25)
    torch.testing.assert_close(soft.parameters["number"].item(), 0.25, rtol=1e-4, atol=0)
    assert [line["rate"] for line in read_lines(tmp_path / "soft") if "rate" in line] == [1.0]


def test_gradients_are_those_of_one_answer_token_and_clipped(tiny, tmp_path):
    for clip, expected in ((10.0, -1.0), (0.25, -0.25)):
        task = ScriptedTask(tiny)
        toy_run(task, tmp_path / str(clip), steps=1, answers="given", clip=clip)
        torch.testing.assert_close(task.parameters["number"].grad.item(), expected)
        line = read_lines(tmp_path / str(clip))[0]
        assert (line["norm"], line["answer_tokens"]) == (1.0, sum(len(b.teacher.answer_ids) for b in task.batches))


@pytest.mark.parametrize(
    ("held_out", "patience", "steps", "best"),
    [
        ([4, 3, 2, 1], 0, 4, 4),
        ([1, 2, 3, 4], 0, 4, 1),
        ([3, 1, 2, 0.5], 2, 4, 4),
        ([3, 1, 2, 1, 0.5], 2, 4, 2),
        ([1, 2, 0], 1, 2, 1),
        ([2, 2, 2, 2, 2, 2], 3, 4, 1),
    ],
)
def test_a_run_ends_when_patience_does_and_keeps_its_best_step(held_out, patience, steps, best, tiny, tmp_path):
    def run():
        task = ScriptedTask(tiny, held_out)
        options = {"patience": patience, "steps": len(held_out), "evaluate_every": 1, "micro_tokens": 9999}
        return task, toy_run(task, tmp_path, answers="given", warmup=0, learning_rate=1.0, **options)

    task, result = run()
    assert result.trained.steps == steps
    assert [line["step"] for line in read_lines(tmp_path) if "loss" in line] == list(range(1, steps + 1))
    rates = [line["rate"] for line in read_lines(tmp_path) if "rate" in line]
    torch.testing.assert_close(float(result.path.read_text()), sum(rates[:best]), rtol=1e-4, atol=1e-4)
    again, same = run()
    assert same.trained.held_out == result.trained.held_out
    assert torch.equal(again.parameters["number"], task.parameters["number"])  # an early end stays one


def test_more_patience_takes_up_a_run_that_ended_early(tiny, tmp_path):
    options = {"steps": 4, "evaluate_every": 1, "answers": "given", "micro_tokens": 9999}
    assert toy_run(ScriptedTask(tiny, [1, 2]), tmp_path, patience=1, **options).trained.steps == 2
    more = toy_run(ScriptedTask(tiny, [3, 0]), tmp_path, patience=5, **options).trained
    assert more.steps == 4
    assert [loss for _, loss in more.held_out] == [1, 2, 3, 0]


def test_settings_that_make_no_sense_are_refused():
    for change in ({"min_passages": 4}, {"steps": 0}, {"learning_rate": -1}, {"warmup": 2}, {"answers": "none"}):
        with pytest.raises(ValidationError):
            toy_settings(**change)
    with pytest.raises(ValidationError, match="extra"):
        toy_settings(epochs=3)
