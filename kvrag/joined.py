"""Linear layers that read the same input, such as a query's, key's and value's, as one matrix product.

A pass of few rows takes as long as reading its weights does, and a GPU reads one large matrix faster than three small
ones. Only compiled passes are joined: everything else, hooks included, meets the layers that were there before.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

__all__ = ["join_linears"]


class _Product:
    """What the first layer of a group computed for the others, while a pass is compiled.

    Attributes:
        output: `[..., N]` of all layers of the group; None outside of a pass.
    """

    def __init__(self) -> None:
        self.output: torch.Tensor | None = None


class _Joined(torch.nn.Linear):
    """A layer whose weight is some rows of a matrix that it shares with others."""

    joined_weight: torch.Tensor
    joined_bias: torch.Tensor | None
    product: _Product
    begin: int
    is_last: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # as in torch
        if not torch.compiler.is_compiling():
            return super().forward(input)
        if self.begin == 0:
            self.product.output = torch.nn.functional.linear(input, self.joined_weight, self.joined_bias)
        output = self.product.output
        assert output is not None, "the layers of a group are called in the order in which they were found"
        if self.is_last:
            self.product.output = None
        return output[..., self.begin : self.begin + self.out_features]


def join_linears(modules: list[torch.nn.Module], run: Callable[[], Any]) -> None:
    """Join the linear layers that a pass calls one after another with the same input.

    Their weights become views of one matrix: no value changes, and no memory is taken beyond one group's while it is
    moved. Layers of other classes than PyTorch's own, and those that a pass calls twice, stay alone.

    Args:
        modules: of the model.
        run: makes one pass.
    """
    calls: list[tuple[torch.nn.Linear, torch.Tensor]] = []

    def note(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        calls.append((module, args[0]))

    hooks = [m.register_forward_pre_hook(note) for m in modules if type(m) is torch.nn.Linear]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    names = [id(module) for module, _ in calls]
    groups: list[list[torch.nn.Linear]] = [[module] for module, _ in calls[:1]]
    for (before, its_input), (module, input_) in pairwise(calls):
        fits = input_ is its_input and (module.bias is None) == (before.bias is None)
        if fits and names.count(id(module)) == names.count(id(before)) == 1:
            groups[-1].append(module)
        else:
            groups.append([module])
    with torch.inference_mode(False), torch.no_grad():
        for group in groups:
            if len(group) > 1:
                _join(group)


def _join(group: list[torch.nn.Linear]) -> None:
    product, begin = _Product(), 0
    weight = torch.cat([m.weight for m in group])
    bias = None if group[0].bias is None else torch.cat([m.bias for m in group])
    for m in group:
        rows = slice(begin, begin + m.out_features)
        m.weight = torch.nn.Parameter(weight[rows], m.weight.requires_grad)
        if bias is not None:
            m.bias = torch.nn.Parameter(bias[rows], m.bias.requires_grad)
        m.__class__ = _Joined
        assert isinstance(m, _Joined)
        m.product, m.begin, m.is_last = product, begin, m is group[-1]
        m.joined_weight, m.joined_bias = weight, bias
        begin = rows.stop
