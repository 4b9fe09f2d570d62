"""One prompt on its way to an answer."""

import time
from dataclasses import dataclass, field
from typing import Literal

import torch

from kvrag.attach import ComputedStates, DevicePool
from kvrag.completion import Completion, Delivery, LoadReport, Timings, Usage
from kvrag.generate import Sampler, TextStream
from kvrag.model import LanguageModel, Rows
from kvrag.plan import Plan, plan_lane
from kvrag.prepared import Prepared
from kvrag.settings import Sampling

__all__ = ["Request"]

_ROOM = 64  # rows a lane has for new tokens before it grows


@dataclass
class Request:
    """One prompt on its way to an answer. Callers fill the first fields; the worker owns the others.

    Attributes:
        prepared: the prompt.
        sampling: how to answer.
        delivery: where pieces go.
        strategy: its name, for the completion.
        started: `time.perf_counter()` when the prompt came in.
        match_ms: spent before the worker saw it.
        loading: likewise.
    """

    prepared: Prepared
    sampling: Sampling
    delivery: Delivery
    strategy: str
    started: float
    match_ms: float = 0.0
    loading: LoadReport = field(default_factory=LoadReport)
    plan: Plan | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finished: bool = False
    _attach_ms: float = 0.0
    _first: float = 0.0
    _last: float = 0.0
    _sampler: Sampler | None = None
    _text: TextStream | None = None

    def next_rows(self, model: LanguageModel, states: ComputedStates, pool: DevicePool | None) -> Rows:
        """What to compute in the next pass: the prompt's missing rows first, then the token sampled last.

        Raises:
            PoolFullError: the prompt's packets have no room on the device yet.
        """
        if self.plan is None:
            begin = time.perf_counter()
            room = min(self.sampling.max_new_tokens, _ROOM)
            self.plan = plan_lane(model, self.prepared, states, room, pool)
            ids = self.prepared.token_ids
            self._sampler = Sampler(self.sampling, ids, model.device)
            self._text = TextStream(model.tokenizer, ids, self.sampling.stop)
            self._attach_ms += 1e3 * (time.perf_counter() - begin)
            return self.plan.rows
        position = self.prepared.end + len(self.tokens) - 1
        return Rows(self.plan.lane, self.tokens[-1:], [position])

    @property
    def takes_highest(self) -> bool:
        """Whether the next token is that of the highest logit."""
        return self._sampler is not None and self._sampler.takes_highest

    def accept(self, logits: torch.Tensor, highest: int, model: LanguageModel) -> None:
        """Sample, deliver the new text and notice the end; or begin again with another prompt, as `Plan.again` says.

        Args:
            logits: `[vocab]`.
            highest: the token of the highest, if `takes_highest`.
            model: whose tokens they are.
        """
        assert self._sampler is not None, "rows come before logits"
        assert self._text is not None
        assert self.plan is not None, "logits come from a plan"
        instead = None if self.tokens else self.plan.again(logits)
        if instead is not None:
            self.plan.release()
            self.prepared, self.plan = instead, None  # nothing has been delivered yet
            return
        token = highest if self.takes_highest else self._sampler(logits)
        self.tokens.append(token)
        self._last = time.perf_counter()
        self._first = self._first or self._last
        ended = token in model.stop_ids
        self._deliver("" if ended else self._text.push(token))
        if self._text.stopped:
            self.finish("stop", model)
        elif ended or len(self.tokens) >= self.sampling.max_new_tokens:
            self._deliver(self._text.finish())
            self.finish("stop" if ended else "length", model)

    def finish(self, reason: Literal["stop", "length", "cancelled"], model: LanguageModel) -> None:
        """Deliver the completion."""
        self._end()
        self.delivery.put(self._completion(reason, model))

    def fail(self, error: BaseException) -> None:
        """Deliver an error instead of an answer."""
        self._end()
        self.delivery.put(error)

    def _end(self) -> None:
        self.finished = True
        if self.plan is not None:
            self.plan.release()

    def _deliver(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            self.delivery.put(piece)

    def _completion(self, reason: Literal["stop", "length", "cancelled"], model: LanguageModel) -> Completion:
        prompt = self.prepared.tokens
        cached = self.plan.cached if self.plan else 0
        later = len(self.tokens) - 1
        return Completion(
            text="".join(self.pieces),
            token_ids=tuple(self.tokens),
            finish_reason=reason,
            usage=Usage(prompt, cached, prompt - cached if self.plan else 0, len(self.tokens)),
            timings=Timings(
                match_ms=self.match_ms,
                load_ms=self.loading.ms,
                attach_ms=self._attach_ms,
                first_token_ms=1e3 * (self._first - self.started) if self.tokens else 0.0,
                per_token_ms=1e3 * (self._last - self._first) / later if later > 0 else 0.0,
            ),
            model=model.name,
            strategy=self.strategy,
            fell_back=self.prepared.fell_back,
            kept=self.prepared.kept,
            loading=self.loading,
        )
