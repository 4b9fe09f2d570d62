"""Giving packets their places in a prompt, without computing or copying them."""

from kvrag.attach.attention import PASS_KWARG, AttentionPass, Pass, attend
from kvrag.attach.computed import ComputedStates
from kvrag.attach.lane import Block, Extent, Geometry, Lane
from kvrag.attach.layout import NO_SPAN, PackedLayout, pack_layout
from kvrag.attach.packed import PackedPass, PackedStates, StepPass
from kvrag.attach.passes import Passes
from kvrag.attach.pool import DevicePool, PoolHold
from kvrag.attach.private import PrivatePass, Seen, Watcher
from kvrag.attach.ranking import PackedRanking, PacketRanking
from kvrag.attach.threads import release_helpers

__all__ = [
    "NO_SPAN",
    "PASS_KWARG",
    "AttentionPass",
    "Block",
    "ComputedStates",
    "DevicePool",
    "Extent",
    "Geometry",
    "Lane",
    "PackedLayout",
    "PackedPass",
    "PackedRanking",
    "PackedStates",
    "PacketRanking",
    "Pass",
    "Passes",
    "PoolHold",
    "PrivatePass",
    "Seen",
    "StepPass",
    "Watcher",
    "attend",
    "pack_layout",
    "release_helpers",
]
