"""Answers of a given form: tokens that would break it are never picked.

llguidance (https://github.com/guidance-ai/llguidance) compiles grammars and computes which tokens may come next.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from kvrag.errors import SettingsError

try:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "expected llguidance to be installed, for answers of a given form, found none; pip install 'kvrag[structured]'",
        name=error.name,
    ) from error

__all__ = ["GrammarProcessor", "Grammars", "json_rule"]

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as `json.dumps` writes it: a small model that may add white space can go on doing so for ever."""


class Grammars:
    """The forms that a model's answers can be held to.

    Args:
        tokenizer: a fast one of transformers.
        stop_ids: tokens that end an answer.
        vocab_size: number of logits.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int], vocab_size: int) -> None:
        size = max(vocab_size, len(tokenizer))
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(stop_ids))
        self._added = {t.content: id for id, t in tokenizer.added_tokens_decoder.items()}

    def lark(self, grammar: str) -> "GrammarProcessor":
        """Holds one answer to a grammar in llguidance's dialect of Lark.

        Raises:
            SettingsError: it cannot be compiled.
        """
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise SettingsError(f"expected a form that answers can be held to, found: {matcher.get_error()}")
        return GrammarProcessor(matcher)

    def literal(self, text: str) -> str:
        """`text` in a Lark grammar, as the one token that it is if the vocabulary has added such a one."""
        id = self._added.get(text)
        special = id is not None and text.startswith("<") and self._tokenizer.is_special_token(id)
        return text if special else json.dumps(text)


def json_rule(schema: Mapping[str, Any]) -> str:
    """A Lark rule's right side for a JSON value of this schema; objects have the properties named and no others."""
    return "%json " + json.dumps(_closed(schema) | {"x-guidance": _COMPACT})


class GrammarProcessor:
    """A logits processor, in transformers' sense, that holds one answer to a grammar.

    Args:
        matcher: at the grammar's begin.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._read: int | None = None

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[1, vocab]` with minus infinity for what may not come next.

        Args:
            ids: `[1, T]` of prompt and answer so far; at the first call, of the prompt.
            scores: `[1, vocab]`.

        Raises:
            SettingsError: the answer cannot go on within llguidance's limits.
        """
        if self._read is not None:
            self._matcher.consume_tokens(ids[0, self._read :].tolist())
        self._read = ids.shape[1]
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise SettingsError(f"expected an answer that follows its grammar, found: {self._matcher.get_error()}")
        mask = torch.from_numpy(np.unpackbits(allowed, bitorder="little")[: scores.shape[1]]).to(scores.device)
        return scores.masked_fill(mask == 0, float("-inf"))


def _closed(schema: Any) -> Any:
    """The schema with every object that names its properties closed to others, unless it says something else."""
    if isinstance(schema, Mapping):
        inner = {key: value if key in _VALUES else _closed(value) for key, value in schema.items()}
        return {"additionalProperties": False} | inner if isinstance(schema.get("properties"), Mapping) else inner
    return [_closed(part) for part in schema] if isinstance(schema, list) else schema


_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data, not schemas."""
