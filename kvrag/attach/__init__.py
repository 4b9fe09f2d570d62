"""Giving packets their places in a prompt, without computing or copying them."""

from kvrag.attach.attention import PASS_KWARG, AttentionPass, attend
from kvrag.attach.computed import ComputedStates
from kvrag.attach.lane import Extent, Geometry, Lane
from kvrag.attach.threads import release_helpers

__all__ = ["PASS_KWARG", "AttentionPass", "ComputedStates", "Extent", "Geometry", "Lane", "attend", "release_helpers"]
