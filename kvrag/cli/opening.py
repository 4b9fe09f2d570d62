"""Opening what `kvrag build` made, to ask it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kvrag.cli.folder import StoreFolder
from kvrag.errors import CorruptPacketError, StoreError

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex

    from kvrag.engine import PacketEngine
    from kvrag.packet import Scope

__all__ = ["open_built"]


@contextmanager
def open_built(
    place: StoreFolder,
    model: str,
    *,
    namespace: str,
    remote: str | None = None,
    disk_bytes: str | None = None,
    **options: Any,
) -> "Iterator[tuple[PacketEngine, VectorStoreIndex]]":
    """The engine over a store's packets, and the index over a namespace's chunks.

    Args:
        place: where they are.
        model: "demo", a folder or a hub id.
        namespace: whose chunks.
        remote: where packets are shared with other machines.
        disk_bytes: as the user wrote it; kept for later commands.
        options: `strategy`, `adapter`, `codec`, `policy`, `loading` and `device` of the engine.

    Raises:
        SettingsError: no strategy, codec or way of loading has that name, or the remote or the budget is none.
        StoreError: the store has no packets for this model and these options, or no chunks in this namespace.
    """
    from kvrag.demo import retrieval
    from kvrag.engine import PacketEngine
    from kvrag.loading import loading_from
    from kvrag.store import PacketStore
    from kvrag.store.codecs import codec_from_name
    from kvrag.strategies import strategy_from_name

    strategy_from_name(options["strategy"])  # a wrong name shall not cost the loading of a model
    codec_from_name(options["codec"])
    loading_from(options.get("loading", "auto"))
    budget = place.disk_bytes(disk_bytes)
    with PacketStore(place.packets, disk_bytes=budget, remote=remote) as packets:
        if disk_bytes is not None:
            place.keep_disk_bytes(budget)
        with Console(stderr=True).status("loading the model"):
            opened = PacketEngine.from_pretrained(
                model, store=packets, computed_bytes=0, namespace=namespace, **options
            )
        with opened as engine:
            _check_packets(engine, place)
            index = place.open_index(namespace, retrieval.sentence_embedding())
            if not retrieval.node_count(index):
                raise StoreError(
                    f"expected documents in namespace {namespace!r} of {place.root}, found none; build them"
                )
            yield engine, index


def _check_packets(engine: "PacketEngine", place: StoreFolder) -> None:
    """Answers would be right but slow if no packet served this model; better say so before."""
    if not engine.strategy.attaches or len(engine.store.matcher(engine.scope())):
        return
    size = engine.store.stat()
    if size.packets:
        raise StoreError(
            f"expected packets of {engine.model.name} with strategy {engine.strategy.name!r} in namespace "
            f"{engine.namespace!r}, found {size.packets} in {place.root} that do not serve{_why(engine)}; ask with the "
            "model and the options of the build, or build again"
        )


def _why(engine: "PacketEngine") -> str:
    """What sets the packets that are there apart from those looked for: of all kinds, the one that differs least."""
    wanted, found = engine.scope(), _scopes(engine)
    if not found:
        return ""
    nearest = min(found, key=lambda scope: len(wanted.differences(scope)))
    named = wanted.differences(nearest)
    if "weights" in named or "config" in named:
        told = ["another model"]  # whose adapter and tokenizer are others too
    else:
        values = (
            (name, getattr(nearest.identity, name), getattr(wanted.identity, name)) for name in ("codec", "dtype")
        )
        told = [f"{name} {theirs} instead of {mine}" for name, theirs, mine in values if theirs != mine]
        changed = [what for name, what in (("adapter", "adapter"), ("recipe", "strategy")) if name in named]
        told += [f"another {' or '.join(changed)}"] if changed else []
        told += [f"another {name}" for name in ("tokenizer", "rope", "format_version") if name in named]
    told += [f"namespace {nearest.namespace!r}"] if "namespace" in named else []
    return f" ({', '.join(told) or 'no text leads to them'})"


def _scopes(engine: "PacketEngine") -> "list[Scope]":
    """Those of the packets on this disk, as far as their files can be read."""
    found: dict[str, Scope] = {}
    for row in engine.store.ls():
        if row.scope not in found:
            with suppress(CorruptPacketError, OSError):
                file = engine.store.open(row.key)
                if file is not None:
                    with file:
                        found[row.scope] = file.header.scope
    return list(found.values())
