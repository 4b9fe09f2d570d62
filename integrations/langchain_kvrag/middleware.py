"""Retrieved documents in the prompts of an agent."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "expected langchain to be installed, for agents, found none; pip install 'kvrag[langchain]'", name=error.name
    ) from error
from langchain_core.documents import Document
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.retrievers import BaseRetriever

from langchain_kvrag.messages import docs_to_messages

__all__ = ["KVRagMiddleware"]


class KVRagMiddleware(AgentMiddleware[Any, Any, Any]):
    """Puts what is found for the last question behind the system prompt of every call of an agent's model.

    The conversation in the agent's state stays without documents. Packets are found there as everywhere; a
    `KVRagRetriever` also builds them. Works in agents that are invoked and in those that are awaited.

    Args:
        retriever: asked with the text of the last human message.
        introduction: stands between the system prompt and the documents.
    """

    def __init__(
        self, retriever: BaseRetriever, *, introduction: str = "Use these documents to answer the question."
    ) -> None:
        super().__init__()
        self.retriever = retriever
        self.introduction = introduction

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with documents."""
        question = _last_question(request.messages)
        return handler(self._with(request, self.retriever.invoke(question) if question else []))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Call the model with documents, without blocking the event loop."""
        question = _last_question(request.messages)
        return await handler(self._with(request, await self.retriever.ainvoke(question) if question else []))

    def _with(self, request: ModelRequest[Any], documents: Sequence[Document]) -> ModelRequest[Any]:
        if not documents:
            return request
        blocks: list[str | dict[str, Any]] = []
        before = request.system_message.text if request.system_message else ""
        for text in filter(None, (before, self.introduction)):
            blocks.append({"type": "text", "text": f"{text}\n\n"})
        blocks.extend(docs_to_messages(documents)[0].content)
        return request.override(system_message=SystemMessage(content=blocks))


def _last_question(messages: Sequence[AnyMessage]) -> str:
    """The text of the last human message."""
    return next((message.text for message in reversed(messages) if isinstance(message, HumanMessage)), "")
