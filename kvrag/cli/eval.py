"""`kvrag eval`: how good answers from packets are."""

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvrag.cli.app import app
from kvrag.cli.options import AdapterOption, CodecOption, DeviceOption, DtypeOption, ModelOption
from kvrag.cli.terminal import check_folders, printable, quiet, results, warn, write_json
from kvrag.errors import DataError, SettingsError

if TYPE_CHECKING:
    from kvrag.evaluation.report import QualityRow
    from kvrag.qa.topics import QuestionSet

__all__ = ["eval_app", "load_set", "quality", "spread"]

eval_app = typer.Typer(help="Measure what reuse costs in quality.")
app.add_typer(eval_app, name="eval")

_DTYPES = ("auto", "float32", "bfloat16")
_POOL = 1 << 20  # bytes; no packet stays on the device from one question to the next


@eval_app.command()
def quality(
    data: Annotated[
        list[str], typer.Option("--data", help="A file of questions, or needle or biography. Repeat for several.")
    ],
    model: ModelOption = "demo",
    adapter: AdapterOption = "auto",
    codec: CodecOption = "raw",
    methods: Annotated[str, typer.Option("--methods", help="Strategies to compare, with commas between.")] = (
        "kv-packet,no-recompute,full-recompute"
    ),
    passages: Annotated[
        list[int] | None, typer.Option("--passages", min=1, help="In a prompt; may be repeated. Default: 4.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", help="Of the prompts; may be repeated. Default: llama-index-compact."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions of each data set, at most.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of distractors, orders and resampling.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 24,
    backend: Annotated[str, typer.Option("--backend", help="How cases are run: auto, batched or engine.")] = "auto",
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Rows in memory together.")] = 16_384,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="JSON file, written after every data set.")
    ] = None,
    chart: Annotated[Path | None, typer.Option("--chart", dir_okay=False, help="Image file for a chart.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask every method the same questions among the same passages, and score the answers.

    Besides the methods asked for there are always no-recompute and full recompute, from which the gap closed is
    computed, and full recompute over the prompt tokenised as one text.
    """
    check_folders(out, chart)
    if dtype not in _DTYPES:
        raise SettingsError(f"expected a dtype out of {', '.join(_DTYPES)}, found {dtype!r}")
    sets = [load_set(source, limit, seed) for source in dict.fromkeys(data)]  # before what takes seconds to import
    with quiet(), ExitStack() as stack:
        from kvrag.cli.prompts import find_template
        from kvrag.engine import PacketEngine
        from kvrag.evaluation.backends import AnswererChoice, check_backend
        from kvrag.evaluation.cases import Window, make_cases
        from kvrag.evaluation.chart import plot
        from kvrag.evaluation.quality import measure, methods_from_names
        from kvrag.evaluation.report import QualityReport, Setup
        from kvrag.plotting import check_plotting
        from kvrag.progress import progress_bar
        from kvrag.sources import open_model
        from kvrag.store.codecs import codec_from_name

        codec_from_name(codec)
        check_backend(backend, codec)  # what is wrong shall not cost the loading of a model
        if chart is not None:
            check_plotting()
        compared = methods_from_names([name.strip() for name in methods.split(",") if name.strip()])
        templates = [find_template(name) for name in dict.fromkeys(template or ["llama-index-compact"])]
        with Console(stderr=True).status("loading the model"):
            folder = stack.enter_context(TemporaryDirectory(prefix="kvrag-eval-"))
            loaded = open_model(model, device, dtype)
            options = {"adapter": adapter, "codec": codec, "device_memory": _POOL}
            opened = PacketEngine.from_pretrained(loaded, store=folder, **options)
            engine = stack.enter_context(opened)
        window = Window(loaded, list(compared.values()), engine.adapter, max_new_tokens)
        answerer = AnswererChoice(engine, backend, max_new_tokens)
        report = QualityReport(Setup.of(engine), seed, max_new_tokens)
        for questions, chosen, count in product(sets, templates, dict.fromkeys(passages or [4])):
            cases = make_cases(questions, count, chosen, loaded, window, seed=seed, limit=limit)
            if not cases.cases:
                warn(f"no question of {questions.name} with {count} passages fits into {loaded.max_positions} tokens")
                continue
            with progress_bar(questions.name, len(cases.cases) * len(compared)) as advance:
                rows = measure(cases, compared, answerer, seed=seed, batch_tokens=batch_tokens, advance=advance)
            report.rows += rows
            if out is not None:
                report.save(out)
            if not as_json:
                _show(rows)
        if chart is not None and report.rows:
            plot(report, chart)
    if as_json:
        write_json(report.as_json())


def load_set(source: str, limit: int, seed: int) -> "QuestionSet":
    """The questions of a file, or generated ones."""
    from kvrag.qa.files import load_questions
    from kvrag.qa.generated import EVALUATION_SETS, TRAINING_DOMAINS, generate_questions

    made_here = source in (*EVALUATION_SETS, *TRAINING_DOMAINS)
    questions = generate_questions(source, limit, seed) if made_here else load_questions(source)
    if not len(questions):
        raise DataError(f"expected questions in {source}, found passages only; name a file with questions")
    return questions


def _show(rows: "list[QualityRow]") -> None:
    """A table of the methods on one data set, at most 100 columns wide."""
    first = rows[0]
    left_out = f", {first.dropped} left out" if first.dropped else ""
    title = f"{first.dataset}: {first.n} questions{left_out}, {first.passages} passages, {first.template}"
    table = Table("method", box=None, padding=(0, 1, 0, 0))
    for name in ("F1", "exact", "gap closed", "KL", "token 1", "computed"):
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
        )
    out = results()
    out.print(Text(printable(title), style="bold"), soft_wrap=True)
    out.print(table, "")


def spread(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """A value with its interval in brackets, where ? is an end without a bound."""
    if value is None:
        return "-"
    return f"{value:{form}} ({'-'.join('?' if end is None else f'{end:{form}}' for end in (low, high))})"
