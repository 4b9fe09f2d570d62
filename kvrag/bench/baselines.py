"""What packets replace: reading everything, and copying what was read into a cache of the request's own."""

import inspect
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvrag.bench.prompts import RandomPrompt

__all__ = ["copied_cache", "full_prefill", "over_cache"]


@torch.inference_mode()
def full_prefill(prompt: RandomPrompt) -> int:
    """The first token after transformers' own pass over the whole prompt, with PyTorch's flash attention."""
    ids = [i for packet in prompt.packets for i in packet.token_ids.tolist()]
    whole = torch.tensor([[*ids, *prompt.question]], device=prompt.model.device)
    logits = prompt.model.transformers_model(input_ids=whole, use_cache=False, logits_to_keep=1).logits
    return int(logits[0, -1].argmax())


@torch.inference_mode()
def copied_cache(prompt: RandomPrompt, on_device: list[torch.Tensor]) -> int:
    """The first token after packets were joined, rotated and handed to transformers as a cache, operator by operator.

    This is how KV Packet's published code does it (https://github.com/ChuangtaoChen-TUM/KVPacket), with one rotation a
    layer instead of one a packet.

    Args:
        prompt: whose packets.
        on_device: their numbers `[L, 2, H, T, D]`.
    """
    model = prompt.model
    counts = torch.tensor([p.tokens for p in prompt.packets], device=model.device)
    cos, sin = (
        angles.to(model.device, model.dtype).repeat_interleave(counts, 0, output_size=prompt.context)
        for angles in model.rope.angles(prompt.prepared.starts[:-1])
    )
    cache = DynamicCache()
    for layer in range(model.geometry.layers):
        keys = torch.cat([kv[layer, 0] for kv in on_device], 1)
        values = torch.cat([kv[layer, 1] for kv in on_device], 1)
        cache.update(_rotated(keys, cos, sin)[None], values[None], layer)
    ids = torch.tensor([prompt.question], device=model.device)
    positions = torch.arange(prompt.context, prompt.context + ids.shape[1], device=model.device)[None]
    found = over_cache(
        model.transformers_model, cache, input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    return int(found.logits[0, -1].argmax())


def over_cache(model: PreTrainedModel, cache: DynamicCache, **inputs: Any) -> Any:
    """What a model returns over a ready cache, which transformers takes under another name since 5.24."""
    names = inspect.signature(model.forward).parameters
    return model(**inputs, **{"cache" if "cache" in names else "past_key_values": cache})


def _rotated(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Keys `[H, T, D]` turned by angles `[T, E / 2]`, each token by its own."""
    half = cos.shape[1]
    lo, hi, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin, rest], -1)
