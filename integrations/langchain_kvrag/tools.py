"""Tools as a model's chat template shows them, and calls as the model writes them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import ToolCall
from langchain_core.messages.tool import tool_call

from kvrag.errors import PromptError, SettingsError
from kvrag.model import LanguageModel

__all__ = ["CallReader", "ToolForm", "as_text", "choose_tools", "tool_form"]

Tool = Mapping[str, Any]
"""A tool in OpenAI's form: `{"type": "function", "function": {"name", "description", "parameters"}}`."""


@dataclass(frozen=True)
class ToolForm:
    """How a call is written: `opening`, `{"name": ..., `arguments`: {...}}`, `closing`.

    Attributes:
        opening: in front of the JSON object; if there is none, an answer is a call or text, not both, and one call.
        closing: behind it.
        arguments: the key of a call's arguments.
        native: whether the model's template shows tools, calls and results by itself.
    """

    opening: str = "<tool_call>\n"
    closing: str = "\n</tool_call>"
    arguments: str = "arguments"
    native: bool = True

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call."""
        body = json.dumps({"name": name, self.arguments: arguments}, ensure_ascii=False)
        return f"{self.opening}{body}{self.closing}"

    @property
    def marker(self) -> str:
        """What shows that a call has begun."""
        return self.opening.strip() or '{"name": '


_NATIVE = (ToolForm(), ToolForm("", "", "parameters"))
"""Forms found in templates: that of Hermes, Qwen2.5, Qwen3 and SmolLM2-1.7B, and that of Llama 3."""

_OWN = ToolForm(native=False)

_INSTRUCTIONS = """You can call these functions:
{tools}

To call one, answer with nothing but
<tool_call>
{{"name": <its name>, "arguments": <a JSON object of its arguments>}}
</tool_call>"""


def tool_form(model: LanguageModel) -> ToolForm:
    """The form in which the model's template writes calls, or kvrag's own if it shows no tools or has another form."""
    user = {"role": "user", "content": "?"}
    call = {"type": "function", "id": "kvragCall", "function": {"name": "kvrag_f", "arguments": {"kvrag_a": "b"}}}
    tool = {"type": "function", "function": {"name": "kvrag_f", "description": "", "parameters": {"type": "object"}}}
    try:
        shown = model.render([user], tools=[tool])
        written = model.render([user, {"role": "assistant", "content": "", "tool_calls": [call]}])
    except PromptError:
        return _OWN
    if not model.has_chat_template or "kvrag_f" not in shown:
        return _OWN
    return next((form for form in _NATIVE if form.write("kvrag_f", {"kvrag_a": "b"}) in written), _OWN)


def as_text(turns: Iterable[dict[str, Any]], tools: Sequence[Tool], form: ToolForm) -> list[dict[str, Any]]:
    """A conversation in whose template tools do not occur: they, their calls and results become text.

    Args:
        turns: as `read_messages` gives them.
        tools: to describe to the model, in the system message.
        form: of calls.
    """
    texts: list[dict[str, Any]] = []
    if tools:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        texts.append({"role": "system", "content": _INSTRUCTIONS.format(tools=listed)})
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        calls = [
            form.write(call["function"]["name"], call["function"]["arguments"]) for call in turn.get("tool_calls", ())
        ]
        content = "\n".join(part for part in (content, *calls) if part)
        if texts and texts[-1]["role"] == role:
            texts[-1] = {"role": role, "content": f"{texts[-1]['content']}\n\n{content}"}
        else:
            texts.append({"role": role, "content": content})
    return texts


def choose_tools(tools: Sequence[Tool], choice: Any) -> tuple[list[Tool], bool]:
    """The tools that the model may call, and whether it has to.

    Args:
        tools: those bound.
        choice: None or "auto" leaves it to the model, "none" forbids, True, "any" and "required" demand a call; a name,
            also in OpenAI's form `{"type": "function", "function": {"name": ...}}`, demands a call of that tool.

    Raises:
        SettingsError: there is no such tool.
    """
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name")
    if choice in (None, False, "auto"):
        return list(tools), False
    if choice == "none":
        return [], False
    if choice in (True, "any", "required") and tools:
        return list(tools), True
    if choice not in names:
        raise SettingsError(
            f"tool_choice: expected 'auto', 'any', 'none' or one of the tools {names}, found {choice!r}"
        )
    return [tool for tool in tools if tool["function"]["name"] == choice], True


class CallReader:
    """Tells text from calls in an answer, as it comes.

    Args:
        form: of calls; None if the model has no tools, so that everything is text.
    """

    def __init__(self, form: ToolForm | None) -> None:
        self._form = form
        self._held = ""
        self._calling = False
        self._begun = False

    def push(self, piece: str) -> list[str | ToolCall]:
        """The pieces of text and the whole calls that are known once `piece` has arrived."""
        if self._form is None:
            return [piece]
        self._held += piece
        found: list[str | ToolCall] = []
        if not self._calling:
            text = self._text(self._form)
            found += [text] if text else []
        if self._calling and "}" in piece:
            found += self._calls(self._form)
        return found

    def finish(self) -> list[str]:
        """What is left: text, also where a call has begun and was cut off, since nobody may make half a call."""
        rest, self._held = self._held, ""
        return [rest] if rest and not (self._calling and "{" not in rest) else []

    def _text(self, form: ToolForm) -> str:
        """The text in front of a call, held back where one might begin; notices that it has."""
        at = self._held.find(form.marker)
        if at == 0 or (at > 0 and form.opening):
            self._calling = True
            text, self._held = self._held[:at], self._held[at:]
            return text
        keep = next((n for n in range(len(form.marker) - 1, 0, -1) if self._held.endswith(form.marker[:n])), 0)
        if not form.opening and (self._begun or keep < len(self._held)):
            keep = 0
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        self._begun |= bool(text)
        return text

    def _calls(self, form: ToolForm) -> list[ToolCall]:
        calls: list[ToolCall] = []
        while (at := self._held.find("{")) >= 0:
            try:
                call, end = json.JSONDecoder().raw_decode(self._held, at)
            except json.JSONDecodeError:
                break
            self._held = self._held[end:]
            calls.append(tool_call(name=call["name"], args=call[form.arguments], id=None))
        return calls
