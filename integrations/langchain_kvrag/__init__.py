"""kvrag in LangChain: a chat model that attaches the packets of the chunks it finds in its prompts."""

try:
    import langchain_core  # noqa: F401 - asked for here so that its absence is told in one sentence
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "expected langchain-core to be installed, found none; pip install 'kvrag[langchain]'", name=error.name
    ) from error

from langchain_kvrag.chat_model import ChatKVRag
from langchain_kvrag.errors import ContextWindowError
from langchain_kvrag.messages import docs_to_messages

__all__ = ["ChatKVRag", "ContextWindowError", "docs_to_messages"]
