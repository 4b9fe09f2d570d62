"""How many rows of a training pass fit into memory."""

import os

import torch

from kvrag.model import LanguageModel

__all__ = ["fitting_rows"]

_BYTES = 35  # a row, layer and channel, for each byte of an element: measured for Llama layers with a LoRA on each
_SHARE = 0.5
_LEAST, _MOST, _MOST_CPU = 512, 65_536, 4_096


def fitting_rows(model: LanguageModel, *, checkpointing: bool = False) -> int:
    """Rows whose activations take about half of the device's memory, between 512 and 65,536 (4,096 on a CPU).

    By the memory that there is, not by what is free: a run that is taken up again shall be cut as before.

    Args:
        model: to be trained for, already where it will run.
        checkpointing: whether activations are computed twice instead of being kept.
    """
    config = model.config
    size = torch.empty((), dtype=model.dtype).element_size()
    row = _BYTES * size * config.num_hidden_layers * config.hidden_size
    row = row / config.num_hidden_layers * 3 if checkpointing else row
    row += (
        2 * 4 * config.vocab_size / 2
    )  # teacher's and student's logits of the predicted tokens, half of the rows at most
    if model.device.type == "cuda":
        memory, most = torch.cuda.mem_get_info(model.device)[1], _MOST
    else:
        memory, most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _MOST_CPU
    return int(min(most, max(_LEAST, _SHARE * memory / row)))
