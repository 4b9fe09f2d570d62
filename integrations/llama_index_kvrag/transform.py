"""Packets as a step of an ingestion pipeline."""

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

from kvrag.engine import PacketEngine
from llama_index_kvrag.reference import EngineReference

__all__ = ["KVRagTransform"]


class KVRagTransform(TransformComponent):
    """Builds the packets of nodes, for exactly the text that the LLM will see, metadata lines included.

    Its place is behind the splitter and whatever else changes texts or metadata. Nodes are returned as they came:
    packets are found by their text, so no node has to say which packet is its own, and none can be wrong about it.

    An ingestion pipeline remembers what its steps returned and skips a step whose nodes and public fields it has seen.
    The fields below make that impossible for another model, strategy or store, but not for a store that has lost
    packets since: a second run would then build nothing. Give the pipeline `disable_cache=True`, or call
    `KVRagTransform(engine)(nodes)` yourself; packets that exist are not built again. Answers are right either way,
    since a chunk without a packet is computed as text.

    Args:
        engine: that builds; it is not pickled. With `num_workers`, split in one pipeline and give its nodes to another
            that begins here and runs in this process.
        strategy: to build for; by default the engine's.
        progress: show a bar on standard error; by default when that is a terminal.

    Raises:
        SettingsError: no strategy has that name.
    """

    identity: str = Field(description="Digest of model, adapter, recipe and namespace: where the packets are valid.")
    store: str = Field(description="Folder of the packets.")
    strategy: str | None = Field(description="Reuse strategy to build for; by default the engine's.")
    progress: bool | None = Field(default=None, exclude=True, description="Show a bar on standard error.")

    _reference: EngineReference = PrivateAttr()

    def __init__(self, engine: PacketEngine, *, strategy: str | None = None, progress: bool | None = None) -> None:
        reference = EngineReference(
            engine,
            "run the pipeline with num_workers=1, or give the nodes of one that only splits to another one that begins "
            "with KVRagTransform; the engine computes several chunks at once in any case",
        )
        fields: dict[str, Any] = {
            "identity": engine.scope(strategy).digest,
            "store": str(engine.store.root),
            "strategy": strategy,
            "progress": progress,
        }
        super().__init__(**fields)
        self._reference = reference

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised form and in the keys of ingestion caches."""
        return "KVRagTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Build what is missing.

        Raises:
            EngineError: this is a pickled copy, or the engine is closed.
            StoreError: the store cannot be written.
        """
        texts = [node.get_content(metadata_mode=MetadataMode.LLM) for node in nodes]
        self._reference.get().build(texts, strategy=self.strategy, progress=self.progress)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Build what is missing without blocking the event loop."""
        return await asyncio.to_thread(self, nodes, **kwargs)
