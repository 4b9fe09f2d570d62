"""Packets that are built because prompts asked for them, while nobody waits for an answer."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from kvrag.adapter import Adapter
from kvrag.builder import encode_batch, tokenize_chunk
from kvrag.errors import EngineError, KVRagError
from kvrag.model import LanguageModel
from kvrag.packet import PacketKey, Scope
from kvrag.policy import BuildPolicy
from kvrag.store import PacketStore
from kvrag.store.uses import UseCounts

__all__ = ["DeferredBuilds"]

_log = logging.getLogger("kvrag")


class DeferredBuilds:
    """Counts the texts that prompts meet without a packet, and builds the packets of those met often enough.

    A thread of its own counts, tokenises and writes; the model is asked only when it has nothing else to do, for one
    chunk at a time.

    Args:
        model: that encodes.
        adapter: that the recipe may use.
        store: where packets go, and beside them the counts.
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
        self._counts = UseCounts(store.root / "uses.sqlite")
        self._inbox: queue.Queue[tuple[Scope, PacketKey, str] | None] = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="kvrag-builds", daemon=True)
        self._thread.start()

    def meet(self, scope: Scope, key: PacketKey, text: str) -> None:
        """Take note that a prompt had this text, whose packet was missing; returns at once."""
        self._inbox.put((scope, key, text))

    def wait(self) -> None:
        """Return when everything noted so far has been dealt with."""
        self._inbox.join()

    def close(self) -> None:
        """Stop; what is not built by now is built when a prompt asks for it again."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()
        self._counts.close()

    def _loop(self) -> None:
        while True:
            item = self._inbox.get()
            try:
                if item is None:
                    return
                if not self._closed:
                    self._consider(*item)
            except (CancelledError, EngineError):
                pass  # the engine was closed meanwhile
            except Exception as error:  # prompts are answered without this packet as well
                _log.warning("no packet for a text that prompts ask for: %s: %s", type(error).__name__, error)
            finally:
                self._inbox.task_done()

    def _consider(self, scope: Scope, key: PacketKey, text: str) -> None:
        if self._store.has(key, scope):  # somebody else has built it, maybe on another machine
            return self._store.register(scope, text, key)
        if self._counts.add(key) < self._uses:
            return
        chunk = tokenize_chunk(self._model, scope, text)
        if scope.key(chunk.ids) != key:
            raise KVRagError(f"expected text of packet {key[:12]}, found other tokens; build the text again")
        (packet,) = self._when_idle(encode_batch, self._model, self._adapter, scope, [chunk]).result()
        self._store.put(packet, [text])
        self._counts.forget(key)
