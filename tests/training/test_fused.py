"""Norms are swapped for torch's own where they mean the same, and only there."""

import torch

from kvrag.training.fused import fused_norms


class GemmaRMSNorm(torch.nn.Module):
    """A norm of another formula."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((8,), 0.3))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)


def norms(model) -> list[torch.nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm"]


def test_the_model_computes_the_same(tiny):
    ids = list(range(10, 40))
    expected = tiny.plain_forward(ids, range(30))
    with fused_norms(tiny):
        assert all("forward" in vars(norm) for norm in norms(tiny))
        torch.testing.assert_close(tiny.plain_forward(ids, range(30)), expected, rtol=1e-4, atol=1e-4)
    assert norms(tiny)
    assert not any("forward" in vars(norm) for norm in norms(tiny))


def test_another_formula_stays(tiny, monkeypatch):
    other = GemmaRMSNorm()
    monkeypatch.setattr(tiny, "modules", lambda: [other])
    with fused_norms(tiny):
        assert "forward" not in vars(other)
