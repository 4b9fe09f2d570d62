"""The chat model."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, ModelProfile
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import AliasChoices, ConfigDict, Field, InstanceOf, SecretStr, model_validator

from kvrag.completion import AsyncStream, Stream
from kvrag.engine import PacketEngine
from kvrag.errors import EngineError
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from kvrag.strategies import Strategy, strategy_from_name
from langchain_kvrag.answers import PROVIDER, chat_result, last_chunk, text_chunk
from langchain_kvrag.errors import context_overflow
from langchain_kvrag.messages import read_messages
from langchain_kvrag.options import call_options, sampling

__all__ = ["ChatKVRag"]


class ChatKVRag(BaseChatModel):
    """A local chat model that attaches the packets of chunks it finds in its prompts, instead of computing them.

    Chains, prompts, retrievers and vector stores stay as they are: build packets of the chunks once, with
    `chat.engine.build(texts)`, and `usage_metadata["input_token_details"]["cache_read"]` tells how many tokens of each
    prompt nobody computed. Thread-safe; `batch` and `abatch` share passes through the model.

    A call may set anything the fields below set, besides `documents`, texts known to be documents: `chat.invoke(prompt,
    temperature=1.0, strategy="full-recompute")`. Fields that are None leave the choice to `kvrag.settings.Sampling`.

    Attributes:
        engine: answers; shared by copies, left out of pickles and traces, closed by whoever made it.
        model: its name in traces and in metadata; also given as `model_name`; by default the engine's model's.
        temperature: 0 picks the most likely token.
        max_tokens: of an answer at most.
        top_p: nucleus of probability to sample from.
        top_k: number of tokens to sample from; 0 is all.
        repetition_penalty: divides the logits of tokens that already occurred; 1 is none.
        seed: makes sampling repeatable.
        stop: strings that end an answer and are not part of it; also given as `stop_sequences`.
        strategy: reuse strategy; by default the engine's.
        streaming: stream also when invoked; None leaves it to the callbacks, False never streams.
        timeout: accepted because code for remote models sets it, and without effect, as the next two are.
        max_retries: likewise.
        api_key: likewise.

    Raises:
        SettingsError: a setting is out of range, or there is no such strategy.
    """

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    engine: PacketEngine = Field(exclude=True, repr=False)
    model: str = Field(default="", validation_alias=AliasChoices("model", "model_name"))
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    strategy: str | InstanceOf[Strategy] | None = None
    streaming: bool | None = None
    timeout: float | None = Field(default=None, repr=False)
    max_retries: int | None = Field(default=None, repr=False)
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | tuple[Any, Any] | LanguageModel,
        *,
        store: str | Path | PacketStore,
        device: str = "auto",
        adapter: str | Path = "auto",
        namespace: str = "default",
        **fields: Any,
    ) -> Self:
        """Load a model and open a store; see `PacketEngine.from_pretrained`.

        Args:
            model: a hub id, a local folder, a ready `(model, tokenizer)` pair, or "demo".
            store: a folder, made if missing, or an open store.
            device: where to load the model.
            adapter: "auto", "none" or a file.
            namespace: a tenant's.
            fields: of the chat model, such as `temperature` or `strategy`.

        Raises:
            ModelError: the model cannot be loaded.
            StoreError: the store cannot be opened.
            SettingsError: a field is out of range.
        """
        strategy = {name: fields[name] for name in ("strategy",) if fields.get(name) is not None}
        engine = PacketEngine.from_pretrained(
            model, store=store, device=device, adapter=adapter, namespace=namespace, **strategy
        )
        return cls(engine=engine, **fields)

    @model_validator(mode="after")
    def _check_kvrag_settings(self) -> Self:
        self.model = self.model or self._engine.model.name
        sampling(self.__dict__)
        # Names the strategy if there is none such, and reads the weights' digest, which takes up to seconds, now
        # rather than on an event loop: LangChain asks for the identifying parameters there.
        self._engine.scope(self.strategy)
        return self

    @property
    def _engine(self) -> PacketEngine:
        engine = self.__dict__.get("engine")
        if engine is None:
            raise EngineError(
                f"expected an engine in {type(self).__name__}, found none, because pickles leave it out; set `engine` "
                "to one that is open here"
            )
        return engine

    @property
    def _llm_type(self) -> str:
        return "kvrag-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on; a part of the key of LangChain's caches, so no two models may share it."""
        engine = self._engine
        strategy = strategy_from_name(self.strategy or engine.strategy)
        return {
            "model": self.model,
            "identity": engine.scope(strategy).identity.digest,
            "adapter": engine.adapter.digest if engine.adapter is not None else "",
            "namespace": engine.namespace,
            "strategy": repr(strategy),
            **sampling(self.__dict__).model_dump(),
        }

    def get_token_ids(self, text: str) -> list[int]:
        """The text's token ids as the model counts them."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self._engine.model.tokenizer.encode(text))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._open(messages, stop, kwargs) as stream:
            return chat_result(stream.result(), self.model)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with await self._aopen(messages, stop, kwargs) as stream:
            return chat_result(await stream.result(), self.model)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._open(messages, stop, kwargs) as stream:
            for piece in stream:
                chunk = text_chunk(piece)
                if run_manager:  # core reports tokens itself where it gives none
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            assert stream.completion is not None, "only this generator closes it"
            yield last_chunk(stream.completion, self.model)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with await self._aopen(messages, stop, kwargs) as stream:
            async for piece in stream:
                chunk = text_chunk(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            assert stream.completion is not None, "only this generator closes it"
            yield last_chunk(stream.completion, self.model)

    def _open(self, messages: Sequence[BaseMessage], stop: list[str] | None, call: dict[str, Any]) -> Stream:
        prompt, options = self._request(messages, stop, call)
        with context_overflow():
            return self._engine.stream(prompt, **options)

    async def _aopen(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> AsyncStream:
        prompt, options = self._request(messages, stop, call)
        with context_overflow():
            return await self._engine.astream(prompt, **options)

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The engine's arguments."""
        prompt, documents = read_messages(messages)
        options = call_options(self.__dict__, stop, call)
        options["documents"] = [*documents, *options.get("documents", ())]
        return prompt, options

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        return ModelProfile(
            max_input_tokens=self._engine.model.max_positions,
            text_inputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            text_outputs=True,
            tool_calling=False,
            structured_output=False,
        )

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | {"engine": None}}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.__dict__["engine"])] = self.__dict__["engine"]
        return super().__deepcopy__(memo)
