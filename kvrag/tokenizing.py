"""Tokenises a prompt part by part, such that the parts read in a row are the prompt."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from kvrag.errors import ModelError

__all__ = ["ChunkTokenizer"]

_Rules = dict[str, Any]


class ChunkTokenizer:
    """A fast tokenizer's rules, applied to the parts of a prompt.

    It works on copies of the backend; the tokenizer given is never changed, and its padding, truncation and BPE dropout
    are not taken over. Two things differ from tokenising the prompt as a whole. The dummy prefix, a space that
    SentencePiece puts in front of every text (and some tokenizers behind every special token), comes in front of the
    prompt only. And a part can be read literally, so that a document which spells a special token does not contain
    one. Added tokens that are not special, such as Qwen's `<think>`, are ordinary text and stay what they are.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        bos_id: the id that the tokenizer itself puts in front of a text, or None.
        digest: hexadecimal sha256 of everything the ids depend on; the chat template is not part of it.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"expected a fast tokenizer, found {type(tokenizer).__name__}, which has no tokenizers.Tokenizer "
                "inside; put a tokenizer.json beside the model and load it with AutoTokenizer.from_pretrained"
            )
        rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        if "dropout" in rules["model"]:
            rules["model"]["dropout"] = None
        self.digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        self._prefixed = _drop_dummy_prefix(rules)
        self._plain, self._literal = (Tokenizer.from_str(json.dumps(rules)) for _ in range(2))
        self._literal.encode_special_tokens = True
        self._added = {id: token.content for id, token in self._plain.get_added_tokens_decoder().items()}
        self._special = set(tokenizer.all_special_ids) & set(self._added)
        self._special |= {id for id, token in self._plain.get_added_tokens_decoder().items() if token.special}
        self._unknown: int | None = tokenizer.unk_token_id
        self.bos_id = _leading_id(self._plain)

    def encode(self, text: str, *, literal: bool = False, at_start: bool = False) -> list[int]:
        """The token ids of a part of a prompt; special tokens are never added.

        Args:
            text: the part.
            literal: whether text that spells a special token is read as ordinary text.
            at_start: whether the part opens the prompt: the dummy prefix goes in front of it, or behind the BOS that it
                spells, unless another added token stands there.
        """
        ids = self._encode_literal(text) if literal else self._plain.encode(text, add_special_tokens=False).ids
        if not (ids and at_start and self._prefixed):
            return ids
        if ids[0] == self.bos_id and text.startswith(bos := self._added[ids[0]]):
            return [*ids[:1], *self.encode(text[len(bos) :], at_start=True)]
        return ids if ids[0] in self._added else self.encode(" " + text, literal=literal)

    def decode(self, ids: Iterable[int]) -> str:
        """The prompt whose parts, the first of them encoded `at_start`, have these `ids` [T].

        Special tokens are spelled out. What a tokenizer drops before or while it cuts cannot come back: normalised
        characters (NFKC, lower case), unknown ones, spaces around added tokens with `lstrip` or `rstrip`.
        """
        ids = list(ids)
        bos = ids[:1] if ids[:1] == [self.bos_id] else []
        text = self._plain.decode(ids[len(bos) :], skip_special_tokens=False)
        return self._plain.decode(bos, skip_special_tokens=False) + text.removeprefix(" " if self._prefixed else "")

    def decode_stream(self, ids: Sequence[int] = ()) -> Callable[[int], str | None]:
        """A function from the next id to the text it adds, None while a character is incomplete.

        Args:
            ids: `[T]` ids in front of the first one. Special tokens give no text.
        """
        stream = DecodeStream(list(ids), skip_special_tokens=True)
        return lambda token: stream.step(self._plain, token)

    def _encode_literal(self, text: str) -> list[int]:
        encoding = self._literal.encode(text, add_special_tokens=False)
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = [start + 1 for token, (start, end) in tokens if self._is_spelled(token, text[start:end])]
        if not cuts:
            return encoding.ids
        # Unigram models, for one, know special tokens as pieces like others: nobody recognises them in two halves.
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [token for part in parts for token in self._encode_literal(part)]

    def _is_spelled(self, token: int, text: str) -> bool:
        """Whether `text` became a special token because it spells it, and not because it is unknown."""
        return token in self._special and len(text) > 1 and (token != self._unknown or text == self._added[token])


def _leading_id(backend: Tokenizer) -> int | None:
    """The one id that the post-processor puts in front of a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a").ids
    return full[0] if bare and full[1 : 1 + len(bare)] == bare else None


def _drop_dummy_prefix(rules: _Rules) -> bool:
    """Change a backend's rules so that no space is added or taken off; returns whether one was added."""
    found = False
    for part in [*_parts(rules["normalizer"]), *_parts(rules["pre_tokenizer"])]:
        match part:
            case {"type": "Prepend"}:
                found, part["prepend"] = True, ""
            case {"type": "Metaspace", "prepend_scheme": "always" | "first"}:
                found, part["prepend_scheme"] = True, "never"
            case {"type": "ByteLevel", "add_prefix_space": True}:
                found, part["add_prefix_space"] = True, False
    for part in _parts(rules["decoder"]):
        match part:
            case {"type": "Strip"}:
                part["start"] = 0
            case {"type": "Metaspace"}:
                part["prepend_scheme"] = "never"
            case {"type": "WordPiece"}:
                part["cleanup"] = False
    return found


def _parts(part: _Rules | None) -> Iterator[_Rules]:
    """A normaliser, pre-tokenizer or decoder, and those that it is a sequence of."""
    if part is not None:
        yield part
        for kind in ("normalizers", "pretokenizers", "decoders"):
            for inner in part.get(kind, ()):
                yield from _parts(inner)
