"""From LangChain's call to what the engine is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage

from kvrag.engine import PacketEngine
from langchain_kvrag.forms import answer_schema, hold_to
from langchain_kvrag.messages import read_messages
from langchain_kvrag.options import call_options
from langchain_kvrag.tools import CallReader, ToolForm, as_text, choose_tools, tool_form

__all__ = ["Asked", "ask"]


@dataclass(frozen=True)
class Asked:
    """One question to the engine.

    Attributes:
        prompt: messages, or a prompt string where the template was given tools.
        options: of `PacketEngine.stream`.
        form: of the calls in the answer; None if there will be none.
    """

    prompt: str | list[dict[str, Any]]
    options: dict[str, Any]
    form: ToolForm | None

    def reader(self) -> CallReader:
        """Reads the answer."""
        return CallReader(self.form)


def ask(
    engine: PacketEngine,
    fields: Mapping[str, Any],
    messages: Sequence[BaseMessage],
    stop: list[str] | None,
    call: Mapping[str, Any],
) -> Asked:
    """Read a call of a chat model.

    Args:
        engine: that will be asked.
        fields: of the chat model.
        messages: of the call.
        stop: LangChain's own argument of a call.
        call: its keyword arguments; besides the engine's, `tools` in OpenAI's form, `tool_choice`,
            `parallel_tool_calls` and `response_format`.

    Raises:
        PromptError: a message cannot be read.
        SettingsError: the call asks for what there is not.
    """
    call = dict(call)
    bound, choice = call.pop("tools", None) or [], call.pop("tool_choice", None)
    parallel, schema = call.pop("parallel_tool_calls", None), answer_schema(call.pop("response_format", None))
    call.pop("strict", None)  # answers always have the form asked for
    options = call_options(fields, stop, call)
    turns, documents = read_messages(messages)
    options["documents"] = [*documents, *options.get("documents", ())]
    tools, required = choose_tools(bound, choice)
    form = ToolForm()
    prompt: str | list[dict[str, Any]] = turns
    if tools or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        form = tool_form(engine.model)
        if not form.native:
            prompt = as_text(turns, tools, form)
        elif tools:
            prompt = engine.model.render(turns, tools=tools)
    several = not required if parallel is None else parallel
    held = hold_to(engine.model, form, tools, required=required, several=several, schema=schema)
    if held:
        options["logits_processor"] = [*options.get("logits_processor", ()), *held]
    return Asked(prompt, options, form if tools else None)
