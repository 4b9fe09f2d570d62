"""LangChain's messages as the chat template of a local model takes them."""

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from kvrag.errors import PromptError

__all__ = ["docs_to_messages", "read_messages"]

_ROLES = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant", ToolMessage: "tool"}
_BESIDES_TEXT = frozenset({"reasoning", "tool_call", "invalid_tool_call", "tool_use"})
"""Blocks of an AI message that are not part of what it said; tool calls travel in a field of their own."""

_DOCUMENT = "kvrag_document"
_BETWEEN = "\n\n"


def docs_to_messages(documents: Iterable[Document]) -> list[HumanMessage]:
    """Retrieved documents as a list of one message, for a `MessagesPlaceholder`; usable as a step of a chain.

    Every document is a text block of its own. `ChatKVRag` thereby knows what is document text even where it has no
    packet, so that what looks like a special token in it stays text; other chat models see plain text.

    Raises:
        PromptError: they are no documents.
    """
    blocks: list[str | dict[str, Any]] = []
    for document in documents:
        if not isinstance(document, Document):
            raise PromptError(f"expected documents, found a {type(document).__name__}; wrap texts as Document(text)")
        if blocks:
            blocks.append({"type": "text", "text": _BETWEEN})
        # no block id: a random one would make every prompt a new one for LangChain's caches
        blocks.append({"type": "text", "text": document.page_content.strip(), "extras": {_DOCUMENT: True}})
    return [HumanMessage(content=blocks)]


def read_messages(messages: Sequence[BaseMessage]) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages for `PacketEngine`, and the texts in them that are known to be documents.

    Neighbours of one role become one message, because the templates of many models insist on alternating roles; tool
    messages stay apart, since each answers a call of its own.

    Raises:
        PromptError: there is no message, or one of a kind or with content that a text model cannot read.
    """
    if not messages:
        raise PromptError("expected at least one message, found none")
    turns: list[dict[str, Any]] = []
    documents: list[str] = []
    for message in messages:
        turn = {"role": _role(message), "content": _text(message, documents)} | _tool_fields(message)
        if turns and turn.keys() == turns[-1].keys() == {"role", "content"} and turn["role"] == turns[-1]["role"]:
            contents = (turns[-1]["content"], turn["content"])
            turns[-1]["content"] = _BETWEEN.join(content for content in contents if content)
        else:
            turns.append(turn)
    return turns, documents


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise PromptError(f"expected a system, human, AI, tool or chat message, found {type(message).__name__}")


def _text(message: BaseMessage, documents: list[str]) -> str:
    """What the message says; texts marked as documents are added to `documents`."""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for block in message.content_blocks:
        if block["type"] == "text":
            texts.append(block["text"])
            if block.get("extras", {}).get(_DOCUMENT):
                documents.append(block["text"])
            continue
        found = block["value"].get("type") if block["type"] == "non_standard" else block["type"]
        if not (isinstance(message, AIMessage) and found in _BESIDES_TEXT):
            raise PromptError(
                f"expected text blocks in a {type(message).__name__}, found one of type {found!r}, which a text model "
                "cannot read; leave it out"
            )
    return "".join(texts)


def _tool_fields(message: BaseMessage) -> dict[str, Any]:
    """The fields in which chat templates look for tool calls and for what a tool's answer belongs to."""
    if isinstance(message, ToolMessage):
        return {"tool_call_id": message.tool_call_id} | ({"name": message.name} if message.name else {})
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = [
            {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
        return {"tool_calls": calls}
    return {}
