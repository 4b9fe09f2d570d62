"""What a caller may set for one answer."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kvrag.errors import SettingsError

__all__ = ["Sampling"]


class Sampling(BaseModel):
    """How an answer is sampled, and where it ends.

    Attributes:
        max_new_tokens: at most so many tokens.
        temperature: 0 picks the most likely token.
        top_p: nucleus of probability to sample from.
        top_k: number of tokens to sample from; 0 is all.
        repetition_penalty: divides the logits of tokens that already occurred; 1 is none.
        seed: makes sampling repeatable; None draws one.
        stop: strings that end the answer; they are not part of it.
        logits_processor: change scores `[1, vocab]` before a token is picked, given the ids `[1, T]` so far; as those
            of transformers' `generate`. One that keeps a state serves one answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logits_processor: tuple[Callable[[Any, Any], Any], ...] = Field(default=(), exclude=True, repr=False)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: str | Sequence[str] | None) -> Sequence[str]:
        several = (value,) if isinstance(value, str) else tuple(value or ())
        return tuple(text for text in several if text)

    @classmethod
    def of(cls, **options: Any) -> "Sampling":
        """Settings from keyword arguments.

        Raises:
            SettingsError: an option is unknown or out of range; the message names it and the value found.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            known = ", ".join(cls.model_fields)
            raise SettingsError(
                f"{where}: {first['msg']}, found {first.get('input')!r}; the settings are {known}"
            ) from error
