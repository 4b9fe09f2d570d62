"""Answers as objects: a chat model, held to a schema, and a parser behind it."""

from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from kvrag.errors import SettingsError

__all__ = ["structured"]


def structured(
    chat: BaseChatModel, schema: dict[str, Any] | type, method: str, *, include_raw: bool, **call: Any
) -> Runnable[Any, Any]:
    """A runnable that answers with objects of `schema`.

    Args:
        chat: understands `response_format`.
        schema: of the answer.
        method: "json_schema" holds the answer to the schema, "json_mode" only to JSON: the prompt has to say the rest.
        call: whatever else a call may set.
        include_raw: answer with {"raw": message, "parsed": object or None, "parsing_error": error or None}.

    Raises:
        SettingsError: there is no such method.
    """
    json_schema = convert_to_json_schema(schema)
    if method == "json_schema":
        form = {"type": "json_schema", "json_schema": {"name": json_schema["title"], "schema": json_schema}}
    elif method == "json_mode":
        form = {"type": "json_object"}
    else:
        raise SettingsError(f"method: expected 'json_schema', 'function_calling' or 'json_mode', found {method!r}")
    traced = {"kwargs": {"method": method}, "schema": schema}
    model = chat.bind(response_format=form, ls_structured_output_format=traced, **call)
    parser: BaseOutputParser[Any] = JsonOutputParser()
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
