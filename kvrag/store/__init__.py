"""Packets in host memory, on disk and on a remote, and the index that finds them by text."""

from kvrag.store.files import PacketFiles
from kvrag.store.gc import GcReport
from kvrag.store.memory import Hold
from kvrag.store.metrics import MetricsOfStores, StoreMetrics
from kvrag.store.packet_store import PacketStore
from kvrag.store.records import PacketRow, Problem, ProblemKind, RepairReport, ScopeStat, StoreStat, TierStat
from kvrag.store.tiers import Tier
from kvrag.store.usage import FileUsage, ScopeUsage, StoreUsage

__all__ = [
    "FileUsage",
    "GcReport",
    "Hold",
    "MetricsOfStores",
    "PacketFiles",
    "PacketRow",
    "PacketStore",
    "Problem",
    "ProblemKind",
    "RepairReport",
    "ScopeStat",
    "ScopeUsage",
    "StoreMetrics",
    "StoreStat",
    "StoreUsage",
    "Tier",
    "TierStat",
]
