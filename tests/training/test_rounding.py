"""How a step is cut into passes changes nothing but rounding."""

import pytest
import torch

from kvrag.training import AdapterTask, ReaderTask

from .toy_runs import EVERYTHING, toy_run


@pytest.fixture
def gradients(new_model, tmp_path):
    def after_one_step(kind: str, **changes):
        """The gradients, and how often the first layer was computed."""
        model = new_model()
        task = AdapterTask(model, EVERYTHING) if kind == "adapter" else ReaderTask(model, 4)
        rng = torch.Generator().manual_seed(1)
        for name, p in task.parameters.items():
            if "lora_B" in name:  # at its beginning, where it is zero, it hides the gradient of A
                p.data.copy_(0.05 * torch.randn(p.shape, generator=rng))
        calls = []
        model._model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        folder = tmp_path / "-".join(map(str, (kind, *changes.values())))
        toy_run(task, folder, steps=1, clip=1e9, answers="given", **changes)
        return {name: p.grad for name, p in task.parameters.items()}, sum(calls)

    return after_one_step


@pytest.mark.parametrize("kind", ["adapter", "reader"])
@pytest.mark.parametrize("change", [{"micro_tokens": 64}, {"gradient_checkpointing": True}], ids=str)
def test_gradients_stay_the_same(kind, change, gradients):
    expected, calls = gradients(kind)
    found, more_calls = gradients(kind, **change)
    assert more_calls > calls
    assert all(bool(gradient.any()) for name, gradient in found.items() if "layers.2" not in name)
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=lambda m, n=name: f"{n} {m}"
        )
