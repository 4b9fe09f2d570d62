"""Packets that are built because prompts asked for them, while nobody waits for an answer."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

from kvrag.adapter import Adapter
from kvrag.builder import encode_batch, file_bytes, tokenize_chunk
from kvrag.errors import EngineError, KVRagError
from kvrag.model import LanguageModel
from kvrag.packet import Packet, PacketKey, Scope
from kvrag.policy import BuildPolicy
from kvrag.store import PacketStore

__all__ = ["DeferredBuilds"]

_log = logging.getLogger("kvrag")


class DeferredBuilds:
    """Counts the texts that prompts meet, and builds the packets of those that were met often enough and have none.

    Where the store has a budget, a packet is built only if it finds room, or if all that would have to go for it are
    used less than it is: what stays is what prompts use most. A thread of its own counts, tokenises and writes; the
    model is asked only when it has nothing else to do, for one chunk at a time.

    Args:
        model: that encodes.
        adapter: that the recipe may use.
        store: where packets go, and where uses are counted.
        policy: says how often is enough.
        when_idle: calls a function with its arguments on the model's thread, when no prompt is active.
    """

    def __init__(
        self,
        model: LanguageModel,
        adapter: Adapter | None,
        store: PacketStore,
        policy: BuildPolicy,
        when_idle: Callable[..., "Future[Any]"],
    ) -> None:
        self._model, self._adapter, self._store = model, adapter, store
        self._uses, self._when_idle = policy.uses, when_idle
        self._inbox: queue.Queue[tuple[Scope, list[Packet], Mapping[PacketKey, str]] | None] = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="kvrag-builds", daemon=True)
        self._thread.start()

    def meet(self, scope: Scope, used: Iterable[Packet], missed: Mapping[PacketKey, str]) -> None:
        """Take note of a prompt: the packets it used, and the texts whose packets were missing; returns at once."""
        self._inbox.put((scope, list(used), missed))

    def wait(self) -> None:
        """Return when everything noted so far has been dealt with."""
        self._inbox.join()

    def close(self) -> None:
        """Stop; what is not built by now is built when a prompt asks for it again."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._inbox.get()) is not None:
            scope, used, missed = item
            counts: dict[PacketKey, int] = {}
            with self._harmless():
                counts = {} if self._closed else self._store.uses.add([*(packet.key for packet in used), *missed])
            for packet in used if counts else ():
                with self._harmless():
                    self._keep(packet)
            for key in (key for key in missed if key in counts):
                with self._harmless():
                    self._consider(scope, key, missed[key], counts[key])
            self._inbox.task_done()
        self._inbox.task_done()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Prompts are answered without a packet as well."""
        try:
            yield
        except (CancelledError, EngineError):
            pass  # the engine was closed meanwhile
        except Exception as error:
            _log.warning("no packet for a text that prompts ask for: %s: %s", type(error).__name__, error)

    def _keep(self, packet: Packet) -> None:
        """Write a packet again that made room, was still in host memory, and is used enough to come back."""
        if self._store.room is not None and self._store.row(packet.key) is None:
            size = file_bytes(self._model, packet.scope.identity.codec, packet.tokens)
            if self._store.has_room(packet.key, size):
                self._store.put(packet, [])

    def _consider(self, scope: Scope, key: PacketKey, text: str, count: int) -> None:
        if self._store.has(key, scope):  # somebody else has built it, maybe on another machine
            return self._store.register(scope, text, key)
        if count < self._uses or self._closed:
            return None
        chunk = tokenize_chunk(self._model, scope, text)
        if scope.key(chunk.ids) != key:
            raise KVRagError(f"expected text of packet {key[:12]}, found other tokens; build the text again")
        rows = len(chunk.ids) + scope.recipe.extra_tokens
        if not self._store.has_room(key, file_bytes(self._model, scope.identity.codec, rows)):
            return None
        (packet,) = self._when_idle(encode_batch, self._model, self._adapter, scope, [chunk]).result()
        return self._store.put(packet, [text])
