"""kvrag: retrieval returns KV caches, so that a RAG application does not prefill the same chunks again and again.

    from kvrag import PacketEngine

    engine = PacketEngine.from_pretrained("demo", store="packets")
    engine.build(chunks)
    print(engine.generate(prompt_with_those_chunks).text)

Nothing here needs a GPU, Triton, a framework or a network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvrag.errors import (
    AdapterError,
    CorruptPacketError,
    DataError,
    EngineError,
    KVRagError,
    ModelError,
    PromptError,
    PromptTooLongError,
    SettingsError,
    StoreError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from kvrag.adapter import Adapter
    from kvrag.builder import BuildReport
    from kvrag.completion import AsyncStream, Completion, Stream, Timings, Usage
    from kvrag.engine import PacketEngine
    from kvrag.estimating import BuildEstimate, estimate
    from kvrag.model import LanguageModel
    from kvrag.packet import Identity, Packet, Recipe, Scope
    from kvrag.settings import Sampling
    from kvrag.store import PacketStore
    from kvrag.strategies import (
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
        Strategy,
        TurboRAGComposite,
    )

__all__ = [
    "A3",
    "APE",
    "Adapter",
    "AdapterError",
    "AsyncStream",
    "BuildEstimate",
    "BuildReport",
    "CacheBlend",
    "Completion",
    "ControlChat",
    "ControlPreamble",
    "ControlSeparator",
    "ControlSink",
    "CorruptPacketError",
    "DataError",
    "EngineError",
    "FullRecompute",
    "Identity",
    "KVLink",
    "KVPacket",
    "KVRagError",
    "LanguageModel",
    "LegoLink",
    "LegoLinkZero",
    "ModelError",
    "NoRecompute",
    "Packet",
    "PacketEngine",
    "PacketStore",
    "PrefixCache",
    "PromptError",
    "PromptTooLongError",
    "ProphetKV",
    "RandomRecompute",
    "Recipe",
    "SamKV",
    "Sampling",
    "Scope",
    "SettingsError",
    "StoreError",
    "Strategy",
    "Stream",
    "Timings",
    "TurboRAGComposite",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "estimate",
]

__version__ = "0.1.0"

_HOMES = {
    "kvrag.adapter": ("Adapter",),
    "kvrag.builder": ("BuildReport",),
    "kvrag.completion": ("AsyncStream", "Completion", "Stream", "Timings", "Usage"),
    "kvrag.engine": ("PacketEngine",),
    "kvrag.estimating": ("BuildEstimate", "estimate"),
    "kvrag.model": ("LanguageModel",),
    "kvrag.packet": ("Identity", "Packet", "Recipe", "Scope"),
    "kvrag.settings": ("Sampling",),
    "kvrag.store": ("PacketStore",),
    "kvrag.strategies": (
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
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when something that needs them is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'kvrag' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
