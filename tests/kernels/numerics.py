"""A tolerance that scales itself: a kernel may err at most twice as much as PyTorch in the same dtype."""

import torch


def assert_as_accurate_as(actual: torch.Tensor, baseline: torch.Tensor, oracle: torch.Tensor, factor: float = 2.0):
    """`actual` may err from the float64 `oracle` at most `factor` times as much as `baseline` does."""
    assert oracle.dtype == torch.float64
    assert torch.isfinite(actual).all(), "not finite"
    error, base = ((x.double() - oracle).abs().max().item() for x in (actual, baseline))
    floor = torch.finfo(actual.dtype).eps * oracle.abs().max().item()
    assert error <= factor * base + floor, f"error {error:.3e} > {factor} x {base:.3e} + {floor:.3e}"
