"""Computing some of the packets' tokens anew at question time, in a private copy of them.

A selection says which tokens, a `Repair` computes them together with the prompt's text. What is left behind is a lane
as full recompute leaves it, so nothing that comes later knows the difference.
"""

from kvrag.recompute.attention import AskedFirst, AttendedEarly
from kvrag.recompute.blocks import RelevantBlocks
from kvrag.recompute.deviation import Deviating
from kvrag.recompute.repair import Repair
from kvrag.recompute.selection import Choice, Inquiry, PromptLayout, Selection
from kvrag.recompute.static import FirstTokens, RandomTokens

__all__ = [
    "AskedFirst",
    "AttendedEarly",
    "Choice",
    "Deviating",
    "FirstTokens",
    "Inquiry",
    "PromptLayout",
    "RandomTokens",
    "RelevantBlocks",
    "Repair",
    "Selection",
]
