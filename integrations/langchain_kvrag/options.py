"""What a call or a chat model sets, as options of the engine."""

from collections.abc import Mapping
from typing import Any

from kvrag.errors import SettingsError
from kvrag.settings import Sampling

__all__ = ["call_options", "sampling"]

_SAMPLING = ("temperature", "max_tokens", "top_p", "top_k", "repetition_penalty", "seed", "stop")
_KVRAG_NAMES = {"max_tokens": "max_new_tokens", "stop_sequences": "stop"}


def sampling(fields: Mapping[str, Any]) -> Sampling:
    """How a chat model with these fields samples when a call sets nothing.

    Raises:
        SettingsError: a field is out of range.
    """
    return Sampling.of(**_named({name: fields[name] for name in _SAMPLING}))


def call_options(fields: Mapping[str, Any], stop: list[str] | None, call: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options for a call; what the call says wins over the chat model's fields.

    Args:
        fields: of the chat model.
        stop: LangChain's own argument of a call; None is not given.
        call: keyword arguments of the call; unknown ones are left to the engine to refuse.

    Raises:
        SettingsError: the call asks for another model.
    """
    if call.get("model") not in (None, fields["model"]):
        raise SettingsError(
            f"expected the model {fields['model']!r}, found {call['model']!r}; an engine has one model: make another "
            "chat model over another engine"
        )
    options = {name: fields[name] for name in (*_SAMPLING, "strategy")}
    options |= {name: value for name, value in call.items() if name not in ("model", "stream")}
    if stop is not None:
        options["stop"] = stop
    return _named(options)


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """By the engine's names, without those that leave the choice to it."""
    named = {_KVRAG_NAMES.get(name, name): value for name, value in options.items()}
    return {name: value for name, value in named.items() if value is not None}
