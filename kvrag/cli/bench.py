"""`kvrag bench`: how fast answers from packets are on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvrag.cli.app import app
from kvrag.cli.options import DeviceOption, DtypeOption
from kvrag.cli.terminal import check_folders, quiet, results, write_json
from kvrag.errors import KVRagError, SettingsError

if TYPE_CHECKING:
    from kvrag.bench import Bandwidth, BenchReport, LoadBench
    from kvrag.model import LanguageModel

__all__ = ["decode", "load", "ttft"]

_bench = typer.Typer(help="Measure speed, beside what packets replace and what the hardware allows.")
app.add_typer(_bench, name="bench")

_TIERS = ("device", "host")

_ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="As elsewhere, or a shape with random weights: llama-3.1-8b, qwen2.5-7b, qwen3-4b or tiny.",
    ),
]
_PacketOption = Annotated[int, typer.Option("--packet", min=1, help="Tokens of a packet.")]
_RunsOption = Annotated[int, typer.Option("--runs", min=3, help="Runs of each method; medians are shown.")]
_GraphsOption = Annotated[
    str, typer.Option("--graphs", help="Passes as CUDA graphs: compiled, recorded (without torch.compile) or none.")
]
_OutOption = Annotated[Path | None, typer.Option("--out", dir_okay=False, help="JSON file.")]
_ChartOption = Annotated[Path | None, typer.Option("--chart", dir_okay=False, help="Image file for a chart.")]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@_bench.command()
def ttft(
    model: _ModelOption = "demo",
    contexts: Annotated[
        list[int] | None, typer.Option("--context", min=1, help="Tokens of packets; repeat. Default: 2048 and 8192.")
    ] = None,
    question: Annotated[int, typer.Option("--question", min=1, help="Tokens computed in any case.")] = 32,
    packet: _PacketOption = 512,
    tier: Annotated[list[str] | None, typer.Option("--tier", help="device or host; repeat. Default: both.")] = None,
    runs: _RunsOption = 15,
    graphs: _GraphsOption = "recorded",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: _OutOption = None,
    chart: _ChartOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Time to the first token: full prefill, copied caches, and attached packets, beside the hardware's floor."""
    from kvrag.bench import BenchReport, measure_first_token
    from kvrag.progress import progress_bar

    tiers = tuple(dict.fromkeys(tier or _TIERS))
    if not set(tiers) <= set(_TIERS):
        raise SettingsError(f"expected tiers out of {', '.join(_TIERS)}, found {', '.join(tiers)}")
    _check(chart, out)
    wanted = list(dict.fromkeys(contexts or [2048, 8192]))
    with quiet():
        loaded, warm_up = _open(model, device, dtype, graphs, max(wanted) + question, [question])
        bandwidth = _bandwidth(loaded)
        with progress_bar("contexts", len(wanted)) as advance:
            rows = measure_first_token(
                loaded,
                bandwidth,
                contexts=wanted,
                question=question,
                packet=packet,
                tiers=tiers,
                runs=runs,
                advance=lambda: advance(1),
            )
        report = BenchReport.of(loaded, bandwidth, warm_up, rows)
        table = Table("context", "method", "packets on", "ms", "x floor", "x faster", title=_title(report))
        for row in rows:
            table.add_row(
                str(row.context),
                row.method,
                row.tier,
                f"{row.ttft_ms:.2f}",
                f"{row.times_floor:.2f}",
                f"{row.speedup_over_full:.1f}",
            )
        _finish(report, table, out, chart, as_json)


@_bench.command()
def decode(
    model: _ModelOption = "demo",
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of the shared packets.")] = 4096,
    requests: Annotated[
        list[int] | None, typer.Option("--requests", min=1, help="Together in a pass; repeat. Default: 1, 4 and 16.")
    ] = None,
    packet: _PacketOption = 512,
    runs: _RunsOption = 30,
    graphs: _GraphsOption = "recorded",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: _OutOption = None,
    chart: _ChartOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Tokens per second of requests that share their packets, beside the hardware's floor."""
    from kvrag.bench import BenchReport, measure_decoding
    from kvrag.progress import progress_bar

    _check(chart, out)
    wanted = list(dict.fromkeys(requests or [1, 4, 16]))
    with quiet():
        loaded, warm_up = _open(model, device, dtype, graphs, context + 4 * runs + 32, wanted)
        bandwidth = _bandwidth(loaded)
        with progress_bar("requests", len(wanted)) as advance:
            rows = measure_decoding(
                loaded,
                bandwidth,
                context=context,
                requests=wanted,
                packet=packet,
                runs=runs,
                advance=lambda: advance(1),
            )
        report = BenchReport.of(loaded, bandwidth, warm_up, rows)
        table = Table("requests", "pass", "ms a step", "x floor", "tokens/s", "packets in MB", title=_title(report))
        for row in rows:
            table.add_row(
                str(row.requests),
                "recorded" if row.recorded else "eager",
                f"{row.step_ms:.2f}",
                f"{row.times_floor:.2f}",
                f"{row.tokens_per_s:.0f}",
                f"{row.packet_bytes / 1e6:.0f}",
            )
        _finish(report, table, out, chart, as_json)


@_bench.command()
def load(
    model: _ModelOption = "demo",
    bandwidths: Annotated[
        list[float] | None,
        typer.Option(
            "--bandwidth", min=1e-6, help="Of the store in GB/s; repeat. Default: 0.01 to 0.1, on a GPU 0.25 to 16."
        ),
    ] = None,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of packets.")] = 2048,
    packet: _PacketOption = 512,
    runs: _RunsOption = 5,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: _OutOption = None,
    chart: _ChartOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Time until packets can be attached: computed, loaded, or both at once, at several bandwidths."""
    from kvrag.bench import measure_loading
    from kvrag.progress import progress_bar

    _check(chart, out)
    with quiet():
        loaded, _ = _open(model, device, dtype, "none", context, [])
        on_gpu = loaded.device.type == "cuda"
        wanted = list(dict.fromkeys(bandwidths or ([0.25, 1, 4, 16] if on_gpu else [0.01, 0.03, 0.1])))
        with progress_bar("bandwidths", len(wanted) + 1) as advance:
            report = measure_loading(
                loaded, bandwidths=wanted, context=context, packet=packet, runs=runs, advance=lambda: advance(1)
            )
        disk = f"disk {report.disk.kvrag_gbps:.2f} GB/s, {report.disk.raw_gbps:.2f} by plain reads"
        table = Table("GB/s", "packets", "ms", "ideal ms", title=f"{report.model} on {report.device}: {disk}")
        for row in report.rows:
            paced = "disk" if row.bandwidth_gbps is None else f"{row.bandwidth_gbps:g}"
            table.add_row(paced, row.mode, f"{row.ms:.1f}", f"{row.ideal_ms:.1f}")
        _finish(report, table, out, chart, as_json)


def _check(chart: Path | None, out: Path | None) -> None:
    """What is wrong shall not cost a measurement."""
    if chart is not None:
        from kvrag.plotting import check_plotting

        check_plotting()
    check_folders(out, chart)


def _open(
    model: str, device: str, dtype: str, graphs: str, tokens: int, rows: list[int]
) -> "tuple[LanguageModel, float]":
    """The model, and the seconds that recording its passes of so many rows took."""
    import torch

    from kvrag.bench import GEOMETRIES, open_geometry
    from kvrag.sources import open_model

    if graphs not in ("compiled", "recorded", "none"):
        raise SettingsError(f"expected graphs out of compiled, recorded, none, found {graphs!r}")
    with Console(stderr=True).status("loading the model"):
        if model in GEOMETRIES:
            on = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            loaded = open_geometry(model, on, torch.float32 if dtype == "float32" else torch.bfloat16)
        else:
            loaded = open_model(model, device, dtype)
    if tokens > loaded.max_positions:
        raise SettingsError(f"expected at most {loaded.max_positions} tokens for {loaded.name}, found {tokens}")
    warm_up = 0.0
    if graphs != "none":
        loaded.record_passes(compiled=graphs == "compiled")
        with Console(stderr=True).status("recording passes"):
            warm_up = loaded.warm_up(rows)
        if loaded.graphs is not None and loaded.graphs.refused:
            raise KVRagError(
                f"expected a model that can be recorded, found {loaded.graphs.refused}; measure it with --graphs none"
            )
    return loaded, warm_up


def _bandwidth(loaded: "LanguageModel") -> "Bandwidth":
    from kvrag.bench import measure_bandwidth

    with Console(stderr=True).status("measuring the memory"):
        return measure_bandwidth(loaded.device)


def _title(report: "BenchReport") -> str:
    read = f"{report.bandwidth.memory:.0f} GB/s of memory"
    host = f", {report.bandwidth.host:.0f} GB/s from the host" if report.bandwidth.host else ""
    return f"{report.model}, {report.dtype} on {report.device}: {read}{host}"


def _finish(
    report: "BenchReport | LoadBench", table: Table, out: Path | None, chart: Path | None, as_json: bool
) -> None:
    if out is not None:
        report.save(out)
    if chart is not None:
        report.plot(chart)
    if as_json:
        write_json(report.as_json())
    else:
        results().print(table)
