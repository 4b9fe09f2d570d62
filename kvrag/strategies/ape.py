from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvrag.errors import SettingsError
from kvrag.framing import Framing
from kvrag.prompt import Segment
from kvrag.strategies.encased import Encased
from kvrag.strategies.positions import parallel_starts

__all__ = ["APE"]


@dataclass(frozen=True)
class APE(Encased):
    """Encode every chunk behind one prefix, let all of them stand at the same place, and sharpen attention to them.

    Stores the chunk's own rows, encoded behind a prefix that its packet leaves out; the prefix is in the prompt once.
    All packets begin at the position behind the text in front of them, and the text after them goes on behind the
    longest. Every computed row, in decoding too, takes the scores of all packets' tokens divided by `temperature`, and
    their joint log-sum-exp times `scale * temperature` before it meets that of the text, which undoes what chunks that
    were encoded in parallel add to each other. Computes the text only. Approximates: no chunk sees another, and their
    order is lost. With one chunk, its prefix in front of it and both factors 1 it is exact.
    Source: APE (https://arxiv.org/abs/2502.05431), which tunes the factors on each task; these are its code's defaults.

    Attributes:
        temperature: of the scores of packets' tokens; at most 1 sharpens.
        scale: of their share.
        prefix: text in front of every chunk; None takes what the model's chat template opens a message with.
    """

    name: ClassVar[str] = "ape"
    temperature: float = 0.9
    scale: float = 0.9
    prefix: str | None = None

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.scale > 0):
            raise SettingsError(
                f"expected a temperature and a scale above 0, found {self.temperature} and {self.scale}"
            )

    @property
    def score_scale(self) -> float:
        """One over the temperature."""
        return 1 / self.temperature

    @property
    def merge_scale(self) -> float:
        """The scale, less what the temperature did to the log-sum-exp."""
        return self.scale * self.temperature

    def around(self, framing: Framing) -> tuple[Sequence[int], Sequence[int]]:
        """The shared prefix."""
        return framing.begin(framing.opening if self.prefix is None else self.prefix), ()

    def starts(self, segments: Sequence[Segment], lengths: Sequence[int]) -> list[int]:
        """All packets at one place."""
        return parallel_starts(segments, lengths)
