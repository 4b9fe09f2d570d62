"""Reuse strategies, one file each; third parties add theirs through the entry point group `kvrag.strategies`."""

from ast import literal_eval
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from kvrag.errors import SettingsError
from kvrag.strategies.a3 import A3
from kvrag.strategies.ape import APE
from kvrag.strategies.base import Strategy
from kvrag.strategies.cacheblend import CacheBlend
from kvrag.strategies.controls import ControlChat, ControlPreamble, ControlSeparator, ControlSink
from kvrag.strategies.full_recompute import FullRecompute
from kvrag.strategies.kv_packet import KVPacket
from kvrag.strategies.kvlink import KVLink
from kvrag.strategies.lego_link import LegoLink
from kvrag.strategies.lego_link_zero import LegoLinkZero
from kvrag.strategies.no_recompute import NoRecompute
from kvrag.strategies.prefix_cache import PrefixCache
from kvrag.strategies.prophetkv import ProphetKV
from kvrag.strategies.random_recompute import RandomRecompute
from kvrag.strategies.sam_kv import SamKV
from kvrag.strategies.turborag import TurboRAGComposite

__all__ = [
    "A3",
    "APE",
    "CacheBlend",
    "ControlChat",
    "ControlPreamble",
    "ControlSeparator",
    "ControlSink",
    "FullRecompute",
    "KVLink",
    "KVPacket",
    "LegoLink",
    "LegoLinkZero",
    "NoRecompute",
    "PrefixCache",
    "ProphetKV",
    "RandomRecompute",
    "SamKV",
    "Strategy",
    "TurboRAGComposite",
    "available_strategies",
    "strategy_from_name",
]

_GROUP = "kvrag.strategies"
_BUILT_IN = (
    A3,
    APE,
    CacheBlend,
    ControlChat,
    ControlPreamble,
    ControlSeparator,
    ControlSink,
    FullRecompute,
    KVLink,
    KVPacket,
    LegoLink,
    LegoLinkZero,
    NoRecompute,
    PrefixCache,
    ProphetKV,
    RandomRecompute,
    SamKV,
    TurboRAGComposite,
)


@cache
def available_strategies() -> dict[str, type[Strategy]]:
    """Every strategy by name: the built-in ones and those of installed packages, looked up once."""
    found: dict[str, type[Strategy]] = {entry.name: entry.load() for entry in entry_points(group=_GROUP)}
    return dict(sorted((found | {kind.name: kind for kind in _BUILT_IN}).items()))


def strategy_from_name(strategy: str | Strategy) -> Strategy:
    """The strategy of that name; a ready one is returned as it is.

    Options other than the default ones stand behind the name, as in `ape:temperature=0.8:scale=0.9`.

    Raises:
        SettingsError: no strategy has that name, or it has no such option.
    """
    if isinstance(strategy, Strategy):
        return strategy
    name, *options = strategy.split(":")
    known = available_strategies()
    if name not in known:
        raise SettingsError(f"expected a strategy out of {', '.join(known)}, found {name!r}")
    try:
        return known[name](**dict(map(_option, options)))
    except TypeError as error:
        names = ", ".join(f.name for f in fields(known[name])) or "none"
        raise SettingsError(f"expected options of {name} out of: {names}; found {strategy!r}") from error


def _option(text: str) -> tuple[str, Any]:
    """Name and value of one option; what is no number is a text."""
    name, _, value = text.partition("=")
    try:
        return name, literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
