"""What a model expects around texts, as token ids, for strategies that encode chunks between other tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from kvrag.tokenizing import ChunkTokenizer

__all__ = ["Framing"]

_MESSAGE = "a message of somebody"  # whatever a chat template leaves as it is


@dataclass(frozen=True)
class Framing:
    """The tokens that stand around texts in prompts of one model.

    Attributes:
        tokenizer: of the model.
        render: writes a user's message by the model's chat template, before anybody answers.
    """

    tokenizer: ChunkTokenizer
    render: Callable[[str], str]

    @cached_property
    def opening(self) -> str:
        """What the chat template writes in front of a user's message, a default system message included.

        Raises:
            PromptError: the template refuses a single message.
        """
        return self.render(_MESSAGE).partition(_MESSAGE)[0]

    @cached_property
    def closing(self) -> str:
        """What the chat template writes behind a user's message.

        Raises:
            PromptError: the template refuses a single message.
        """
        return self.render(_MESSAGE).partition(_MESSAGE)[2]

    @property
    def sink(self) -> int:
        """The token that prompts begin with, to which rows attend that look for nothing: BOS, or the opening's first.

        A model whose prompts begin with neither has token 0 for it.
        """
        if self.tokenizer.bos_id is not None:
            return self.tokenizer.bos_id
        return next(iter(self.encode(self.opening)), 0)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text in the middle of a prompt; special tokens are read."""
        return tuple(self.tokenizer.encode(text))

    def begin(self, text: str) -> tuple[int, ...]:
        """Ids of a text that opens a prompt, with the BOS that `segment_prompt` puts in front of it."""
        ids = self.tokenizer.encode(text, at_start=True)
        bos = self.tokenizer.bos_id
        return tuple(ids) if bos is None or ids[:1] == [bos] else (bos, *ids)
