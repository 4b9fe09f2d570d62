"""Tiny tokenizers of every kind that models use, trained on a few lines."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The moat is 12 metres wide.\nIt was dug in 1311.",
    "Ünïcode täble\t|a|b|\r\nrow {x}  and more of it",
    "user\nContext: <s> and </s> are spelled here, and im_end too. Answer what is asked.\nassistant\n",
    "f <| x <| y <| z <| x",
] * 4


def byte_level(*, prefix: bool = False) -> Tokenizer:
    """GPT-2's kind."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(backend, trainers.BpeTrainer, vocab_size=400, initial_alphabet=alphabet)


def sentencepiece_unigram() -> Tokenizer:
    """T5's kind, with bytes for unknown characters."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend = _trained(backend, trainers.UnigramTrainer, vocab_size=120, unk_token="<unk>")

    def add_bytes(model: dict[str, Any]) -> None:
        model["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]

    return _with_bytes(backend, add_bytes, strip=True)


def sentencepiece_bpe(*, legacy: bool, gemma: bool = False) -> Tokenizer:
    """Llama-2's and Mistral's kind; `legacy` with normalisers (Phi-3 too), otherwise with Metaspace; or Gemma's."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend = _trained(backend, trainers.BpeTrainer, vocab_size=160, max_token_length=8)

    def add_bytes(model: dict[str, Any]) -> None:
        model["vocab"] |= {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}

    return _with_bytes(backend, add_bytes, strip=not gemma)


def _trained(backend: Tokenizer, trainer: Callable[..., Any], **options: Any) -> Tokenizer:
    backend.train_from_iterator(CORPUS, trainer(special_tokens=SPECIAL, show_progress=False, **options))
    return backend


def _with_bytes(backend: Tokenizer, add_bytes: Callable[[dict[str, Any]], None], *, strip: bool) -> Tokenizer:
    rules = json.loads(backend.to_str())
    rules["model"]["byte_fallback"] = True
    add_bytes(rules["model"])
    backend = Tokenizer.from_str(json.dumps(rules))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level with prefix": lambda: byte_level(prefix=True),
    "unigram": sentencepiece_unigram,
    "bpe, metaspace": lambda: sentencepiece_bpe(legacy=False),
    "bpe, prepend": lambda: sentencepiece_bpe(legacy=True),
    "bpe, no dummy prefix": lambda: sentencepiece_bpe(legacy=False, gemma=True),
}


@cache
def _rules(kind: str) -> str:
    return KINDS[kind]().to_str()


def toy_backend(kind: str) -> Tokenizer:
    """A fresh backend; trained once, for no two trainings of a Unigram model end alike."""
    return Tokenizer.from_str(_rules(kind))


def toy_tokenizer(kind: str, *, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    backend = toy_backend(kind)
    if bos or eos:
        single = "<s> " * bos + "$A" + " </s>" * eos
        backend.post_processor = processors.TemplateProcessing(single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return wrapped(backend)


def wrapped(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | options
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def with_greedy_tokens(kind: str) -> PreTrainedTokenizerFast:
    """With special tokens that swallow the spaces around them, as Phi-3's do behind."""
    backend = toy_backend(kind)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("<|user|>", rstrip=True)])
    return wrapped(backend)
