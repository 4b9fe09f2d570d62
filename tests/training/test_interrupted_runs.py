"""A run that is stopped, killed or spread over processes ends where one in one go ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvrag.training import AdapterTask, ReaderTask
from kvrag.training.checkpoint import Checkpoint

from .runs_in_processes import STEPS
from .toy_runs import EVERYTHING, equal, read_lines, toy_run, values

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory, hf_tokenizer) -> Path:
    """A folder with the runs of `runs_in_processes`."""
    folder = tmp_path_factory.mktemp("runs")
    hf_tokenizer.save_pretrained(folder / "tokenizer")
    command = [sys.executable, "-m", "tests.training.runs_in_processes", str(folder), str(folder / "tokenizer")]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    """Every number is the same, bit for bit."""
    first, second = (Checkpoint.load(path / "checkpoint.safetensors") for path in (folder, other))
    assert (first.run, first.step, first.held_out) == (second.run, second.step, second.held_out)
    assert equal(first.values, second.values)
    assert equal(first.best, second.best)
    assert all(equal(first.moments[name], of) for name, of in second.moments.items())
    assert (folder / "adapter.safetensors").read_bytes() == (other / "adapter.safetensors").read_bytes()
    assert read_lines(folder) == read_lines(other)


@pytest.mark.parametrize("answers", ["teacher", "given"])
def test_a_run_taken_up_again_is_the_same_run(answers, new_model, tmp_path):
    def run(folder: str, until: int | None = None):
        task = AdapterTask(new_model(), EVERYTHING)
        options = {"steps": 10, "evaluate_every": 3, "checkpoint_every": 3, "answers": answers}
        return task, toy_run(task, tmp_path / folder, until=until, **options)

    whole, result = run("whole")
    stopped, nothing = run("parts", until=4)
    assert nothing is None
    assert not (tmp_path / "parts" / "adapter.safetensors").exists()
    again, resumed = run("parts")
    assert equal(values(again), values(whole))
    assert not equal(values(stopped), values(whole))
    assert resumed.trained.held_out == result.trained.held_out
    assert resumed.trained.steps == 10
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(new_model, tmp_path):
    first = toy_run(ReaderTask(new_model(), 2), tmp_path, answers="given")
    checkpoint, log = (tmp_path / "checkpoint.safetensors").read_bytes(), read_lines(tmp_path)
    weights = ReaderTask(new_model(), 2).load(first.path)
    again = toy_run(ReaderTask(new_model(), 2), tmp_path, answers="given")
    assert again.trained.held_out == first.trained.held_out
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == checkpoint
    assert equal(ReaderTask(new_model(), 2).load(again.path), weights)
    assert read_lines(tmp_path) == log


def test_a_run_killed_at_any_moment_is_the_same_run(runs):
    assert_same_run(runs / "killed", runs / "whole")
    lines = read_lines(runs / "killed")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "held_out" in line] == [3, 6, 9]
    assert not list((runs / "killed").glob(".*"))


@pytest.mark.parametrize("size", ["", ", few"])
def test_two_processes_train_what_one_trains(size, runs):
    one, two = (Checkpoint.load(runs / f"{name}{size}" / "checkpoint.safetensors") for name in ("one", "two"))
    for name, tensor in one.values.items():
        torch.testing.assert_close(two.values[name], tensor, rtol=1e-4, atol=1e-4 * tensor.abs().max().item())
    torch.testing.assert_close(two.held_out, one.held_out, rtol=1e-5, atol=0)  # float32 sums in another order
    lines, others = (read_lines(runs / f"{name}{size}") for name in ("one", "two"))
    assert [line.get("answer_tokens") for line in lines] == [line.get("answer_tokens") for line in others]
    told = json.loads((runs / f"two{size}" / "run.json").read_text())
    assert told["processes"] == 2
