"""What an answer has to look like: text, calls of tools, JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvrag.errors import SettingsError
from kvrag.model import LanguageModel
from langchain_kvrag.tools import Tool, ToolForm

__all__ = ["answer_schema", "hold_to"]


def answer_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema that OpenAI's `response_format` asks for; None if any text is an answer.

    Raises:
        SettingsError: it is neither "text" nor "json_object" nor a "json_schema".
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
    raise SettingsError(
        "response_format: expected {'type': 'json_object'} or {'type': 'json_schema', 'json_schema': {'schema': ...}}, "
        f"found {response_format!r}; `with_structured_output` takes classes"
    )


def hold_to(
    model: LanguageModel,
    form: ToolForm,
    tools: Sequence[Tool],
    *,
    required: bool,
    several: bool,
    schema: Mapping[str, Any] | None,
) -> list[Any]:
    """Logits processors that hold one answer to its form.

    Args:
        model: whose answer it is.
        form: of calls.
        tools: that may be called.
        required: whether one has to be.
        several: whether more than one may be.
        schema: of an answer that is no call; None is any text.

    Raises:
        SettingsError: a schema is none, or asks for what cannot be compiled.
        ImportError: llguidance is missing.
    """
    if not tools and schema is None:
        return []
    from kvrag.grammar import json_rule  # only who needs it has it

    grammars = model.grammars
    opening = grammars.literal(form.marker) if form.opening else ""
    behind = json.dumps(form.opening.removeprefix(form.marker))
    rules: list[str] = []
    if tools:
        again = f' ("\\n" {opening} call)*' if several and form.opening else ""
        names = " | ".join(f"call_{n}" for n in range(len(tools)))
        rules.append(f'call: {behind} "{{" "\\"name\\": " ({names}) "}}" {json.dumps(form.closing)}')
        for n, tool in enumerate(tools):
            name = f"{json.dumps(tool['function']['name'], ensure_ascii=False)}, {json.dumps(form.arguments)}: "
            parameters = tool["function"].get("parameters") or {"type": "object", "properties": {}}
            rules.append(f"call_{n}: {json.dumps(name)} {json_rule(parameters)}")
        anywhere = not required and schema is None and form.opening
        if anywhere and opening.startswith("<"):  # a token of its own
            rules += [f"start: TEXT | TEXT {opening} call{again}"]
        elif anywhere:
            rules += [f"start: TEXT | begin call{again}", f"begin[lazy]: TEXT {opening}"]
        else:
            rules += [f"start: calls{'' if required else ' | answer'}", f"calls: {opening} call{again}"]
    else:
        rules.append("start: answer")
    if schema is not None:
        rules.append(f"answer: {json_rule(schema)}")
    elif not required and not form.opening:
        rules.append(r"answer: /([^{](.|\n)*)?/")
    rules.append(r"TEXT: /(.|\n)*/")
    return [grammars.lark("%llguidance {}\n" + "\n".join(rules))]
