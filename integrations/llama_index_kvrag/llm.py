"""A LlamaIndex LLM that answers through a packet engine."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, ValidationError
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate

from kvrag.completion import AsyncStream, Stream
from kvrag.engine import PacketEngine
from kvrag.errors import SettingsError
from kvrag.settings import Sampling
from kvrag.strategies import strategy_from_name
from llama_index_kvrag.ending import ends_generation, note_opened
from llama_index_kvrag.messages import ModelTemplate
from llama_index_kvrag.reference import EngineReference
from llama_index_kvrag.responses import arespond, chat_response, completion_response, respond

__all__ = ["KVRagLLM"]

logger = logging.getLogger(__name__)

_FRAMEWORK_ONLY = frozenset({"extra_headers", "formatted"})
"""What LlamaIndex itself passes to any LLM: HTTP headers from DocumentContextExtractor, `formatted` to chats."""


class KVRagLLM(CustomLLM):
    """A language model that attaches the packets of the chunks it finds in a prompt.

    Every option can also be given with a single call, by the name of the field. `max_new_tokens` is another name of
    `max_tokens`, here and there; of a call, `documents` names texts known to be documents. None stands for the field's
    value, and unknown options raise `SettingsError`.

    Prompts reach the model through its chat template, once: messages as they are, a string as one user message. Only a
    string passed with `formatted=True` is taken as it is; that is what LlamaIndex's `predict` passes after it applied
    the template through `completion_to_prompt`. Give `messages_to_prompt` or `completion_to_prompt` to use another.

    Responses carry `raw["usage"]` (`prompt_tokens`, `completion_tokens`, `total_tokens` and
    `prompt_tokens_details.cached_tokens`), `raw["timings"]` in ms, `raw["finish_reason"]`, `raw["strategy"]` and
    `raw["model"]`; in streams the last one does. Closing or dropping a stream ends its generation.

    Args:
        engine: that answers; it may serve other components and threads at the same time. It is not pickled with this.
        settings: the fields below, and those of every LlamaIndex LLM.

    Raises:
        SettingsError: a setting is unknown or out of range.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(description="Name in reports; by default the engine's model's.")
    context_window: int = Field(description="Tokens of prompt and answer; by default the model's.", gt=0)
    max_tokens: int = Field(default=256, description="At most so many tokens are generated.", gt=0)
    temperature: float = Field(default=0.0, description="0 picks the most likely token.")
    top_p: float = Field(default=1.0, description="Nucleus of probability to sample from.")
    top_k: int = Field(default=0, description="Number of tokens to sample from; 0 is all.")
    repetition_penalty: float = Field(default=1.0, description="Divides logits of tokens that occurred; 1 is none.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    stop: str | list[str] | None = Field(default=None, description="Strings that end the answer.")
    strategy: str | None = Field(default=None, description="Reuse strategy; by default the engine's.")
    is_chat_model: bool = Field(default=True, description="Whether LlamaIndex sends messages instead of strings.")
    additional_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options for every call.")

    _reference: EngineReference = PrivateAttr()
    _template: ModelTemplate = PrivateAttr()
    _said: bool = PrivateAttr(default=False)

    def __init__(self, engine: PacketEngine, **settings: Any) -> None:
        reference = EngineReference(engine, "build KVRagLLM(engine) in the process that answers")
        if "max_new_tokens" in settings:
            settings.setdefault("max_tokens", settings.pop("max_new_tokens"))
        template = ModelTemplate(reference)
        defaults = {
            "model_name": engine.model.name,
            "context_window": engine.model.max_positions,
            "messages_to_prompt": template.of_messages,
            "completion_to_prompt": template.of_completion,
        }
        try:
            super().__init__(**defaults | {name: value for name, value in settings.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingsError(
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}, found {first.get('input')!r}; "
                f"the settings of KVRagLLM are {', '.join(type(self).model_fields)}"
            ) from error
        self._reference = reference
        self._template = template
        options = self._options({})  # what is wrong shall be said here, not in the first answer
        strategy_from_name(options.pop("strategy") or engine.strategy)
        options.pop("documents", None)
        Sampling.of(**options)

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised form."""
        return "KVRagLLM"

    @property
    def engine(self) -> PacketEngine:
        """The engine that answers.

        Raises:
            EngineError: this is a pickled copy.
        """
        return self._reference.get()

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts by."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens,
            is_chat_model=self.is_chat_model,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events and traces may know: names and numbers, no texts."""
        return super().to_payload() | {"strategy": self.strategy, "temperature": self.temperature}

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt string that the model gets for a conversation."""
        assert self.messages_to_prompt is not None, "LLM fills it"
        return self.messages_to_prompt(messages)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a string."""
        completion = self._start(self._prompt(prompt, formatted), kwargs).result()
        return completion_response(completion.text, completion)

    @ends_generation
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a string piece by piece."""
        return respond(self._start(self._prompt(prompt, formatted), kwargs), completion_response)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a string without blocking the event loop."""
        completion = await (await self._astart(self._prompt(prompt, formatted), kwargs)).result()
        return completion_response(completion.text, completion)

    @ends_generation
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a string piece by piece without blocking the event loop."""
        return arespond(await self._astart(self._prompt(prompt, formatted), kwargs), completion_response)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        completion = self._start(self.render(messages), kwargs).result()
        return chat_response(completion.text, completion)

    @ends_generation
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation piece by piece."""
        return respond(self._start(self.render(messages), kwargs), chat_response)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        completion = await (await self._astart(self.render(messages), kwargs)).result()
        return chat_response(completion.text, completion)

    @ends_generation
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a conversation piece by piece without blocking the event loop."""
        return arespond(await self._astart(self.render(messages), kwargs), chat_response)

    def _start(self, prompt: str, given: Mapping[str, Any]) -> Stream:
        """The one way to an answer; the asynchronous methods take its twin."""
        stream = self.engine.stream(prompt, **self._options(given))
        note_opened(stream)
        return stream

    async def _astart(self, prompt: str, given: Mapping[str, Any]) -> AsyncStream:
        stream = await self.engine.astream(prompt, **self._options(given))
        note_opened(stream)
        return stream

    def _prompt(self, prompt: str, formatted: bool) -> str:
        assert self.completion_to_prompt is not None, "LLM fills it"
        return prompt if formatted else self.completion_to_prompt(prompt)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the engine is asked for: the fields, over them `additional_kwargs`, over them the call's options."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            "strategy": self.strategy,
            **{name: getattr(self, name) for name in Sampling.model_fields if name in type(self).model_fields},
        }
        for layer in (self.additional_kwargs, given):
            for name, value in layer.items():
                if value is not None and name not in _FRAMEWORK_ONLY:
                    options["max_new_tokens" if name == "max_tokens" else name] = value
        return options

    def _get_prompt(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """What `predict` sends if this is no chat model: LlamaIndex would put a system prompt before the template."""
        if self.completion_to_prompt == self._template.of_completion and self.system_prompt:
            return self.render(self._get_messages(prompt, **prompt_args))
        self._say_if_unmatched(prompt_args)
        return super()._get_prompt(prompt, **prompt_args)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        """What `predict` sends if this is a chat model."""
        self._say_if_unmatched(prompt_args)
        return super()._get_messages(prompt, **prompt_args)

    def _say_if_unmatched(self, prompt_args: Mapping[str, Any]) -> None:
        """`simple_summarize` gives a list, and its repr gets into the prompt, with line feeds as backslash and n."""
        if not self._said and isinstance(prompt_args.get("context_str"), list):
            self._said = True
            logger.warning(
                "expected the retrieved chunks as a string, found a list, which the prompt will show as Python code: "
                "chunks of several lines are computed as text, and long ones are cut; use response_mode='compact'"
            )
