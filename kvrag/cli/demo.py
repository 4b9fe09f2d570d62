"""`kvrag demo`: the same questions, with packets attached and by full recompute."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from kvrag.cli.app import app
from kvrag.cli.options import AdapterOption, DeviceOption, ModelOption, StrategyOption
from kvrag.cli.terminal import note, printable, quiet, results, write_json

if TYPE_CHECKING:
    from kvrag.demo.report import Answer, DemoReport, DemoRow

__all__ = ["demo"]


@app.command()
def demo(
    model: ModelOption = "demo",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Chunks to retrieve.")] = 8,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Ask only the first so many.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 32,
    strategy: StrategyOption = "kv-packet",
    adapter: AdapterOption = "auto",
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a small model questions about a fictional world, with packets attached and by full recompute.

    The model, the embedding and the collection come with the installation; what is made from them the first time (a
    minute or two) is kept in the cache folder. Both columns come from one LlamaIndex query engine over one Chroma
    collection, and differ in the strategy only.
    """
    with quiet():
        from kvrag.demo.run import open_demo, run_demo
        from kvrag.strategies import strategy_from_name

        strategy_from_name(strategy)  # a wrong name shall not cost the loading of a model
        note("opening the model, the collection and its packets (the first time takes a minute or two)")
        setup = open_demo(model, strategy=strategy, adapter=adapter, device=device)
        with setup.engine:
            name = setup.engine.model.name
            trained = "without an adapter" if setup.engine.adapter is None else "with a trained adapter"
            note(f"{name} on {setup.engine.model.device}, {strategy} {trained}")
            if setup.packets_built:
                note(f"built {setup.packets_built} packets in {setup.build_seconds:.0f} s")
            report = run_demo(
                setup,
                strategy=strategy,
                top_k=top_k,
                questions=questions,
                max_new_tokens=max_new_tokens,
                show=(lambda row: None) if as_json else _show,
            )
    if as_json:
        write_json(report.as_json())
    else:
        _summarise(report, adapter)


def _show(row: "DemoRow") -> None:
    out, table = results(), Table.grid(padding=(0, 2))
    out.print(Text(f"\n{row.question}", style="bold"), Text(f"({row.reference})", style="dim"))
    for name, answer in (("packets", row.packet), ("full recompute", row.full)):
        table.add_row(f"  {name}", f"{answer.ttft_ms:,.0f} ms", _tokens(answer), Text(printable(answer.answer)))
    out.print(table)
    out.print(f"  first token {row.ratio:.1f} times sooner", style="green")


def _tokens(answer: "Answer") -> str:
    return f"{answer.cached_tokens} cached + {answer.computed_tokens} computed"


def _summarise(report: "DemoReport", adapter: str) -> None:
    out = results()
    out.print(
        f"\n{len(report.rows)} questions, top {report.top_k} chunks each, {report.model} in {report.dtype} on "
        f"{report.device}: the first token comes [bold green]{report.ttft_ratio_median:.1f} times sooner[/] "
        "with packets (median)."
    )
    out.print(
        f"Right answers: {report.packet_right} with packets, {report.full_right} by full recompute "
        "(the reference stands in the answer)."
    )
    if report.adapter == "untrained":
        out.print(
            "Packets are untrained here: chunks encoded alone do not know each other, so answers from them are weaker. "
            "That is what a trained adapter repairs" + ("; leave out --adapter none." if adapter == "none" else ".")
        )
