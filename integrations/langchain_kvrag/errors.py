"""An error that both sides know."""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError

from kvrag.errors import PromptTooLongError

__all__ = ["ContextWindowError", "context_overflow"]


class ContextWindowError(PromptTooLongError, ContextOverflowError):
    """A prompt does not fit into the context window.

    LangChain's middleware looks for `ContextOverflowError`, for example to summarise a conversation and try again;
    callers of kvrag look for `PromptTooLongError`.
    """


@contextmanager
def context_overflow() -> Iterator[None]:
    """Raise kvrag's error about a prompt that is too long as one that LangChain knows too."""
    try:
        yield
    except PromptTooLongError as error:
        raise ContextWindowError(str(error)) from error
