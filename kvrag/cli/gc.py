"""`kvrag store gc`: removing packets that no text in use leads to."""

import re
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from kvrag.cli import texts_in_use
from kvrag.cli.app import FAILURE
from kvrag.cli.folder import StoreFolder, packet_store_in
from kvrag.cli.options import JsonOption, RemoteOption, StoreOption
from kvrag.cli.store import open_store, store_commands
from kvrag.cli.terminal import printable, quiet, results, warn, write_json
from kvrag.errors import SettingsError

if TYPE_CHECKING:
    from kvrag.store import GcReport, PacketStore

__all__ = ["gc"]


@store_commands.command()
def gc(
    store: StoreOption = Path(".kvrag"),
    chroma: Annotated[
        list[str] | None,
        typer.Option("--chroma", help="Whose documents are in use: a persistent Chroma folder, or a server's URL."),
    ] = None,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", help="Only these collections of --chroma.")
    ] = None,
    docstore: Annotated[
        list[Path] | None, typer.Option("--docstore", help="JSON file of a LlamaIndex SimpleDocumentStore in use.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--texts", help="Texts in use: a file with a JSON string on every line, or a folder of them."),
    ] = None,
    grace: Annotated[
        str, typer.Option("--grace", help="How long packets stay in any case: 90s, 30m, 12h, 7d ...")
    ] = "1d",
    namespace: Annotated[str | None, typer.Option("--namespace", help="Only packets of this namespace.")] = None,
    identity: Annotated[
        list[str] | None,
        typer.Option("--identity", help="Remove all packets of this identity: its digest, or its beginning."),
    ] = None,
    quarantine_days: Annotated[
        float | None, typer.Option("--quarantine-days", min=0, help="Delete files quarantined so many days ago.")
    ] = None,
    uploads: Annotated[
        bool,
        typer.Option("--uploads", help="Delete from --remote too what this store uploaded and has no more."),
    ] = False,
    remote: RemoteOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove packets that no text in use leads to.

    In use are the chunks of the collections that `kvrag build` made in this store, and what the options name.
    """
    if collection and not chroma:
        raise SettingsError("expected --chroma with --collection, found none; name where the collections are")
    if uploads and remote is None:
        raise SettingsError("expected a remote to delete uploads from, found none; give --remote or set KVRAG_REMOTE")
    seconds = _seconds(grace)
    place = StoreFolder(packet_store_in(store).parent)
    is_built = packet_store_in(store) == place.packets and place.chroma.is_dir()
    own = [place.collection(namespace)] if namespace is not None else []
    sources = [
        *([texts_in_use.in_chroma(place.chroma, own)] if is_built else []),
        *(texts_in_use.in_chroma(where, collection or ()) for where in chroma or ()),
        *(texts_in_use.in_docstore(file) for file in docstore or ()),
        *(texts_in_use.in_files(file) for file in texts or ()),
    ]
    alone = place.locked() if is_built and not dry_run else nullcontext()
    with (
        quiet(),
        alone,
        open_store(store, remote if uploads else None) as packets,
        Console(stderr=True).status("collecting"),
    ):
        report = packets.gc(
            chain.from_iterable(sources) if sources else None,
            grace=seconds,
            namespace=namespace,
            identities=[_identity(packets, digest) for digest in identity or ()],
            quarantined=None if quarantine_days is None else quarantine_days * 86400,
            uploads=uploads,
            dry_run=dry_run,
        )
    if as_json:
        removed = [asdict(row) for row in report.removed]
        counts = {name: getattr(report, name) for name in ("marked", "packets", "alive", "young", "bytes", "dry_run")}
        emptied = {"quarantine": [str(path) for path in report.emptied], "quarantine_bytes": report.emptied_bytes}
        objects = {"withdrawn": [upload.key for upload in report.withdrawn], "kept_back": report.kept_back}
        write_json(counts | {"removed": removed} | emptied | objects)
    else:
        _tell(report)
    if report.kept_back:
        warn("the remote does not let go of all objects; the same command tries again")
        raise typer.Exit(FAILURE)


def _tell(report: "GcReport") -> None:
    out = results()
    if report.dry_run and report.removed:
        table = Table("packet", "namespace", "identity", box=None)
        table.add_column("size", justify="right")
        for row in report.removed:
            table.add_row(row.key[:16], Text(printable(row.namespace)), row.identity[:12], decimal(row.bytes))
        out.print(table)
    would = "would be " if report.dry_run else ""
    out.print(f"{report.marked} texts in use; {report.alive} packets alive, {report.young} young")
    out.print(f"{len(report.removed)} packets {would}removed, {decimal(report.bytes)}")
    if report.withdrawn:
        size = decimal(sum(upload.bytes for upload in report.withdrawn))
        out.print(f"{len(report.withdrawn)} objects of the remote {would}deleted, {size}")
    if report.emptied:
        out.print(f"{len(report.emptied)} quarantined files {would}deleted, {decimal(report.emptied_bytes)}")


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", duration.strip())
    if not found:
        raise SettingsError(f"expected a duration such as 90s, 30m, 12h or 7d for --grace, found {duration!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _identity(packets: "PacketStore", beginning: str) -> str:
    known = sorted({identity for _, identity in packets.stat().scopes})
    found = [identity for identity in known if beginning and identity.startswith(beginning)]
    if len(found) != 1:
        several = ", ".join(identity[:12] for identity in known) or "no packets"
        raise SettingsError(
            f"expected --identity to be the beginning of one identity, found {beginning!r} of {several}"
        )
    return found[0]
