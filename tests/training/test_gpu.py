"""On a GPU: recorded steps teach what launched ones do."""

import pytest
import torch
from transformers import LlamaConfig

from kvrag.model import LanguageModel
from kvrag.qa.templates import TEMPLATES
from kvrag.training import AdapterTask, ReaderTask
from kvrag.training.data import Steps
from kvrag.training.fused import fused_norms
from kvrag.training.graphs import Graphs, common_sizes
from kvrag.training.mixture import Mixture
from tests.conftest import TINY, build_model
from tests.training.toy_runs import EVERYTHING, toy_questions, toy_run, toy_settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TASKS = {
    "adapter": lambda model: AdapterTask(model, EVERYTHING, question_tokens=3),
    "labels": lambda model: AdapterTask(model, EVERYTHING, question_tokens=3, labels=0.5),
    "reader": lambda model: ReaderTask(model, rank=4, share=0.5),
    "packets": lambda model: ReaderTask(model, rank=4, share=0.5, shape=EVERYTHING),
}


@pytest.fixture
def model(hf_tokenizer) -> LanguageModel:
    """A tiny model in bfloat16, which the kernel for spans needs."""
    made = build_model(LlamaConfig(**TINY)).to("cuda", torch.bfloat16)
    return LanguageModel(made, hf_tokenizer, name="tiny")


@pytest.mark.parametrize("kind", TASKS)
def test_a_recorded_step_is_the_launched_one(kind, model):
    task = TASKS[kind](model)
    model.freeze()
    settings = toy_settings(answers="given", steps=8)
    steps = Steps(task, Mixture([(toy_questions(), 1.0)], settings, "training"), TEMPLATES, settings)
    steps.sizes = common_sizes(steps.sample(8))
    for p in task.parameters.values():
        p.data += 0.05 * torch.randn_like(p)
        p.grad = torch.zeros_like(p)
    graphs = Graphs(task)
    for batch in steps.sample(8):
        found = []
        for recorded in (True, False):
            for p in task.parameters.values():
                p.grad.zero_()
            loss = graphs.backward(batch) if recorded else launched(task, batch)
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in task.parameters.values()])))
        (loss, gradient), (expected, wanted) = found
        assert loss == pytest.approx(expected, rel=1e-3)
        assert torch.nn.functional.cosine_similarity(gradient, wanted, 0) > 0.999


def launched(task, batch) -> torch.Tensor:
    with task.loss(batch.to(task.model.device)) as value:
        value.backward()
        return value.detach()


@pytest.mark.parametrize("kind", TASKS)
def test_a_run_learns_with_and_without_graphs(kind, model, tmp_path):
    for graphs in (True, False):
        task = TASKS[kind](model)
        options = {"answers": "given", "steps": 12, "evaluate_every": 4, "learning_rate": 0.01, "cuda_graphs": graphs}
        result = toy_run(task, tmp_path / str(graphs), **options)
        losses = [loss for _, loss in result.trained.held_out]
        assert losses[-1] < losses[0]


def test_fused_norms_are_the_models_own(model):
    x = torch.randn(7, model.hidden_size, device="cuda", dtype=torch.bfloat16)
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert norms
    expected = [norm(x) for norm in norms]
    with fused_norms(model):
        for norm, wanted in zip(norms, expected, strict=True):
            torch.testing.assert_close(norm(x), wanted, rtol=0.02, atol=0.01)
    assert all("forward" not in vars(norm) for norm in norms)
