"""How a chat model asks an engine, in each of LangChain's four ways."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from kvrag.engine import PacketEngine
from langchain_kvrag.answers import achunks, chat_result, chunks
from langchain_kvrag.asking import Asked
from langchain_kvrag.errors import context_overflow

__all__ = ["EngineChat"]


class EngineChat(BaseChatModel):
    """A chat model whose answers come from a `PacketEngine`; what is asked of it is the subclass's affair."""

    model: str = ""

    @property
    @abstractmethod
    def _engine(self) -> PacketEngine:
        """The engine."""

    @abstractmethod
    def _ask(self, messages: Sequence[BaseMessage], stop: list[str] | None, call: Mapping[str, Any]) -> Asked:
        """What to ask the engine; reads templates and compiles grammars, so it does not belong on an event loop."""

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer all prompts at once: the engine computes them together, so each gets a thread that only waits."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        if configs[0].get("max_concurrency") is None:  # of which LangChain asks the first
            configs[0]["max_concurrency"] = len(inputs)
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._ask(messages, stop, kwargs)
        with context_overflow():
            stream = self._engine.stream(asked.prompt, **asked.options)
        with stream:
            return chat_result(stream.result(), self.model, asked.reader())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = await asyncio.to_thread(self._ask, messages, stop, kwargs)
        with context_overflow():
            stream = await self._engine.astream(asked.prompt, **asked.options)
        async with stream:
            return chat_result(await stream.result(), self.model, asked.reader())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._ask(messages, stop, kwargs)
        with context_overflow():
            stream = self._engine.stream(asked.prompt, **asked.options)
        with stream:
            for chunk in chunks(stream, self.model, asked.reader()):
                if run_manager:  # core reports tokens itself where it gives none
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = await asyncio.to_thread(self._ask, messages, stop, kwargs)
        with context_overflow():
            stream = await self._engine.astream(asked.prompt, **asked.options)
        async with stream:
            async for chunk in achunks(stream, self.model, asked.reader()):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
