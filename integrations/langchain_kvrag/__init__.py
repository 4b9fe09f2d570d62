"""kvrag in LangChain: a chat model that attaches the packets of the chunks it finds in its prompts."""

from typing import TYPE_CHECKING, Any

try:
    import langchain_core  # noqa: F401 - asked for here so that its absence is told in one sentence
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "expected langchain-core to be installed, found none; pip install 'kvrag[langchain]'", name=error.name
    ) from error

from langchain_kvrag.byte_store import PacketByteStore
from langchain_kvrag.chat_model import ChatKVRag
from langchain_kvrag.errors import ContextWindowError
from langchain_kvrag.messages import docs_to_messages
from langchain_kvrag.retriever import KVRagRetriever

if TYPE_CHECKING:
    from langchain_kvrag.middleware import KVRagMiddleware

__all__ = [
    "ChatKVRag",
    "ContextWindowError",
    "KVRagMiddleware",
    "KVRagRetriever",
    "PacketByteStore",
    "docs_to_messages",
]


def __getattr__(name: str) -> Any:
    if name == "KVRagMiddleware":  # agents take a second to import, and need a package more
        from langchain_kvrag.middleware import KVRagMiddleware

        return KVRagMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
