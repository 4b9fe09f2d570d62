"""What is shipped fits together: the model, the reader merged into it, and the adapter trained on top."""

import json
from pathlib import Path

import pytest
import torch

import kvrag.demo
from kvrag.sources import open_adapter, open_model
from kvrag.training import TrainingSettings

LOGS = Path(kvrag.demo.__file__).parent / "training"


def run(kind: str) -> dict:
    return json.loads((LOGS / kind / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_shipped_adapter_fits_the_demo_model_whatever_it_computes_in(dtype):
    model = open_model("demo", "cpu", dtype)
    adapter = open_adapter("auto", model)
    assert adapter is not None
    assert adapter.header.weights == model.identity.weights == run("adapter")["weights"]
    assert all(torch.isfinite(tensor.float()).all() for tensor in adapter.tensors.values())


@pytest.mark.slow
def test_the_shipped_reader_was_trained_for_the_demo_model_as_published():
    base = open_model("demo-base", "cpu")
    assert run("reader")["weights"] == base.identity.weights
    assert open_adapter("auto", base) is None


@pytest.mark.parametrize("kind", ["reader", "adapter-begun", "adapter"])
def test_logs_of_the_shipped_runs_are_whole(kind):
    told = run(kind)
    lines = [json.loads(line) for line in (LOGS / kind / "log.jsonl").read_text().splitlines()]
    assert TrainingSettings(**told["settings"]).steps == told["steps_done"]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, told["steps_done"] + 1))
    held_out = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
    assert held_out[told["best_step"]] == min(held_out.values()) == pytest.approx(told["best_held_out_loss"], abs=1e-5)
