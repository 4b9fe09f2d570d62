"""The chat model."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, ConfigDict, Field, InstanceOf, SecretStr, model_validator

from kvrag.engine import PacketEngine
from kvrag.errors import EngineError
from kvrag.model import LanguageModel
from kvrag.store import PacketStore
from kvrag.strategies import Strategy, strategy_from_name
from langchain_kvrag.answers import PROVIDER
from langchain_kvrag.asking import Asked, ask
from langchain_kvrag.engine_chat import EngineChat
from langchain_kvrag.options import sampling
from langchain_kvrag.structured import structured
from langchain_kvrag.tools import choose_tools

__all__ = ["ChatKVRag"]


class ChatKVRag(EngineChat):
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
        max_tokens: of an answer at most; also given as `max_new_tokens`.
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
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
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

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that can call these tools; the form of its calls is certain, their sense is the model's affair.

        Needs `kvrag[structured]`. Tools are shown by the model's chat template, or described in the system message if
        that has no place for them.

        Args:
            tools: functions, classes, LangChain's tools, or OpenAI's descriptions.
            tool_choice: "auto" (the default), "any" or a tool's name to demand a call, "none" to forbid it.
            parallel_tool_calls: whether an answer may hold several calls; by default where none is demanded.
            kwargs: anything else that a call may set.

        Raises:
            SettingsError: `tool_choice` names another tool.
        """
        described = [convert_to_openai_tool(tool) for tool in tools]
        choose_tools(described, tool_choice)
        return self.bind(tools=described, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers with objects; needs `kvrag[structured]`.

        The prompt stays as it is: say in it what the answer should hold. An answer that `max_tokens` cuts off does not
        parse.

        Args:
            schema: a pydantic model, a TypedDict, or a JSON schema with a title.
            include_raw: answer with the keys raw, parsed and parsing_error.
            method: "json_schema" and "function_calling" hold the answer to the schema, "json_mode" only to JSON.
            strict: accepted, and always true.
            kwargs: anything else that a call may set.

        Raises:
            SettingsError: there is no such method.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        return structured(self, schema, method, include_raw=include_raw, **kwargs)

    def _ask(self, messages: Sequence[BaseMessage], stop: list[str] | None, call: Mapping[str, Any]) -> Asked:
        return ask(self._engine, self.__dict__, messages, stop, call)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=self.stop if stop is None else stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        formed = find_spec("llguidance") is not None
        return ModelProfile(
            max_input_tokens=self._engine.model.max_positions,
            text_inputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            text_outputs=True,
            tool_calling=formed,
            structured_output=formed,
        )

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | {"engine": None}}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.__dict__["engine"])] = self.__dict__["engine"]
        return super().__deepcopy__(memo)
