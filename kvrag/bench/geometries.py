"""Models of well-known shapes with random weights: speed does not depend on what a model has learnt."""

from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

from kvrag.errors import SettingsError
from kvrag.model import LanguageModel

__all__ = ["GEOMETRIES", "open_geometry"]

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_QWEN = {"rope_type": "default", "rope_theta": 1_000_000.0}

GEOMETRIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama-3.1-8b": (
        LlamaConfig,
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rope_parameters": _LLAMA3,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2.5-7b": (
        Qwen2Config,
        {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "rope_parameters": _QWEN,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3-4b": (
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "rope_parameters": _QWEN,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": (
        LlamaConfig,
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
        },
    ),
}
"""Shapes by name, as their makers published them; `tiny` is for trying the command out."""


def open_geometry(name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """A model of that shape with random weights; its tokenizer knows one token.

    Raises:
        SettingsError: there is no such shape.
    """
    if name not in GEOMETRIES:
        raise SettingsError(f"expected a geometry out of {', '.join(GEOMETRIES)}, found {name!r}")
    kind, shape = GEOMETRIES[name]
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(kind(**shape), dtype=dtype).eval()
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # pyright: ignore[reportCallIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?")
    return LanguageModel(model, tokenizer, name=f"{name} (random weights)")
