"""Prompts with places for passages and a question."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix

from pydantic import ConfigDict, with_config

from kvrag.errors import PromptError

__all__ = ["FilledPrompt", "PromptTemplate", "Render"]

Render = Callable[[list[dict[str, str]]], str]
"""From messages to a final prompt string, as `LanguageModel.render` does it."""

_CONTEXT, _QUESTION = "{context}", "{question}"
_PASSAGE, _NUMBER = "{passage}", "{number}"


@dataclass(frozen=True)
class FilledPrompt:
    """A final prompt string, and `(start, end)` in characters of every passage in it, in their order."""

    text: str
    spans: tuple[tuple[int, int], ...]


@with_config(ConfigDict(extra="forbid"))  # of files: unknown fields are mistakes
@dataclass(frozen=True)
class PromptTemplate:
    """Where passages and a question go.

    Attributes:
        name: in settings and reports.
        messages: (role, content) with the markers `{context}`, once in all, and `{question}`. A single message whose
            role is "" is the final prompt itself: no chat template is applied.
        separator: between passages.
        passage: what one passage becomes, with the marker `{passage}`; `{number}` counts from 1.

    Raises:
        PromptError: a marker is missing or comes too often.
    """

    name: str
    messages: tuple[tuple[str, str], ...]
    separator: str = "\n\n"
    passage: str = _PASSAGE

    def __post_init__(self) -> None:
        contents = [content for _, content in self.messages]
        contexts, questions = (sum(c.count(marker) for c in contents) for marker in (_CONTEXT, _QUESTION))
        if contexts != 1 or not questions:
            raise PromptError(
                f"expected a template with one {_CONTEXT} and a {_QUESTION}, found {contexts} and {questions} of them "
                f"in the messages of {self.name!r}; put in the markers"
            )
        if self.passage.count(_PASSAGE) != 1:
            raise PromptError(
                f"expected one {_PASSAGE} in the form of a passage, found {self.passage!r} in {self.name!r}; "
                f"write for example '[{_NUMBER}] {_PASSAGE}'"
            )
        if len(self.messages) > 1 and not all(role for role, _ in self.messages):
            raise PromptError(
                f"expected one message without role, or roles for all, found a mixture in {self.name!r}; "
                "name the roles: system, user, assistant"
            )

    @property
    def asks_last(self) -> bool:
        """Whether the question stands behind the passages only, so that prompts that differ in it begin alike."""
        whole = "\0".join(content for _, content in self.messages)
        return whole.index(_QUESTION) > whole.index(_CONTEXT)

    def fill(self, render: Render, passages: Sequence[str], question: str) -> FilledPrompt:
        """Put stripped passages and a question in.

        Args:
            render: turns messages into the prompt string; a template without roles does not call it.
            passages: their texts; markers and braces in them are ordinary text.
            question: its text, likewise.

        Raises:
            PromptError: a passage is empty, or the chat template does not keep it as it is.
        """
        texts = [passage.strip() for passage in passages]
        if not all(texts):
            raise PromptError(
                f"expected passages with text, found passage {texts.index('') + 1} empty; leave it out of the prompt"
            )
        context, places = self._join(texts)
        text = self._render(render, context, question)
        # A chat template may trim the message that the context opens or ends.
        start = text.find(context.strip(), self._head(render, question, text))
        if start < 0:
            raise PromptError(
                f"expected the {len(texts)} passages in the prompt of {self.name!r} as they are, found them changed by "
                "the chat template; use another template, or one whose messages the model's chat template keeps"
            )
        start -= len(context) - len(context.lstrip())
        return FilledPrompt(text, tuple((start + p, start + p + len(t)) for p, t in zip(places, texts, strict=True)))

    def _join(self, texts: Sequence[str]) -> tuple[str, list[int]]:
        """The passages in a row, and where each begins."""
        context, places = "", []
        for number, text in enumerate(texts, 1):
            context += self.separator if places else ""
            before, after = (part.replace(_NUMBER, str(number)) for part in self.passage.split(_PASSAGE))
            places.append(len(context) + len(before))
            context += before + text + after
        return context, places

    def _render(self, render: Render, context: str, question: str) -> str:
        values = {_CONTEXT: context, _QUESTION: question}
        filled = [
            {"role": role, "content": re.sub(r"\{context\}|\{question\}", lambda found: values[found[0]], content)}
            for role, content in self.messages
        ]
        return render(filled) if self.messages[0][0] else filled[0]["content"]

    def _head(self, render: Render, question: str, text: str) -> int:
        """How many characters of `text` stand in front of the context: as many as in front of a mark in its place.

        Fewer if the chat template writes something else there because of the mark.
        """
        mark = "\ue000"
        while mark in text:
            mark += "\ue000"
        marked = self._render(render, mark, question)
        return len(commonprefix([text, marked[: max(marked.find(mark), 0)]]))
