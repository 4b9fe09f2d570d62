"""A retriever behind which every document has its packet."""

import asyncio
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.vectorstores import VectorStore
from pydantic import Field, PositiveInt, field_validator

from kvrag.engine import PacketEngine
from kvrag.errors import StoreError
from kvrag.fingerprints import fingerprint

__all__ = ["KVRagRetriever"]


class KVRagRetriever(BaseRetriever):
    """Retrieves what another retriever finds, and sees to it that the prompt will find packets in host memory.

    Nothing depends on it: packets are found in prompts whoever retrieved the documents. It builds those that were not
    built during ingestion, and reads the others from disk while the chain is still making the prompt.

    Attributes:
        retriever: finds the documents, which come back as they are; also given as a vector store.
        engine: whose packets.
        k: documents at most; by default as many as `retriever` finds.
        build: build packets that are missing; otherwise a document without one is an error. Documents of under 32
            characters never have one.

    Raises:
        StoreError: a packet is missing and not to be built, or the store cannot be written.
    """

    retriever: BaseRetriever
    engine: PacketEngine = Field(exclude=True, repr=False)
    k: PositiveInt | None = None
    build: bool = True

    @field_validator("retriever", mode="before")
    @classmethod
    def _of_vector_store(cls, given: Any) -> Any:
        return given.as_retriever() if isinstance(given, VectorStore) else given

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        count = self.k if k is None else k
        options = {} if count is None else {"k": count}
        found = self.retriever.invoke(query, {"callbacks": run_manager.get_child()}, **options)[:count]
        self._prepare(found)
        return found

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        count = self.k if k is None else k
        options = {} if count is None else {"k": count}
        found = (await self.retriever.ainvoke(query, {"callbacks": run_manager.get_child()}, **options))[:count]
        await asyncio.to_thread(self._prepare, found)
        return found

    def _prepare(self, documents: list[Document]) -> None:
        texts = [document.page_content for document in documents]
        if self.build:
            self.engine.build(texts, progress=False)
        elif missing := [text for text in texts if self._lacks(text)]:
            raise StoreError(
                f"expected a packet of every document, found {len(missing)} documents without, such as "
                f"{missing[0].strip()[:40]!r}; build them with `engine.build(texts)`, or here with build=True"
            )
        self.engine.prefetch(texts).release()  # into host memory, where the least recently used make room

    def _lacks(self, text: str) -> bool:
        known = fingerprint(text)
        return known is not None and self.engine.store.find(self.engine.scope(), known.digest) is None

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return self.retriever._get_ls_params(**kwargs)
