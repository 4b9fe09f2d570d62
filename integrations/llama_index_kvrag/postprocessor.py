"""Packets on their way into memory while LlamaIndex still writes the prompt."""

import threading
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from kvrag.engine import PacketEngine
from kvrag.store import Hold
from llama_index_kvrag.reference import EngineReference

__all__ = ["KVRagPostprocessor"]


class KVRagPostprocessor(BaseNodePostprocessor):
    """Brings the packets of retrieved nodes into host memory and keeps them there until the answer has used them.

    A hint, and the nodes are returned as they came: packets are attached without it too. For nodes that have none, it
    tells the engine that they are documents, so that what looks like a special token in them stays text. Its place is
    behind rerankers and whatever else changes the list of nodes. Asynchronous queries load in a thread, as LlamaIndex
    arranges by itself. Queries that run at the same time should have one each, or they let go of each other's packets.

    Args:
        engine: whose store is read; it is not pickled with this.
        strategy: of the LLM that will answer; by default the engine's.
        hold_seconds: packets stay until the next query, until this object goes, or for so many seconds.
    """

    strategy: str | None = Field(default=None, description="Reuse strategy of the answers; by default the engine's.")
    hold_seconds: float = Field(default=60.0, gt=0, description="Packets are let go after so many seconds.")

    _reference: EngineReference = PrivateAttr()
    _held: "_Held" = PrivateAttr()

    def __init__(self, engine: PacketEngine, *, strategy: str | None = None, hold_seconds: float = 60.0) -> None:
        fields: dict[str, Any] = {"strategy": strategy, "hold_seconds": hold_seconds}
        super().__init__(**fields)
        self._reference = EngineReference(engine, "build KVRagPostprocessor(engine) in the process that answers")
        self._held = _Held()

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised form."""
        return "KVRagPostprocessor"

    def release(self) -> None:
        """Let go of what the last query held."""
        self._held.replace(None, 0.0)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = [found.node.get_content(metadata_mode=MetadataMode.LLM) for found in nodes]
        hold = self._reference.get().prefetch(texts, strategy=self.strategy)
        self._held.replace(hold, self.hold_seconds)
        return nodes


class _Held:
    """At most one hold, for a limited time."""

    def __init__(self) -> None:
        self._hold: Hold | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def replace(self, hold: Hold | None, seconds: float) -> None:
        """Let go of the hold there was and keep another one for so many seconds."""
        with self._lock:
            self._end()
            if hold is not None:
                self._hold = hold
                self._timer = threading.Timer(seconds, hold.release)  # it knows the hold only, so this object can go
                self._timer.daemon = True
                self._timer.start()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._hold is not None:
            self._hold.release()
        self._hold = self._timer = None

    def __del__(self) -> None:
        self._end()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Held":
        return _Held()

    def __reduce__(self) -> tuple[type["_Held"], tuple[()]]:
        return _Held, ()
