"""The writer: a LoRA that is on only while chunks are encoded into packets.

It changes what a chunk's keys and values say, and costs nothing at question time: the question is computed by the bare
model. The low-rank products are added by forward hooks on the model's own linear layers, so nothing wraps the model,
no weight is touched, and the model's identity stays what it was. LoRA: https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from kvrag.errors import AdapterError

__all__ = ["Writer"]

_PREFIX, _DOWN, _UP = "writer.", ".lora_A.weight", ".lora_B.weight"


class Writer:
    """Low-rank updates of linear layers, by the layer's path in the model.

    Serving and training use this class alike; in training the tensors require gradients and may be of another dtype
    than the activations.

    Args:
        tensors: for each path `A` [r, in] and `B` [out, r].
        scale: of the update `scale * B @ A`.

    Raises:
        AdapterError: a pair whose shapes do not fit each other.
    """

    def __init__(self, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scale: float = 1.0) -> None:
        for path, (a, b) in tensors.items():
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
                raise AdapterError(
                    f"expected lora_A [r, in] and lora_B [out, r] for {path}, found {list(a.shape)} and "
                    f"{list(b.shape)}; save the adapter again"
                )
        self.tensors = dict(tensors)
        self.scale = scale

    @classmethod
    def from_named(cls, tensors: Mapping[str, torch.Tensor], scale: float = 1.0, *, prefix: str = _PREFIX) -> "Writer":
        """The updates among the tensors of a file; names that do not begin with the prefix are passed over.

        Args:
            tensors: `<prefix><module path>.lora_A.weight` and `.lora_B.weight`.
            scale: of the updates.
            prefix: `writer.` in adapter files.

        Raises:
            AdapterError: half of a pair, a name of another form, or shapes that do not fit.
        """
        names = {name for name in tensors if name.startswith(prefix)}
        paths = [n.removeprefix(prefix).removesuffix(_DOWN) for n in tensors if n in names and n.endswith(_DOWN)]
        wanted = {f"{prefix}{path}{end}" for path in paths for end in (_DOWN, _UP)}
        if odd := sorted(names ^ wanted):
            raise AdapterError(
                f"expected pairs {prefix}<module path>.lora_A.weight and .lora_B.weight, found a stray or missing "
                f"{odd[0]!r}; save the adapter again"
            )
        return cls({p: (tensors[f"{prefix}{p}{_DOWN}"], tensors[f"{prefix}{p}{_UP}"]) for p in paths}, scale)

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors under the names they have in an adapter file."""
        pairs = self.tensors.items()
        return {f"{_PREFIX}{path}{end}": t for path, pair in pairs for end, t in zip((_DOWN, _UP), pair, strict=True)}

    @property
    def rank(self) -> int:
        """The largest rank of its updates; 0 when there are none."""
        return max((len(a) for a, _ in self.tensors.values()), default=0)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Writer":
        """The same writer on another device, in another dtype; differentiable."""
        flat: Any = _Cast.apply(device, dtype, *(t for pair in self.tensors.values() for t in pair))
        return Writer(dict(zip(self.tensors, zip(flat[::2], flat[1::2], strict=True), strict=True)), self.scale)

    def check_modules(self, modules: Mapping[str, Any]) -> None:
        """Refuse a model whose layers these updates do not fit.

        Args:
            modules: the model's linear layers by path.

        Raises:
            AdapterError: a path that is not there, or a layer of another shape.
        """
        for path, (a, b) in self.tensors.items():
            if path not in modules:
                raise AdapterError(
                    f"expected a model with a linear layer {path}, found none among its {len(modules)}; "
                    "the adapter's writer was trained for another model"
                )
            shape = (modules[path].in_features, modules[path].out_features)
            if shape != (a.shape[1], len(b)):
                raise AdapterError(
                    f"expected {path} to have {a.shape[1]} inputs and {len(b)} outputs, found {shape[0]} "
                    f"and {shape[1]}; the adapter's writer was trained for another model"
                )

    @contextmanager
    def active(self, modules: Mapping[str, torch.nn.Module], rows: int | None = None) -> Iterator[None]:
        """Add the updates to what the layers give, while the context is open.

        Every call of the model in the context is changed, whoever makes it. Differentiable; under gradient
        checkpointing (`use_reentrant=False`) the layers are called again during the backward pass, which must then
        happen inside the context too.

        Args:
            modules: the model's linear layers by path.
            rows: change only the first rows of the inputs `[1, S, in]`; by default all.

        Raises:
            AdapterError: the updates do not fit the layers.
        """
        self.check_modules(modules)
        handles = []
        try:
            for path, (a, b) in self.tensors.items():
                handles.append(modules[path].register_forward_hook(self._hook(a, b, rows)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, a: torch.Tensor, b: torch.Tensor, rows: int | None) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            updated: Any = _Update.apply(output, inputs[0], a, b, self.scale, rows)
            return updated

        return add


class _Cast(torch.autograd.Function):
    """Many small tensors to a device and a dtype, in few kernels."""

    @staticmethod
    def forward(ctx: Any, device: torch.device, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.kinds = [(t.device, t.dtype) for t in tensors]
        return _cast(tensors, [(device, dtype)] * len(tensors))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *_cast(grads, ctx.kinds))


def _cast(
    tensors: Sequence[torch.Tensor], kinds: Sequence[tuple[torch.device, torch.dtype]]
) -> tuple[torch.Tensor, ...]:
    cast = [torch.empty_like(t, device=device, dtype=dtype) for t, (device, dtype) in zip(tensors, kinds, strict=True)]
    torch._foreach_copy_(cast, list(tensors))  # pyright: ignore[reportPrivateImportUsage]
    return tuple(cast)


class _Update(torch.autograd.Function):
    """Add the update to the first rows of a layer's output, in place.

    By slices and sums of autograd's own it would take four more passes over memory, a tenth of a training step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        rows: int | None,
    ) -> torch.Tensor:
        ctx.mark_dirty(output)
        kept = x.flatten(0, -2)[:rows]
        down, up = a.to(x), b.to(x)
        low = kept @ down.T
        output.view(-1, output.shape[-1])[:rows].addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(kept, low, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, low, a, b = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)[: len(kept)]
        of_low = (grad @ b.to(grad)) * ctx.scale
        of_b = (grad.T @ low) * ctx.scale
        of_x = pad(of_low @ a.to(grad), (0, 0, 0, grads[0].flatten(0, -2).shape[0] - len(kept)))
        return grads[0], of_x.view(ctx.shape), (of_low.T @ kept).to(a), of_b.to(b), None, None
