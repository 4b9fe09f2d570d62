"""Opening what `kvrag build` made, to ask it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kvrag.cli.folder import StoreFolder
from kvrag.errors import StoreError

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex

    from kvrag.engine import PacketEngine

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
            f"{engine.namespace!r}, found {size.packets} of others in {place.root}{_nearest(engine)}; ask with the "
            "model and the options of the build, or build again"
        )


def _nearest(engine: "PacketEngine") -> str:
    """In what the packets that are there differ from those looked for: of all kinds, the one that differs least."""
    rows = {row.scope: row.key for row in engine.store.ls()}
    wanted = engine.scope()
    scopes = [packet.scope for key in rows.values() if (packet := engine.store.get(key))]
    if not scopes:
        return ""
    nearest = min(scopes, key=lambda scope: len(wanted.differences(scope)))
    named = wanted.differences(nearest)
    if "weights" in named or "config" in named:
        told = ["another model"]  # whose adapter and tokenizer are others too
    else:
        pairs = [(name, getattr(nearest.identity, name, ""), getattr(wanted.identity, name, "")) for name in named]
        told = [f"{name} {theirs} instead of {mine}" for name, theirs, mine in pairs if name in ("codec", "dtype")]
        told += ["another adapter"] if "adapter" in named else []
        told += ["another strategy"] if "recipe" in named and "adapter" not in named else []
        told += [f"another {name}" for name in ("tokenizer", "rope", "format_version") if name in named]
    told += [f"namespace {nearest.namespace!r}"] if "namespace" in named else []
    return f" ({', '.join(told)})"
