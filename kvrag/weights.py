"""What a model's weights are: their digest, its modules, and which adapters of the user's own are on."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xxhash

__all__ = ["all_modules", "digest_weights", "is_linear", "switches"]


def digest_weights(model: Any) -> str:
    """Digest over names, shapes, dtypes and bytes of all parameters and buffers, and which adapters are switched on.

    A float32 tensor that holds nothing but bfloat16 numbers counts as one in bfloat16: a checkpoint is the same model
    on hardware that computes in bfloat16 and on hardware that does not, and what was trained for it fits both.
    """
    sha = hashlib.sha256(repr(switches(all_modules(model))).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        dtype, digest = _digest_numbers(tensor.detach().cpu().contiguous().reshape(-1))
        sha.update(f"{name}{tuple(tensor.shape)}{dtype}".encode())
        sha.update(digest)
    return sha.hexdigest()


def _digest_numbers(flat: torch.Tensor) -> tuple[str, bytes]:
    """Name of the dtype, empty for bfloat16, and digest of the bytes; numpy, which waits for no OpenMP helpers."""
    data = flat.view(torch.uint8).numpy()
    if flat.dtype == torch.float32:
        words, digest = data.view(np.uint32), xxhash.xxh3_128()
        for start in range(0, len(words), 1 << 16):  # blocks that fit into the processor's cache
            block = words[start : start + (1 << 16)]
            if np.bitwise_or.reduce(block) & 0xFFFF:
                break
            digest.update((block >> 16).astype(np.uint16).data)
        else:
            return "", digest.digest()
    return "" if flat.dtype == torch.bfloat16 else str(flat.dtype), xxhash.xxh3_128_digest(data.data)


def all_modules(model: Any) -> list[Any]:
    """All modules; ten times as fast as `model.modules()`, which also names them."""
    found = [model]
    for module in found:
        found.extend(child for child in module._modules.values() if child is not None)
    return found


def is_linear(module: Any) -> bool:
    """Also quantised layers and those wrapped by peft."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "in_features") and hasattr(module, "out_features") and getattr(weight, "ndim", 0) == 2


def switches(modules: Iterable[Any]) -> tuple[str, ...]:
    """Which LoRA-like adapters of the user's model are on."""
    modules = list(modules)
    kinds = {type(m) for m in modules}  # of a tuner's layers it is a property, of whole models a method
    kinds = {kind for kind in kinds if isinstance(getattr(kind, "disable_adapters", None), property)}
    return tuple(sorted({f"{m.active_adapters}{m.disable_adapters}" for m in modules if type(m) in kinds}))
