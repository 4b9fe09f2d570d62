"""What a training run is told."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvrag.packet import digest_fields

__all__ = ["TrainingSettings"]


class TrainingSettings(BaseModel):
    """How a reader or an adapter is trained; the result depends on nothing else but data, model and these.

    Attributes:
        steps: optimiser steps.
        contexts: prompts a step, over all processes.
        questions: about each context, at most.
        min_passages: of a context.
        max_passages: of a context.
        max_tokens: of a prompt; what is longer loses passages.
        longer_chunks: share of contexts whose chunks are two or three passages in a row.
        metadata: share of contexts whose chunks begin with metadata lines, as LlamaIndex writes them.
        learning_rate: highest, of low-rank matrices.
        soft_learning_rate: highest, of soft tokens.
        warmup: share of the steps during which the rate rises.
        clip: largest norm of all gradients together.
        answers: "teacher" lets the model itself answer, so that no labels are needed; "given" takes the data's.
        max_answer_tokens: of an answer.
        held_out: contexts that are never trained on, to select by.
        evaluate_every: steps.
        checkpoint_every: steps.
        patience: evaluations without improvement before the run ends early; 0 never does.
        micro_tokens: rows that go through the model at once; less takes less memory.
        gradient_checkpointing: compute activations again in the backward pass: a third more time, far less memory.
        cuda_graphs: on a GPU, record steps of given answers once and replay them, which takes far less time.
        seed: of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1500, ge=1)
    contexts: int = Field(default=16, ge=1)
    questions: int = Field(default=12, ge=1)
    min_passages: int = Field(default=1, ge=1)
    max_passages: int = Field(default=12, ge=1)
    max_tokens: int = Field(default=3072, ge=64)
    longer_chunks: float = Field(default=0.2, ge=0, le=1)
    metadata: float = Field(default=0.2, ge=0, le=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    soft_learning_rate: float = Field(default=5e-3, gt=0)
    warmup: float = Field(default=0.03, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    answers: Literal["teacher", "given"] = "teacher"
    max_answer_tokens: int = Field(default=32, ge=1)
    held_out: int = Field(default=64, ge=1)
    evaluate_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=50, ge=1)
    patience: int = Field(default=0, ge=0)
    micro_tokens: int = Field(default=16384, ge=64)
    gradient_checkpointing: bool = False
    cuda_graphs: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> "TrainingSettings":
        if self.min_passages > self.max_passages:
            raise ValueError(f"min_passages {self.min_passages} is greater than max_passages {self.max_passages}")
        return self

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 over what the result depends on, which memory and checkpoints are not part of."""
        beside = {"checkpoint_every", "patience", "micro_tokens", "gradient_checkpointing", "cuda_graphs"}
        return digest_fields(self.model_dump_json(exclude=beside))

    def rate(self, step: int) -> float:
        """Share of the highest learning rate in step `step`: up linearly, then down linearly to nothing."""
        rising = max(1, round(self.warmup * self.steps))
        return min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising), 1.0)
