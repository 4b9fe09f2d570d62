"""`kvrag store`: looking at packets and mending a store."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from kvrag.cli.app import FAILURE, app
from kvrag.cli.folder import StoreFolder, packet_store_in
from kvrag.cli.options import JsonOption, RemoteOption, StoreOption
from kvrag.cli.remote import upload
from kvrag.cli.terminal import printable, quiet, results, write_json
from kvrag.errors import SettingsError

if TYPE_CHECKING:
    from kvrag.store import PacketStore, Problem, ScopeUsage

__all__ = ["du", "ls", "open_store", "push", "repair", "stat", "store_commands", "verify"]

store_commands = typer.Typer(help="Look at a packet store, check it, mend it and keep it small.")
app.add_typer(store_commands, name="store")

_REMEDIES = {
    "corrupt": "`kvrag store repair` moves the file into quarantine; then build again",
    "index": "`kvrag store repair` writes a new index from the packets; then build again, so that texts lead to them",
    "mismatch": "`kvrag store repair` corrects the index; then build again",
    "missing": "`kvrag store repair` takes it out of the index; then build again",
    "orphan": "`kvrag store repair` puts it into the index, and so does building again",
    "stray": "move the file elsewhere",
    "temporary": "`kvrag store repair` deletes it",
    "unreadable": "check the disk and the file's permissions",
}


def open_store(root: Path, remote: str | None = None, *, writing: bool = False) -> "PacketStore":
    """The packet store at `root`, or the one in the folder that `kvrag build` made there.

    Args:
        root: one of the two.
        remote: where packets are shared with other machines.
        writing: keep to the budget of the folder's last build; otherwise nothing makes room.

    Raises:
        StoreError: there is none, or it cannot be used.
    """
    folder = packet_store_in(root)  # before the import, which takes seconds
    budget = StoreFolder(folder.parent).disk_bytes(None) if writing else None
    from kvrag.store import PacketStore

    return PacketStore(folder, disk_bytes=budget, remote=remote)


@store_commands.command()
def ls(store: StoreOption = Path(".kvrag"), remote: RemoteOption = None, as_json: JsonOption = False) -> None:
    """List all packets."""
    with quiet(), open_store(store, remote) as packets:
        rows = list(packets.ls())
    if as_json:
        write_json([asdict(row) for row in rows])
        return
    table = Table("packet", "namespace", "identity", box=None)
    for name in ("tokens", "size", "texts"):
        table.add_column(name, justify="right")
    table.add_column("created")
    for row in rows:
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created))
        names = row.key[:16], Text(printable(row.namespace)), row.identity[:12]
        table.add_row(*names, str(row.tokens), decimal(row.bytes), str(row.texts), created)
    results().print(table)


@store_commands.command()
def stat(store: StoreOption = Path(".kvrag"), remote: RemoteOption = None, as_json: JsonOption = False) -> None:
    """Show how large a store is, and for whom it was built."""
    with quiet(), open_store(store, remote) as packets:
        found = packets.stat()
    scopes = [
        {"namespace": namespace, "identity": identity, **asdict(size)}
        for (namespace, identity), size in sorted(found.scopes.items())
    ]
    if as_json:
        told = {"packets": found.packets, "bytes": found.bytes, "texts": found.texts, "scopes": scopes}
        tiers = {name: tier.bytes for name, tier in found.tiers.items() if name != "memory"}
        write_json(told | {"tiers": tiers, "pending_uploads": found.pending_uploads})
        return
    out = results()
    out.print(f"{found.packets} packets, {decimal(found.bytes)}, found by {found.texts} texts")
    for name, tier in found.tiers.items():
        if name != "memory":  # of this process, which has read nothing
            out.print(f"{name}: {decimal(tier.bytes)}")
    if found.pending_uploads:
        out.print(f"{found.pending_uploads} packets are still to be uploaded: `kvrag store push` does it now")
    if scopes:
        table = Table("namespace", "identity", box=None)
        table.add_column("packets", justify="right")
        table.add_column("size", justify="right")
        for scope in scopes:
            row = scope["identity"][:12], str(scope["packets"]), decimal(scope["bytes"])
            table.add_row(Text(printable(scope["namespace"])), *row)
        out.print(table)


@store_commands.command()
def push(store: StoreOption = Path(".kvrag"), remote: RemoteOption = None, as_json: JsonOption = False) -> None:
    """Upload what the remote does not have yet, and wait for it; exits with 1 when something is left."""
    if remote is None:
        raise SettingsError("expected a remote to upload packets to, found none; give --remote or set KVRAG_REMOTE")
    with quiet(), open_store(store, remote, writing=True) as packets:
        left = upload(packets)
        total = packets.stat().packets
    if as_json:
        write_json({"packets": total, "pending_uploads": left})
    else:
        typer.echo(f"{total - left} of {total} packets are on the remote")
    if left:
        raise typer.Exit(FAILURE)


@store_commands.command()
def verify(store: StoreOption = Path(".kvrag"), remote: RemoteOption = None, as_json: JsonOption = False) -> None:
    """Read every byte and compare it with the index; exits with 1 when something is wrong."""
    with quiet(), open_store(store, remote) as packets:
        with Console(stderr=True).status("reading every packet"):
            problems = list(packets.verify())
        size = None if any(problem.kind == "index" for problem in problems) else packets.stat()
    if as_json:
        write_json({"problems": [_told(problem) for problem in problems], "packets": size.packets if size else None})
    elif problems:
        _explain(problems)
    elif size:
        typer.echo(f"no problems: {size.packets} packets, {decimal(size.bytes)}, every byte read")
    if problems:
        raise typer.Exit(FAILURE)


@store_commands.command()
def repair(store: StoreOption = Path(".kvrag"), remote: RemoteOption = None, as_json: JsonOption = False) -> None:
    """Make files and index agree again; no good packet is lost. Exits with 1 when something is left to do by hand."""
    with quiet(), open_store(store, remote, writing=True) as packets:
        with Console(stderr=True).status("reading every packet"):
            report = packets.repair()
        left = list(packets.verify(deep=False))
    if as_json:
        broken = str(report.broken_index) if report.broken_index else None
        write_json(asdict(report) | {"broken_index": broken, "problems": [_told(problem) for problem in left]})
    else:
        counts = f"{report.adopted} packets put into the index, {report.dropped} taken out of it"
        typer.echo(f"{counts}, {report.quarantined} files quarantined, {report.swept} temporary files deleted")
        if report.broken_index:
            typer.echo(f"the damaged index is kept as {printable(str(report.broken_index))}")
        if report.adopted or report.dropped or report.quarantined:
            typer.echo("build again, so that every text leads to its packet")
        _explain(left)
    if left:
        raise typer.Exit(FAILURE)


@store_commands.command()
def du(store: StoreOption = Path(".kvrag"), as_json: JsonOption = False) -> None:
    """Show where the bytes are: by namespace and identity, the largest first, and what else takes room."""
    with quiet(), open_store(store) as packets:
        found = packets.usage()
    others = {name: asdict(getattr(found, name)) for name in ("quarantine", "temporary", "index")}
    if as_json:
        write_json({"bytes": found.bytes, "scopes": [_used(scope) for scope in found.scopes]} | others)
        return
    table = Table("namespace", "identity", "codec", "dtype", "adapter", box=None)
    for name in ("files", "size"):
        table.add_column(name, justify="right")
    for scope in found.scopes:
        of = (scope.of.codec, scope.of.dtype, scope.of.adapter[:12] or "none") if scope.of else ("?", "?", "?")
        names = Text(printable(scope.namespace)), scope.identity[:12], *of
        table.add_row(*names, str(scope.packets), decimal(scope.bytes))
    for name, size in others.items():
        table.add_row(f"({name})", "", "", "", "", str(size["files"]), decimal(size["bytes"]))
    results().print(table)
    typer.echo(f"{decimal(found.bytes)} in all")


def _told(problem: "Problem") -> dict[str, str | None]:
    path = str(problem.path)
    told = {"kind": problem.kind, "path": path, "message": problem.message, "key": problem.key}
    return told | {"remedy": _REMEDIES[problem.kind]}


def _explain(problems: "Iterable[Problem]") -> None:
    for problem in problems:
        path = str(problem.path)
        told = problem.message if path in problem.message else f"{path}: {problem.message}"
        typer.echo(f"{problem.kind}: {printable(told)}\n  {_REMEDIES[problem.kind]}")


def _used(scope: "ScopeUsage") -> dict[str, str | int | None]:
    told = {"namespace": scope.namespace, "identity": scope.identity, "packets": scope.packets, "bytes": scope.bytes}
    return told | {name: getattr(scope.of, name, None) for name in ("codec", "dtype", "adapter")}
