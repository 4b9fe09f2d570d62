"""`kvrag build`: a folder of documents to packets and a collection."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from kvrag.cli.app import app
from kvrag.cli.documents import Skipped, UnreadableError, find_files, read_documents
from kvrag.cli.estimate import show_estimate, unbuilt_engine
from kvrag.cli.folder import StoreFolder
from kvrag.cli.nodes import Change, make_nodes, make_splitter, name_of, plan_change
from kvrag.cli.options import (
    AdapterOption,
    CodecOption,
    DeviceOption,
    DiskBytesOption,
    ModelOption,
    NamespaceOption,
    PolicyOption,
    RemoteOption,
    StoreOption,
    StrategyOption,
)
from kvrag.cli.remote import check_remote, upload
from kvrag.cli.terminal import note, quiet, warn
from kvrag.errors import KVRagError, SettingsError
from kvrag.progress import progress_bar

if TYPE_CHECKING:
    from llama_index.core.schema import Document, TextNode

    from kvrag.builder import BuildReport
    from kvrag.engine import PacketEngine

__all__ = ["build"]


@dataclass(frozen=True)
class _Summary:
    files: int
    skipped: int
    hidden: int
    change: Change
    packets: "BuildReport"
    seconds: float


@app.command()
def build(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of documents.",
            exists=True,
            file_okay=False,
            readable=True,
            show_default=False,
        ),
    ],
    store: StoreOption = Path(".kvrag"),
    model: ModelOption = "demo",
    chunk_tokens: Annotated[
        int, typer.Option("--chunk-tokens", min=32, help="Longest chunk, in tokens of the model.")
    ] = 256,
    strategy: StrategyOption = "kv-packet",
    adapter: AdapterOption = "auto",
    codec: CodecOption = "raw",
    policy: PolicyOption = "eager",
    namespace: NamespaceOption = "default",
    device: DeviceOption = "auto",
    remote: RemoteOption = None,
    disk_bytes: DiskBytesOption = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Build nothing; tell sizes, times and a suitable policy.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as one JSON object.")] = False,
) -> None:
    """Read text, Markdown, HTML and PDF files, and build a packet for every chunk.

    Run it again whenever files have changed, or when it was interrupted: it does what is missing.
    """
    if as_json and not estimate:
        raise typer.BadParameter("it belongs to --estimate", param_hint="'--json'")
    begin, place, folder = time.perf_counter(), StoreFolder(store), folder.resolve()
    found = find_files(folder, leave_out=store)
    with quiet():
        from kvrag.policy import policy_from_name
        from kvrag.store.codecs import codec_from_name
        from kvrag.strategies import strategy_from_name

        strategy_from_name(strategy)  # a wrong name shall not cost the loading of a model
        codec_from_name(codec)
        check_remote(remote)
        policy_from_name(policy)
        budget = place.disk_bytes(disk_bytes)
        documents = _read(found.files, folder, found.skipped)
        _name_skipped(found.skipped, folder)
        if not documents:
            raise KVRagError(f"expected text, Markdown, HTML or PDF files in {folder}, found none with text in it")
        from kvrag.demo import retrieval
        from kvrag.engine import PacketEngine
        from kvrag.store import PacketStore

        options = {"strategy": strategy, "adapter": adapter, "codec": codec, "namespace": namespace, "device": device}
        if estimate:
            from kvrag.estimating import estimate as estimate_build

            with unbuilt_engine(store, model, **options) as (engine, near):
                texts = _seen_by_the_model(_split(documents, engine, chunk_tokens, found.skipped))
                return show_estimate(estimate_build(engine, texts, folder=near), as_json=as_json)
        embedding = retrieval.sentence_embedding()
        place.create()
        with (
            place.locked(),
            PacketStore(place.packets, disk_bytes=budget, remote=remote) as packets,
            PacketEngine.from_pretrained(model, store=packets, policy=policy, **options) as engine,
        ):
            nodes = _split(documents, engine, chunk_tokens, found.skipped)
            place.keep_policy(policy)
            place.keep_disk_bytes(budget)
            report = engine.build(_seen_by_the_model(nodes))
            index = place.open_index(namespace, embedding)
            unreadable = [name_of(skip.path) for skip in found.skipped if not skip.unsupported]
            change = plan_change(index, name_of(folder), nodes, unreadable)
            with progress_bar("adding chunks", len(change.added)) as advance:
                change.apply(index, advance)
            if remote is not None:
                upload(packets)
    files = len({node.metadata["file_path"] for node in nodes.values()})
    _show(_Summary(files, len(found.skipped), found.hidden, change, report, time.perf_counter() - begin))


def _read(files: Sequence[Path], folder: Path, skipped: list[Skipped]) -> "list[tuple[Path, list[Document]]]":
    documents: list[tuple[Path, list[Document]]] = []
    with progress_bar("reading files", len(files)) as advance:
        for path in files:
            try:
                shown = (
                    path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                )
                documents.append((path, read_documents(path, shown)))
            except UnreadableError as error:
                skipped.append(Skipped(path, str(error)))
            advance(1)
    return documents


def _split(
    documents: "list[tuple[Path, list[Document]]]", engine: "PacketEngine", chunk_tokens: int, skipped: list[Skipped]
) -> "dict[str, TextNode]":
    window = engine.model.max_positions
    if chunk_tokens >= window:
        raise SettingsError(
            f"expected --chunk-tokens below {window}, the context window of {engine.model.name}, found {chunk_tokens}"
        )
    splitter = make_splitter(chunk_tokens, lambda text: engine.model.tokenizer.encode(text, literal=True))
    nodes: dict[str, TextNode] = {}
    with progress_bar("splitting into chunks", len(documents)) as advance:
        for path, parts in documents:
            try:
                nodes |= make_nodes(parts, name_of(path), splitter)
            except (ValueError, RecursionError) as error:
                skipped.append(Skipped(path, f"cannot be split: {error}"))
                note(f"skipped {path}: cannot be split: {error}")
            advance(1)
    return nodes


def _seen_by_the_model(nodes: "dict[str, TextNode]") -> list[str]:
    from llama_index.core.schema import MetadataMode

    return [node.get_content(metadata_mode=MetadataMode.LLM) for node in nodes.values()]


def _name_skipped(skipped: Sequence[Skipped], folder: Path) -> None:
    for skip in skipped:
        note(f"skipped {skip.path.relative_to(folder)}: {skip.reason}")


def _show(summary: _Summary) -> None:
    packets, change = summary.packets, summary.change
    skipped = f", {summary.skipped} skipped" if summary.skipped else ""
    hidden = f", {summary.hidden} hidden left out" if summary.hidden else ""
    counts = f"{packets.built} built, {packets.existing} existing"
    counts += f", {packets.registered} registered" if packets.registered else ""
    counts += f", {packets.left_out} without room" if packets.left_out else ""
    typer.echo(f"files    {summary.files} read{skipped}{hidden}")
    typer.echo(f"chunks   {len(change.added)} added, {change.kept} unchanged, {len(change.stale)} removed")
    typer.echo(f"packets  {counts}, {packets.too_short} too short, {len(packets.rejected)} rejected")
    typer.echo(f"written  {decimal(packets.bytes)}")
    if packets.left_out:
        warn("--disk-bytes has no room for all packets; with --policy hot-set those are kept that questions use most")
    typer.echo(f"seconds  {summary.seconds:.1f}")
