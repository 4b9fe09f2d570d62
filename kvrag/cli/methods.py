"""`kvrag eval methods`: every reuse method on one bench."""

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvrag.cli.eval import eval_app, load_set, spread
from kvrag.cli.options import AdapterOption, DeviceOption, DtypeOption, ModelOption
from kvrag.cli.terminal import check_folders, printable, quiet, results, warn, write_json
from kvrag.errors import SettingsError

if TYPE_CHECKING:
    from kvrag.bench.methods import TimeRow
    from kvrag.evaluation.costs import MethodRow
    from kvrag.strategies import Strategy

__all__ = ["methods"]

_TERA, _MIB = 1e12, 1 << 20


@eval_app.command()
def methods(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="A file of questions, or needle or biography. Repeat for several."),
    ] = None,
    model: ModelOption = "demo",
    adapter: AdapterOption = "auto",
    names: Annotated[
        str, typer.Option("--methods", help="Strategies, with commas between, options behind colons; all: every one.")
    ] = "all",
    passages: Annotated[
        list[int] | None, typer.Option("--passages", min=1, help="In a prompt; may be repeated. Default: 4.")
    ] = None,
    template: Annotated[str, typer.Option("--template", help="Of the prompts.")] = "llama-index-compact",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions of each data set, at most.")] = 1000,
    budget: Annotated[
        float | None, typer.Option("--budget-seconds", min=1, help="Begin no other questions after so long.")
    ] = None,
    timed: Annotated[int, typer.Option("--timed", min=1, help="Prompts of each data set to time.")] = 4,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each timed prompt by each method.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of distractors, orders and resampling.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 24,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Rows in memory together.")] = 16_384,
    times_only: Annotated[
        bool, typer.Option("--times-only", help="Only time random packets, at the shape of --geometry.")
    ] = False,
    geometry: Annotated[
        str, typer.Option("--geometry", help="For --times-only: a shape with random weights, as in kvrag bench ttft.")
    ] = "llama-3.1-8b",
    packets: Annotated[
        list[int] | None, typer.Option("--packets", min=1, help="For --times-only; repeat. Default: 4, 8 and 16.")
    ] = None,
    packet: Annotated[int, typer.Option("--packet", min=1, help="For --times-only: tokens of a packet.")] = 512,
    question: Annotated[int, typer.Option("--question", min=1, help="For --times-only: tokens of a question.")] = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="JSON file, written after every table.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option("--chart", dir_okay=False, help="Image file: quality against time to first token.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put every reuse method beside the others: quality as `kvrag eval quality` has it, and what it costs.

    Rows are sorted by F1, or by KL where there are no answers; those of --times-only by time.
    """
    from kvrag.evaluation.quality import NATURAL, methods_from_names
    from kvrag.plotting import check_plotting
    from kvrag.strategies import available_strategies

    check_folders(out, chart)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise SettingsError(f"expected a dtype out of auto, float32, bfloat16, found {dtype!r}")
    if chart is not None:
        check_plotting()
    wanted = list(available_strategies()) if names == "all" else [name.strip() for name in names.split(",") if name]
    compared = methods_from_names(wanted)
    if times_only:
        compared.pop(NATURAL)  # random packets have no text that could be cut otherwise
        if data or chart is not None:
            raise SettingsError("expected --times-only without --data and --chart, found both; run the command twice")
        lengths = list(dict.fromkeys(packets or [4, 8, 16]))
        _time(compared, geometry, device, dtype, lengths, packet, question, runs, out, as_json)
        return
    if not data:
        raise SettingsError("expected --data with a file of questions, needle or biography, found none; name one")
    end = float("inf") if budget is None else time.monotonic() + budget
    with quiet(), ExitStack() as stack:
        from kvrag.cli.prompts import find_template
        from kvrag.engine import PacketEngine
        from kvrag.evaluation.backends import AnswererChoice
        from kvrag.evaluation.cases import Window, make_cases
        from kvrag.evaluation.chart import plot_pareto
        from kvrag.evaluation.costs import MethodRow, measure_costs
        from kvrag.evaluation.quality import measure
        from kvrag.evaluation.report import QualityReport, Setup
        from kvrag.progress import progress_bar
        from kvrag.sources import open_model

        chosen = find_template(template)
        sets = [load_set(source, limit, seed) for source in dict.fromkeys(data)]
        jobs = list(product(sets, dict.fromkeys(passages or [4])))
        with Console(stderr=True).status("loading the model"):
            folder = stack.enter_context(TemporaryDirectory(prefix="kvrag-eval-"))
            loaded = open_model(model, device, dtype)
            opened = PacketEngine.from_pretrained(loaded, store=folder, adapter=adapter, computed_bytes=0)
            engine = stack.enter_context(opened)
        window = Window(loaded, list(compared.values()), engine.adapter, max_new_tokens)
        answerer = AnswererChoice(engine, "auto", max_new_tokens)
        report = QualityReport(Setup.of(engine), seed, max_new_tokens)
        drawn: list[MethodRow] = []
        for number, (questions, count) in enumerate(jobs):
            if time.monotonic() >= end:
                warn(f"no time left for {questions.name} with {count} passages")
                continue
            cases = make_cases(questions, count, chosen, loaded, window, seed=seed, limit=limit)
            if not cases.cases:
                warn(f"no question of {questions.name} with {count} passages fits into {loaded.max_positions} tokens")
                continue
            with progress_bar("timing", min(timed, len(cases.cases)) * len(compared)) as advance:
                costs = measure_costs(engine, cases.cases[:timed], compared, runs=runs, advance=advance)
            left = max(0.0, end - time.monotonic()) / (len(jobs) - number)
            with progress_bar(questions.name, len(cases.cases) * len(compared)) as advance:
                scored = measure(
                    cases, compared, answerer, seed=seed, batch_tokens=batch_tokens, seconds=left, advance=advance
                )
            rows = sorted((MethodRow.of(row, costs[row.method]) for row in scored), key=_worth)
            report.rows += rows
            drawn += rows
            if out is not None:
                report.save(out)
            if not as_json:
                _show(rows)
        if chart is not None and drawn:
            plot_pareto(report.setup, drawn, chart)
    if as_json:
        write_json(report.as_json())


def _worth(row: "MethodRow") -> tuple[float, float]:
    """The best first: by F1 where there are answers, then by KL."""
    return 0.0 if row.f1 is None else -row.f1, row.kl


def _time(
    compared: "dict[str, Strategy]",
    geometry: str,
    device: str,
    dtype: str,
    lengths: list[int],
    packet: int,
    question: int,
    runs: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Random packets at the shape of a well-known model."""
    with quiet():
        import torch

        from kvrag.bench import open_geometry
        from kvrag.bench.methods import measure_method_times
        from kvrag.evaluation.report import write_atomically
        from kvrag.progress import progress_bar

        on = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        with Console(stderr=True).status("making the model"):
            loaded = open_geometry(geometry, on, torch.float32 if dtype == "float32" else torch.bfloat16)
            loaded.record_passes()
        report: dict[str, Any] = {
            "model": loaded.name,
            "device": loaded.device_name,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "date": str(date.today()),
            "rows": [],
        }
        with progress_bar("lengths", len(lengths)) as advance:
            for count in lengths:
                rows = measure_method_times(
                    loaded, compared, packets=count, packet=packet, question=question, runs=runs
                )
                report["rows"] += map(asdict, rows)
                if out is not None:
                    write_atomically(out, json.dumps(report, indent=2) + "\n")
                if not as_json:
                    _show_times(rows)
                advance(1)
    if as_json:
        write_json(report)


def _show(rows: "list[MethodRow]") -> None:
    """A table of the methods on one data set."""
    first = rows[0]
    title = f"{first.dataset}: {first.n} questions, {first.passages} passages, {first.template}; {first.timed} timed"
    table = Table("method", box=None, padding=(0, 1, 0, 0))
    for name in ("F1", "exact", "gap closed", "KL", "token 1", "computed", "TFLOP", "MiB read", "ms", "KiB a token"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            spread(row.f1, row.f1_low, row.f1_high, ".1f"),
            "-" if row.em is None else f"{row.em:.1f}",
            spread(row.gap_closed, row.gap_low, row.gap_high, ".2f"),
            f"{row.kl:.4f}",
            f"{row.first_token_agreement:.1%}",
            f"{row.computed_tokens:.0f} of {row.prompt_tokens:.0f}",
            f"{row.flops / _TERA:.4f}",
            f"{row.bytes_loaded / _MIB:.1f}",
            f"{row.ttft_ms:.1f}",
            f"{row.bytes_per_token / 1024:.1f}",
        )
    out = results()
    out.print(Text(printable(title), style="bold"), soft_wrap=True)
    out.print(table, "")


def _show_times(rows: "list[TimeRow]") -> None:
    first = rows[0]
    table = Table("method", box=None, padding=(0, 1, 0, 0))
    for name in ("computed", "TFLOP", "MiB read", "ms"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.computed_tokens:.0f} of {row.prompt_tokens}",
            f"{row.flops / _TERA:.3f}",
            f"{row.bytes_loaded / _MIB:.0f}",
            f"{row.ttft_ms:.2f}",
        )
    out = results()
    title = f"{first.model}: {first.packets} packets of {first.packet} tokens, question of {first.question}"
    out.print(Text(printable(title), style="bold"), soft_wrap=True)
    out.print(table, "")
