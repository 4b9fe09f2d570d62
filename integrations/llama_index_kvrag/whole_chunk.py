"""Packing of chunks into prompts without cutting one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import Field
from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, PromptHelper
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.utilities.token_counting import TokenCounter

from kvrag.errors import SettingsError
from llama_index_kvrag.llm import KVRagLLM

if TYPE_CHECKING:
    from llama_index.core.tools import BaseTool

__all__ = ["WholeChunkPromptHelper"]

_SEPARATOR = "\n\n"
_SEPARATOR_TOKENS = 2


class WholeChunkPromptHelper(PromptHelper):
    """Packs retrieved chunks into as few prompts as the context window allows, and keeps every chunk whole.

    LlamaIndex joins all chunks and cuts the result wherever the window ends; a chunk that is cut is not found in the
    prompt any more and its packet stays unused. Here the next prompt begins with the chunk that does not fit. Only a
    chunk that no prompt of its own can hold is cut as before.

    Use `Settings.prompt_helper = WholeChunkPromptHelper.from_llm(llm)`, or give it to `get_response_synthesizer` as
    `prompt_helper`. Chat engines take it from `Settings` only.
    """

    chunk_overhead: int = Field(default=_SEPARATOR_TOKENS, description="Tokens a chunk takes besides its text.", ge=0)

    @classmethod
    def from_llm(cls, llm: KVRagLLM, **options: Any) -> Self:
        """A prompt helper for this LLM's window that counts as its model does, chat template and soft tokens included.

        Args:
            llm: that will answer.
            options: `chunk_size_limit` and what else `PromptHelper` takes.

        Raises:
            SettingsError: it is another LLM.
        """
        if not isinstance(llm, KVRagLLM):
            raise SettingsError(
                f"expected a KVRagLLM, found a {type(llm).__name__}; for another LLM give its window and tokenizer to "
                "WholeChunkPromptHelper itself, as to LlamaIndex's PromptHelper"
            )
        made = cls.from_llm_metadata(llm.metadata, tokenizer=llm.engine.model.tokenizer.encode, **options)
        assert isinstance(made, cls)
        made._token_counter = _ModelTokenCounter(llm)
        made.chunk_overhead = _SEPARATOR_TOKENS + llm.engine.scope(llm.strategy).recipe.extra_tokens
        return made

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised form."""
        return "WholeChunkPromptHelper"

    def repack(
        self,
        prompt: BasePromptTemplate,
        text_chunks: Sequence[str],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: "list[BaseTool] | None" = None,
    ) -> list[str]:
        """Chunks joined into as few texts as fit into `prompt` one at a time.

        Args:
            prompt: that the texts will be put into.
            text_chunks: as retrieved; white space around them goes, and empty ones are left out.
            padding: tokens to leave free, besides those of the answer.
            llm: whose system prompt takes room too.
            tools: whose descriptions do.

        Raises:
            ValueError: the prompt alone fills the window.
        """
        room = self._get_available_chunk_size(prompt, 1, padding=padding, llm=llm, tools=tools)
        alone = room + max(padding - DEFAULT_PADDING, 0)  # a chunk that needs all the room may have the padding
        packed: list[list[str]] = []
        used = 0
        for chunk in (given.strip() for given in text_chunks):
            if not chunk:
                continue
            tokens = self._token_counter.get_string_tokens(chunk) + self.chunk_overhead
            if tokens > alone:
                packed.extend([part] for part in super().repack(prompt, [chunk], padding, llm, tools))
                used = room
            elif packed and used + tokens <= room:
                packed[-1].append(chunk)
                used += tokens
            else:
                packed.append([chunk])
                used = tokens
        return [_SEPARATOR.join(chunks) for chunks in packed]


class _ModelTokenCounter(TokenCounter):
    """Counts with the model's tokenizer; LlamaIndex counts messages with that of an OpenAI model."""

    def __init__(self, llm: KVRagLLM) -> None:
        super().__init__(tokenizer=llm.engine.model.tokenizer.encode)
        self._llm = llm

    def estimate_tokens_in_messages(self, messages: list[ChatMessage]) -> int:
        """Tokens of the conversation behind the chat template."""
        return self.get_string_tokens(self._llm.render(messages))
