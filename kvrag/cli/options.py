"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AdapterOption",
    "CodecOption",
    "DeviceOption",
    "DiskBytesOption",
    "DtypeOption",
    "JsonOption",
    "LoadingOption",
    "ModelOption",
    "NamespaceOption",
    "PolicyOption",
    "RemoteOption",
    "StoreOption",
    "StrategyOption",
]

StoreOption = Annotated[Path, typer.Option("--store", help="Folder that `kvrag build` keeps everything in.")]
RemoteOption = Annotated[
    str | None,
    typer.Option(
        "--remote",
        envvar="KVRAG_REMOTE",
        help="Where packets are shared with other machines, such as s3://bucket/prefix.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", help='"demo", a folder with a transformers model, or an id on the Hugging Face hub.')
]
StrategyOption = Annotated[
    str, typer.Option("--strategy", help="How packets are reused: kv-packet, no-recompute, full-recompute, ...")
]
AdapterOption = Annotated[
    str, typer.Option("--adapter", help='"auto" for the one shipped for the model, "none", or an adapter file.')
]
CodecOption = Annotated[
    str, typer.Option("--codec", help="How packets are stored: raw, or in fewer bytes: int8, fp8 or int4.")
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy", help="When packets are built: eager, on-first-use, hot-set (after two uses) or hot-set=N (after N)."
    ),
]
LoadingOption = Annotated[
    str,
    typer.Option(
        "--loading",
        help="How packets get into memory: load, compute, both at once, or auto: whatever is soonest.",
    ),
]
DiskBytesOption = Annotated[
    str | None,
    typer.Option(
        "--disk-bytes",
        metavar="SIZE",
        help='Disk for packets: 500MB, 20GB, 20GiB or "unlimited"; by default as before.',
        show_default=False,
    ),
]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", help="Whose documents: those of one namespace are invisible in another.")
]
DeviceOption = Annotated[str, typer.Option("--device", help='Where the model runs: "auto", "cpu", "cuda" ...')]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help='What the model computes in: "auto", "float32" or "bfloat16".')
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
