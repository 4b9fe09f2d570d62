"""Packets into host memory from both ends: some are computed while the others are loaded.

Cake, "Compute or load KV cache? Why not both?" (https://arxiv.org/abs/2410.03065), for packets: they are independent,
so the computing side takes those that save little time per byte, the loading side those that save much, and where they
meet, one packet is computed from its front and loaded from its back.
"""

from kvrag.loading.rates import LiveRates, Rates
from kvrag.loading.settings import Loading, LoadingMode, loading_from

__all__ = ["LiveRates", "Loading", "LoadingMode", "Rates", "loading_from"]
