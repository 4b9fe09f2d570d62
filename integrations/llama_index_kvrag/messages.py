"""LlamaIndex's prompts and messages as the prompt string that the model was trained on."""

from collections.abc import Sequence

from llama_index.core.base.llms.types import CachePoint, ChatMessage, MessageRole, TextBlock, ThinkingBlock

from kvrag.errors import PromptError
from llama_index_kvrag.reference import EngineReference

__all__ = ["ModelTemplate"]

_ROLES = {
    MessageRole.CHATBOT: "assistant",
    MessageRole.DEVELOPER: "system",
    MessageRole.FUNCTION: "tool",
    MessageRole.MODEL: "assistant",
}
"""LlamaIndex's names for roles that chat templates know under another one."""


class ModelTemplate:
    """The chat template of the engine's model, as the two prompt functions of a LlamaIndex LLM.

    LlamaIndex's own `messages_to_prompt` is not used: it writes `additional_kwargs` into the prompt.

    Args:
        reference: to the engine.
    """

    def __init__(self, reference: EngineReference) -> None:
        self._reference = reference

    def of_messages(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt string of a conversation, open for the assistant's answer.

        Raises:
            PromptError: a message holds something else than text.
        """
        return self._reference.get().model.render(
            [{"role": _ROLES.get(m.role, m.role.value), "content": _text(m)} for m in messages]
        )

    def of_completion(self, prompt: str) -> str:
        """The string as the only user message; as it is, if the tokenizer has no chat template."""
        model = self._reference.get().model
        return model.render([{"role": "user", "content": prompt}]) if model.has_chat_template else prompt


def _text(message: ChatMessage) -> str:
    """The message's text; what the model thought about an earlier answer does not belong to the conversation."""
    for block in message.blocks:
        if not isinstance(block, TextBlock | ThinkingBlock | CachePoint):
            raise PromptError(
                f"expected messages of text, found a {type(block).__name__} in a {message.role.value} message; "
                "leave it out, or describe it in words"
            )
    return message.content or ""
