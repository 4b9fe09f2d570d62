"""`kvrag build --estimate`: what a build would cost."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table

from kvrag.cli.terminal import results, write_json

if TYPE_CHECKING:
    from kvrag.engine import PacketEngine
    from kvrag.estimating import BuildEstimate

__all__ = ["show_estimate", "unbuilt_engine"]


@contextmanager
def unbuilt_engine(store: Path, model: str, **options: Any) -> "Iterator[tuple[PacketEngine, Path]]":
    """An engine over an empty store that is gone afterwards, and its folder, on the disk where `store` would be."""
    from kvrag.engine import PacketEngine

    wanted = store.absolute()
    disk = next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())
    with (
        tempfile.TemporaryDirectory(prefix=".kvrag-", dir=disk) as made,
        PacketEngine.from_pretrained(model, store=Path(made, "packets"), **options) as engine,
    ):
        yield engine, Path(made)


def show_estimate(found: "BuildEstimate", *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        return write_json(asdict(found))
    out, table = results(), Table("codec", "bytes of all packets", "of raw", title="size")
    for codec, size in found.bytes.items():
        table.add_row(codec, decimal(size), f"{size / found.bytes['raw']:.0%}")
    left_out = f", {found.left_out} texts too short or too long" if found.left_out else ""
    saved = f"after {found.break_even_uses} uses" if found.break_even_uses else "never"
    out.print(f"chunks      {found.chunks}, {found.tokens} tokens{left_out}")
    out.print(table)
    out.print(f"free        {decimal(found.free_bytes)} on that disk")
    out.print(f"build       {found.build_s:.1f} s at {found.tokens_per_s:.0f} tokens/s")
    out.print(f"a chunk     {found.compute_ms:.1f} ms to compute, {found.load_ms:.1f} ms to load ({found.codec})")
    out.print(f"break-even  {saved}: building a packet has then taken no more time than it saved")
    out.print(f"policy      {found.policy}: {found.reason}")
    out.print(f"Times are measured on this machine with {found.sampled} chunks and scaled; nothing was built.")
    return None
