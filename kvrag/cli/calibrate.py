"""`kvrag calibrate`: whether packets answer as full recompute does, on one's own documents."""

import random
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from kvrag.cli.app import app
from kvrag.cli.folder import StoreFolder
from kvrag.cli.opening import open_built
from kvrag.cli.options import (
    AdapterOption,
    CodecOption,
    DeviceOption,
    DiskBytesOption,
    ModelOption,
    NamespaceOption,
    RemoteOption,
    StoreOption,
    StrategyOption,
)
from kvrag.cli.question_file import read_questions
from kvrag.cli.terminal import note, one_line, printable, quiet, results, warn, write_json
from kvrag.errors import DataError, SettingsError

if TYPE_CHECKING:
    from llama_index.core import VectorStoreIndex

    from kvrag.engine import PacketEngine
    from kvrag.evaluation.calibration import Calibration
    from kvrag.evaluation.cases import Case

__all__ = ["calibrate"]

_SHOWN = 10
_CHUNKS_A_QUESTION = 2  # not every chunk makes the model write one
_COLUMN = 60  # characters of an answer in the table


@app.command()
def calibrate(
    store: StoreOption = Path(".kvrag"),
    questions: Annotated[
        Path | None,
        typer.Option("--questions", exists=True, dir_okay=False, help="File of questions; else the model writes some."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions to ask, at most.")] = 100,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Chunks to retrieve.")] = 5,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Share of equal first tokens, and F1 / 100, to reach.")
    ] = 0.9,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 24,
    model: ModelOption = "demo",
    strategy: StrategyOption = "kv-packet",
    adapter: AdapterOption = "auto",
    codec: CodecOption = "raw",
    namespace: NamespaceOption = "default",
    device: DeviceOption = "auto",
    remote: RemoteOption = None,
    disk_bytes: DiskBytesOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of questions and chunks.")] = 0,
    report: Annotated[Path | None, typer.Option("--report", dir_okay=False, help="Markdown file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare answers from packets with those of full recompute, on your own documents and questions.

    Nothing is added to the store. Model, strategy, adapter and namespace have to be those of the build. The exit code
    is 0 whatever the verdict.
    """
    place = StoreFolder(store)
    place.check_built()
    if report is not None and not report.absolute().parent.is_dir():
        raise SettingsError(f"expected a folder for {report}, found none at {report.absolute().parent}; make it first")
    asked = None if questions is None else read_questions(questions)
    with quiet():
        from kvrag.evaluation.calibrate import calibrate as compare
        from kvrag.evaluation.report import write_atomically
        from kvrag.progress import progress_bar

        options = {"strategy": strategy, "adapter": adapter, "codec": codec, "namespace": namespace, "device": device}
        with open_built(place, model, remote=remote, disk_bytes=disk_bytes, **options) as (engine, index):
            chosen = _written(engine, index, limit, seed) if asked is None else _some(asked, limit, seed)
            cases = _retrieve(engine, index, chosen, top_k, max_new_tokens)
            with progress_bar("comparing answers", len(cases)) as advance:
                found = compare(
                    engine,
                    cases,
                    strategy,
                    threshold=threshold,
                    max_new_tokens=max_new_tokens,
                    left_out=len(chosen) - len(cases),
                    advance=advance,
                )
        if engine.strategy.attaches and found.without_packets:
            warn("none of these chunks had a packet; build again with this model")
        if report is not None:
            write_atomically(report, found.as_markdown())
    if as_json:
        write_json(found.as_json())
    else:
        _show(found)


def _some(questions: list[str], limit: int, seed: int) -> list[str]:
    """All of them, or so many of them drawn at random, in their order."""
    if len(questions) <= limit:
        return questions
    return [questions[i] for i in sorted(random.Random(f"{seed}:order").sample(range(len(questions)), limit))]


def _written(engine: "PacketEngine", index: "VectorStoreIndex", limit: int, seed: int) -> list[str]:
    """Questions that the model writes about chunks of the collection."""
    from kvrag.cli.nodes import sample_texts
    from kvrag.evaluation.asking import write_questions
    from kvrag.progress import progress_bar

    chunks = sample_texts(index, _CHUNKS_A_QUESTION * limit, seed)
    with progress_bar("writing questions", limit) as advance:
        written = write_questions(engine, chunks, limit, seed, advance=advance)
    note(f"{engine.model.name} wrote {len(written)} questions about {len(chunks)} chunks; your own say more")
    return written


def _retrieve(
    engine: "PacketEngine", index: "VectorStoreIndex", questions: list[str], top_k: int, max_new_tokens: int
) -> "list[Case]":
    """The prompts that `kvrag ask` would send; of chunks that do not fit into one, the least similar are left out."""
    from llama_index.core.schema import MetadataMode

    from kvrag.cli.prompts import find_template
    from kvrag.evaluation.cases import Window, make_prompt

    window = Window(engine.model, [engine.strategy], engine.adapter, max_new_tokens)
    template, retriever = find_template("llama-index-compact"), index.as_retriever(similarity_top_k=top_k)
    cases: list[Case] = []
    for question in questions:
        texts = [
            found.node.get_content(metadata_mode=MetadataMode.LLM).strip() for found in retriever.retrieve(question)
        ]
        texts = [text for text in texts if text]
        tried = (make_prompt(template, engine.model, window, texts[:n], question) for n in range(len(texts), 0, -1))
        cases += islice(filter(window.fits, tried), 1)
    if not cases:
        raise DataError(
            f"expected questions that fit into {engine.model.max_positions} tokens together with a chunk, found none; "
            "ask shorter ones, lower --max-new-tokens, or build smaller chunks"
        )
    return cases


def _show(found: "Calibration") -> None:
    out, numbers = results(), found.numbers()
    style = {"good": "bold green", "bad": "bold red"}.get(found.verdict, "bold yellow")
    out.print(Text(printable(found.summary), style=style), soft_wrap=True)
    left_out = f" ({found.left_out} left out)" if found.left_out else ""
    doubtful = numbers["fell_back"]
    again = f", {doubtful:.0%} of the prompts in doubt and answered once more" if doubtful else ""
    out.print(
        f"{len(found.comparisons)} questions{left_out}: KL {numbers['kl']:.4f} nats per token of full recompute's "
        f"answers, {numbers['cached']:.0%} of the rows from packets{again}",
        soft_wrap=True,
    )
    table = Table("question", "packets", "full recompute", box=None, title="the answers that differ most")
    for name in ("F1", "KL"):
        table.add_column(name, justify="right")
    for c in (c for c in found.worst(_SHOWN) if c.f1 < 100 or not c.first_token_equal):
        table.add_row(*map(_cut, (c.question, c.packets, c.full)), f"{c.f1:.0f}", f"{c.kl:.3f}")
    if table.row_count:
        out.print("", table)


def _cut(text: str) -> Text:
    line = one_line(printable(text))
    return Text(line if len(line) <= _COLUMN else line[: _COLUMN - 1] + "\N{HORIZONTAL ELLIPSIS}")
