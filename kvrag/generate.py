"""From logits to text: sampling, stop strings, streaming detokenisation."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvrag.settings import Sampling
from kvrag.tokenizing import ChunkTokenizer

__all__ = ["Sampler", "StopText", "TextStream"]


class Sampler:
    """Picks the next token from logits, through transformers' own logits processors.

    Args:
        settings: of the answer.
        prompt_ids: token ids of the whole prompt, for the repetition penalty.
        device: of the logits.

    Attributes:
        takes_highest: whether the token of the highest logit is taken, whatever came before.
    """

    def __init__(self, settings: Sampling, prompt_ids: Sequence[int], device: torch.device) -> None:
        self._ids = list(prompt_ids)
        self._greedy = settings.temperature == 0
        self.takes_highest = self._greedy and settings.repetition_penalty == 1.0 and not settings.logits_processor
        self._processors = LogitsProcessorList()
        if settings.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        self._processors.extend(settings.logits_processor)  # before temperature and nucleus, as in transformers
        if not self._greedy:
            if settings.temperature != 1.0:
                self._processors.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_k:
                self._processors.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(settings.top_p))
        self._generator = torch.Generator(device)
        self._generator.manual_seed(settings.seed) if settings.seed is not None else self._generator.seed()

    def __call__(self, logits: torch.Tensor) -> int:
        """The next token id, from logits `[vocab]`."""
        scores = logits[None].float()
        if self._processors:
            ids: Any = torch.tensor([self._ids], device=logits.device)
            scores = self._processors(ids, scores)
        if self._greedy:
            token = int(scores.argmax(-1))
        else:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        self._ids.append(token)
        return token


class StopText:
    """Lets text through until one of the stop strings appears, also across the borders of pieces.

    Args:
        stops: strings that end the text; they are not let through.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that certainly belongs to the answer once `piece` has arrived."""
        if self.stopped:
            return ""
        self._held += piece
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def flush(self) -> str:
        """What was held back in case it became a stop string."""
        text, self._held = self._held, ""
        return text


class TextStream:
    """Turns token ids into text as they come; pieces of one character are held until it is whole.

    Args:
        tokenizer: of the model.
        prompt_ids: the last ids of the prompt, which decide about a space in front of the first word.
        stops: stop strings.
    """

    def __init__(self, tokenizer: ChunkTokenizer, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._decoder: Any = tokenizer.decode_stream(list(prompt_ids)[-8:])
        self._stop = StopText(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """The new text after `token`, possibly empty."""
        piece = self._decoder(token)
        return self._stop.push(piece) if piece else ""

    def finish(self) -> str:
        """The rest, when the answer ended for another reason than a stop string."""
        return self._stop.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
