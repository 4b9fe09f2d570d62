"""Packets on disk and in host memory, and the index that finds them by text."""

from kvrag.store.gc import GcReport
from kvrag.store.memory import Hold
from kvrag.store.packet_store import PacketStore
from kvrag.store.records import PacketRow, Problem, ProblemKind, RepairReport, ScopeStat, StoreStat
from kvrag.store.usage import FileUsage, ScopeUsage, StoreUsage

__all__ = [
    "FileUsage",
    "GcReport",
    "Hold",
    "PacketRow",
    "PacketStore",
    "Problem",
    "ProblemKind",
    "RepairReport",
    "ScopeStat",
    "ScopeUsage",
    "StoreStat",
    "StoreUsage",
]
