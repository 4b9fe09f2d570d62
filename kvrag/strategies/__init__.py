"""Reuse strategies, one file each; third parties add theirs through the entry point group `kvrag.strategies`."""

from functools import cache
from importlib.metadata import entry_points

from kvrag.errors import SettingsError
from kvrag.strategies.a3 import A3
from kvrag.strategies.base import Strategy
from kvrag.strategies.cacheblend import CacheBlend
from kvrag.strategies.full_recompute import FullRecompute
from kvrag.strategies.kv_packet import KVPacket
from kvrag.strategies.lego_link import LegoLink
from kvrag.strategies.no_recompute import NoRecompute
from kvrag.strategies.prefix_cache import PrefixCache
from kvrag.strategies.prophetkv import ProphetKV
from kvrag.strategies.random_recompute import RandomRecompute
from kvrag.strategies.sam_kv import SamKV

__all__ = [
    "A3",
    "CacheBlend",
    "FullRecompute",
    "KVPacket",
    "LegoLink",
    "NoRecompute",
    "PrefixCache",
    "ProphetKV",
    "RandomRecompute",
    "SamKV",
    "Strategy",
    "available_strategies",
    "strategy_from_name",
]

_GROUP = "kvrag.strategies"
_BUILT_IN = (
    A3,
    CacheBlend,
    FullRecompute,
    KVPacket,
    LegoLink,
    NoRecompute,
    PrefixCache,
    ProphetKV,
    RandomRecompute,
    SamKV,
)


@cache
def available_strategies() -> dict[str, type[Strategy]]:
    """Every strategy by name: the built-in ones and those of installed packages, looked up once."""
    found: dict[str, type[Strategy]] = {entry.name: entry.load() for entry in entry_points(group=_GROUP)}
    return dict(sorted((found | {kind.name: kind for kind in _BUILT_IN}).items()))


def strategy_from_name(strategy: str | Strategy) -> Strategy:
    """The strategy of that name with its default options; a ready one is returned as it is.

    Raises:
        SettingsError: no strategy has that name.
    """
    if isinstance(strategy, Strategy):
        return strategy
    known = available_strategies()
    if strategy not in known:
        raise SettingsError(f"expected a strategy out of {', '.join(known)}, found {strategy!r}")
    return known[strategy]()
