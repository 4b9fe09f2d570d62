"""The engine: builds packets, finds them in prompts, and answers."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, TypeVar

from kvrag.adapter import Adapter
from kvrag.attach import ComputedStates
from kvrag.builder import BuildReport, Chunk, batches, file_bytes, pass_tokens, tokenize_chunk
from kvrag.completion import AsyncStream, Completion, Delivery, Stream
from kvrag.deferred import DeferredBuilds
from kvrag.errors import KVRagError, PromptError, PromptTooLongError, StoreError
from kvrag.loading.loader import Fetched, PacketLoader
from kvrag.loading.settings import Loading, loading_from
from kvrag.matching import HEAD_CHARS
from kvrag.model import LanguageModel
from kvrag.packet import Packet, Scope
from kvrag.policy import policy_from_name
from kvrag.prepared import Prepared
from kvrag.probe import check_movable
from kvrag.progress import progress_bar
from kvrag.prompt import stripped
from kvrag.reader import PromptReader
from kvrag.request import Request
from kvrag.settings import Sampling
from kvrag.sources import open_adapter, open_model
from kvrag.store import Hold, PacketStore
from kvrag.store.codecs import codec_from_name
from kvrag.strategies import Strategy, strategy_from_name
from kvrag.worker import Worker

__all__ = ["Message", "PacketEngine", "Prompt"]

T = TypeVar("T")

Message = Mapping[str, Any]
"""A chat message: `role` and `content`."""

Prompt = str | Sequence[Message]
"""A final prompt string, or messages that the model's chat template turns into one."""

_log = logging.getLogger("kvrag")


class PacketEngine:
    """A language model with a store of packets.

    Thread-safe; any number of callers share one engine, and their prompts share passes through the model.

    Args:
        model: whose packets can be moved; checked here, and owned by this engine until it is closed.
        store: of packets; whoever opened it closes it.
        adapter: "auto" takes the one that is shipped for this model, if any; "none" takes none; or a file.
        strategy: for prompts that do not name another.
        namespace: a tenant's; packets of one namespace are invisible in another.
        codec: how packets are stored: "raw", "int8", "fp8" or "int4" (see `kvrag.store.codecs`). Packets of another
            codec are other packets.
        policy: when packets are built: "eager" (by `build`), "on-first-use" (when the first prompt with a text has been
            answered) or "hot-set" (after two of them; "hot-set=N" after N). Without "eager", `build` only makes texts
            known as documents. A budget of the store bounds them all: "eager" builds what finds room, the others keep
            the packets that prompts use most.
        computed_bytes: of keys and values to keep from earlier prompts, for prompts that begin the same way.
        device_memory: bytes on a GPU to keep packets in; by default 0.4 of what is free.
        cuda_graphs: on a GPU, record passes of few rows when they first come, and replay them from then on.
        loading: of packets that are not in host memory: "auto" loads, computes, or does both at once, whatever is
            soonest; "load", "compute", "both", or `kvrag.loading.Loading`.

    Raises:
        UnsupportedModelError: packets of this model would mean something else at another position.
        AdapterError: the adapter belongs to another model.
        SettingsError: there is no such codec, strategy or policy.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        store: PacketStore,
        adapter: Adapter | str | Path = "auto",
        strategy: str | Strategy = "kv-packet",
        namespace: str = "default",
        codec: str = "raw",
        policy: str = "eager",
        computed_bytes: int = 64 << 20,
        device_memory: int | None = None,
        cuda_graphs: bool = True,
        loading: Loading | str = "auto",
    ) -> None:
        how = loading_from(loading)
        self.codec = codec_from_name(codec).name
        self.policy = policy_from_name(policy)
        _check(model)
        if cuda_graphs:
            model.record_passes()
        self.model = model
        self.store = store
        self.namespace = namespace
        self.strategy = strategy_from_name(strategy).fitted(model.framing)
        self.adapter = open_adapter(adapter, model)
        self._states = ComputedStates(computed_bytes)
        self._stamp = model.state_stamp()
        self._scopes: dict[Strategy, Scope] = {}
        self._opened = ExitStack()  # what is to be closed with this engine
        self._lock = threading.Lock()
        pool = model.new_pool(device_memory)
        if pool is not None:
            store.keep_encoded()
            if model.device.type == "cuda":
                store.pin_memory()
        self._pool = pool
        self._worker = Worker(model, self._states, pool)
        ahead = None if pool is None else pool.send_ahead
        self._loader = PacketLoader(model, self.adapter, store, self._worker.run, how, arrived=ahead)
        self._reader = PromptReader(model, store, self.adapter, self._loader)
        self._deferred = None
        if self.policy.uses:
            self._deferred = DeferredBuilds(model, self.adapter, store, self.policy, self._worker.run_when_idle)
        if self.adapter is None and self.strategy.name == "kv-packet":
            _log.warning("kv-packet is untrained: no adapter for %s, so answers from packets are weaker", model.name)

    @classmethod
    def from_pretrained(
        cls,
        model: "str | Path | tuple[Any, Any] | LanguageModel",
        *,
        store: str | Path | PacketStore,
        device: str = "auto",
        **options: Any,
    ) -> "PacketEngine":
        """Load a model and open a store.

        Args:
            model: a hub id, a local folder, a ready `(model, tokenizer)` pair (never moved), or "demo".
            store: a folder, made if missing, or an open store.
            device: where to load the model; a ready one stays where it is.
            options: as for the engine itself.

        Raises:
            ModelError: the model cannot be loaded.
            StoreError: the store cannot be opened.
        """
        with ExitStack() as opened:
            loaded = open_model(model, device)
            if loaded is not model:
                opened.callback(loaded.close)
            if not isinstance(store, PacketStore):
                store = opened.enter_context(PacketStore(store))
            engine = cls(loaded, store=store, **options)
            engine._opened = opened.pop_all()
        return engine

    def scope(self, strategy: str | Strategy | None = None) -> Scope:
        """Which packets may serve the strategy's prompts."""
        chosen = self._chosen(strategy)
        self._notice_changed_weights()
        with self._lock:
            if chosen not in self._scopes:
                recipe = chosen.recipe(self.adapter)
                used = self.adapter.digest if self.adapter is not None and recipe.uses_adapter else ""
                identity = self.model.identity.model_copy(update={"adapter": used, "codec": self.codec})
                self._scopes[chosen] = Scope(identity, recipe, self.namespace)
            return self._scopes[chosen]

    def build(
        self, texts: Iterable[str], *, strategy: str | Strategy | None = None, progress: bool | None = None
    ) -> BuildReport:
        """Compute and store the packets of texts that have none yet, or only make the texts known, as the policy says.

        Every packet is durable as soon as it is stored, so an interrupted build is completed by calling this again. An
        interrupt waits for the pass that the model is in, and keeps what comes of it.

        Args:
            texts: chunks as the model will see them; surrounding white space does not count.
            strategy: to build for; by default the engine's.
            progress: show a bar on standard error; by default when that is a terminal.

        Returns:
            What became of every text.

        Raises:
            PromptError: `texts` are no strings, or a single one.
            StoreError: the store cannot be written.
        """
        begin = time.perf_counter()
        scope = self.scope(strategy)
        report = BuildReport()
        chunks = self._missing(dict.fromkeys(stripped(texts)), scope, report)
        if self.policy.uses:
            self.store.expect(scope, [(chunk.text, scope.key(chunk.ids)) for chunk in chunks])
            report.registered, report.seconds = len(chunks), time.perf_counter() - begin
            return report
        chunks = self._that_find_room(chunks, scope, report)
        with progress_bar("building packets", len(chunks), show=progress) as advance:
            self._build(chunks, scope, report, advance)
        report.seconds = time.perf_counter() - begin
        return report

    def prefetch(self, texts: Iterable[str], *, strategy: str | Strategy | None = None) -> Hold:
        """Bring the packets of retrieved texts into host memory and keep them there until the hold is released.

        A hint: answers are the same without it. Texts that have no packet are remembered as documents, so that what
        looks like a special token in them stays text.
        """
        return self._reader.prefetch(texts, self.scope(strategy))

    def generate(
        self,
        prompt: Prompt,
        *,
        strategy: str | Strategy | None = None,
        documents: Sequence[str] = (),
        **sampling: Any,
    ) -> Completion:
        """Answer a prompt.

        Args:
            prompt: a final prompt string, or messages.
            strategy: instead of the engine's own.
            documents: texts known to be documents, besides those that have packets.
            sampling: fields of `Sampling`, such as `max_new_tokens`, `temperature` or `stop`.

        Raises:
            PromptTooLongError: it does not fit into the context window.
            PromptError: it is empty, or neither a string nor messages.
            SettingsError: an unknown option.
            EngineError: the engine is closed.
        """
        return self.stream(prompt, strategy=strategy, documents=documents, **sampling).result()

    def stream(
        self,
        prompt: Prompt,
        *,
        strategy: str | Strategy | None = None,
        documents: Sequence[str] = (),
        **sampling: Any,
    ) -> Stream:
        """Answer a prompt piece by piece; arguments and errors as for `generate`."""
        stream = Stream()
        self._submit(prompt, strategy, documents, Sampling.of(**sampling), stream.delivery)
        return stream

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        strategy: str | Strategy | None = None,
        documents: Sequence[str] = (),
        **sampling: Any,
    ) -> Completion:
        """Answer a prompt without blocking the event loop; as `generate`."""
        stream = await self.astream(prompt, strategy=strategy, documents=documents, **sampling)
        return await stream.result()

    async def astream(
        self,
        prompt: Prompt,
        *,
        strategy: str | Strategy | None = None,
        documents: Sequence[str] = (),
        **sampling: Any,
    ) -> AsyncStream:
        """Answer a prompt piece by piece without blocking the event loop; as `stream`."""
        stream, settings = AsyncStream(), Sampling.of(**sampling)
        try:
            await asyncio.to_thread(self._submit, prompt, strategy, documents, settings, stream.delivery)
        except BaseException:  # also when the task is cancelled while a thread submits the prompt
            await stream.aclose()
            raise
        return stream

    def prepare(
        self, prompt: Prompt, *, strategy: str | Strategy | None = None, documents: Sequence[str] = ()
    ) -> Prepared:
        """Find the packets of a prompt and bring them into host memory, without computing anything."""
        prepared, _, fetched = self._read(prompt, self._chosen(strategy), documents)
        self._loader.write_back(fetched.unstored)
        return prepared

    def run(self, job: Callable[..., T], *args: Any) -> T:
        """Have the thread that owns the model call `job(*args)` between two steps, and wait for what it returns.

        Raises:
            EngineError: the engine is closed.
        """
        return self._worker.run(job, *args).result()

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text as the model counts them, without special tokens around it."""
        return self.model.tokenizer.encode(text)

    def count_tokens(self, text: str) -> int:
        """Number of those ids."""
        return len(self.token_ids(text))

    def forget_on_device(self, prepared: Prepared) -> None:
        """Let the packets of a prompt go from the device, so that they come from host memory the next time."""
        if self._pool is not None:
            for key in prepared.packets:
                self._pool.discard(key)

    def wait_for_builds(self) -> None:
        """Return when the packets that prompts have asked for so far are built; at once if the policy is "eager"."""
        if self._deferred is not None:
            self._deferred.wait()

    def warm_up(self) -> float:
        """Do now what the first answers on a GPU would have to wait for; the seconds it took."""

        def warm_up(scope: Scope) -> float:
            begin = time.perf_counter()
            self.model.warm_up()
            if self.model.device.type == "cuda":
                self._loader.warm_up(scope)
            return time.perf_counter() - begin

        return self._worker.run(warm_up, self.scope()).result()

    def close(self) -> None:
        """End what is running, and close the model and the store unless they were given open.

        A `LanguageModel` that was given serves other engines on, until it is closed itself.
        """
        self._worker.close()
        self._loader.close()
        if self._deferred is not None:
            self._deferred.close()
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _chosen(self, strategy: str | Strategy | None) -> Strategy:
        return self.strategy if strategy is None else strategy_from_name(strategy).fitted(self.model.framing)

    def _submit(
        self,
        prompt: Prompt,
        strategy: str | Strategy | None,
        documents: Sequence[str],
        sampling: Sampling,
        delivery: Delivery,
    ) -> None:
        started = time.perf_counter()
        chosen = self._chosen(strategy)
        prepared, match_ms, fetched = self._read(prompt, chosen, documents)
        room = self.model.max_positions - prepared.end
        if room < 1:
            raise PromptTooLongError(
                f"expected a prompt of fewer than {self.model.max_positions} tokens, the context window of "
                f"{self.model.name}, found {prepared.end}; retrieve fewer chunks or shorten the conversation"
            )
        sampling = sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, room)})
        self._worker.submit(Request(prepared, sampling, delivery, chosen.name, started, match_ms, fetched.report))
        self._loader.write_back(fetched.unstored)
        if self._deferred is not None:  # behind the request, which they must not delay
            self._deferred.meet(self.scope(chosen), prepared.packets.values(), prepared.missed)

    def _read(self, prompt: Prompt, strategy: Strategy, documents: Sequence[str]) -> tuple[Prepared, float, Fetched]:
        if not prompt:
            raise PromptError("expected a prompt, found an empty one")
        if not isinstance(prompt, str):
            if not all(isinstance(message, Mapping) for message in prompt):
                raise PromptError("expected a string, or messages such as {'role': 'user', 'content': 'Hello'}")
            prompt = self.model.render([dict(message) for message in prompt])
        return self._reader.read(prompt, strategy, self.scope(strategy), documents)

    def _missing(self, texts: Iterable[str], scope: Scope, report: BuildReport) -> list[Chunk]:
        """The chunks whose packets are to be built; the others are counted."""
        missing: list[Chunk] = []
        for text in texts:
            if len(text) < HEAD_CHARS:
                report.too_short += 1
                continue
            try:
                chunk = tokenize_chunk(self.model, scope, text)
            except PromptError as error:
                _log.warning("no packet for %r...: %s", text[:40], error)
                report.rejected.append((text[:40], str(error)))
                continue
            key = scope.key(chunk.ids)
            if self.store.has(key, scope):
                try:
                    self.store.register(scope, text, key)
                    report.existing += 1
                    row = self.store.row(key)
                    report.existing_bytes += row.bytes if row else 0
                    continue
                except StoreError:
                    if self.store.has(key, scope):
                        raise
            missing.append(chunk)  # it never was there, or somebody has just removed it
        return missing

    def _build(
        self, chunks: Sequence[Chunk], scope: Scope, report: BuildReport, advance: Callable[[int], None]
    ) -> None:
        """Encode and store; the model works on a batch while the one before is written."""
        pending: deque[tuple[Sequence[Chunk], Future[list[Packet]]]] = deque()

        def store_first() -> None:
            encoded, future = pending[0]
            for chunk, packet in zip(encoded, future.result(), strict=True):
                self.store.put(packet, [chunk.text])
                report.built += 1
                report.tokens += packet.tokens
                report.bytes += packet.nbytes
                advance(1)
            pending.popleft()

        try:
            for batch in batches(chunks, pass_tokens(self.model)):
                pending.append((batch, self._worker.run(self._loader.encode, scope, batch)))
                if len(pending) > 1:
                    store_first()
            while pending:
                store_first()
        except KeyboardInterrupt:
            for _, future in reversed(pending):
                future.cancel()
            while pending and not pending[0][1].cancelled():  # its pass had begun, and cannot be stopped
                store_first()
            raise

    def _that_find_room(self, chunks: Sequence[Chunk], scope: Scope, report: BuildReport) -> list[Chunk]:
        """The first chunks, as many as the store's budget has room for beside the packets that it has of this build.

        To build the others too would only take room from these; they become known, and are counted.
        """
        if self.store.room is None:
            return list(chunks)
        sizes = [file_bytes(self.model, self.codec, len(chunk.ids) + scope.recipe.extra_tokens) for chunk in chunks]
        room = self.store.room - report.existing_bytes
        fit = sum(end <= room for end in accumulate(sizes))
        self.store.expect(scope, [(chunk.text, scope.key(chunk.ids)) for chunk in chunks[fit:]])
        report.left_out = len(chunks) - fit
        return list(chunks[:fit])

    def _notice_changed_weights(self) -> None:
        """Somebody may train or switch the model he gave us; its packets then belong to another identity."""
        stamp = self.model.state_stamp()
        if stamp == self._stamp:
            return
        with self._lock:
            if stamp != self._stamp:
                _log.warning("the weights of %s changed; packets built with the old ones are not used", self.model.name)
                self.model.forget_identity()
                self._scopes.clear()
                self._worker.run(self._forget_computed).result()
                self._stamp = stamp

    def _forget_computed(self) -> None:
        self._states.clear()
        self.model.forget_passes()


def _check(model: LanguageModel) -> None:
    """Check that packets can be moved, and do without the kernels for GPUs where they do not run."""
    try:
        check_movable(model)
    except KVRagError:
        raise
    except Exception as error:  # of a compiler, a driver, or a GPU that is too old
        if model.passes.works is None:
            raise
        _log.warning("the kernels for GPUs do not run here, so passes are slower: %s: %s", type(error).__name__, error)
        model.passes.works = None
        check_movable(model)
