"""`kvrag ask`: a question to the documents of a store."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
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
    LoadingOption,
    ModelOption,
    NamespaceOption,
    RemoteOption,
    StoreOption,
    StrategyOption,
)
from kvrag.cli.terminal import printable, quiet, results, warn, write_json

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from kvrag.cli.answering import Answer

__all__ = ["ask"]

_FULL = "full-recompute"


@app.command()
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.", show_default=False)],
    store: StoreOption = Path(".kvrag"),
    model: ModelOption = "demo",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Chunks to retrieve.")] = 5,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 128,
    full: Annotated[bool, typer.Option("--full", help="Answer by full recompute too, and compare.")] = False,
    strategy: StrategyOption = "kv-packet",
    adapter: AdapterOption = "auto",
    codec: CodecOption = "raw",
    namespace: NamespaceOption = "default",
    device: DeviceOption = "auto",
    remote: RemoteOption = None,
    disk_bytes: DiskBytesOption = None,
    loading: LoadingOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer a question from the chunks that suit it best, attaching their packets.

    Model, strategy, adapter and namespace have to be those of the build.
    """
    place = StoreFolder(store)
    place.check_built()
    if not question.strip():
        raise typer.BadParameter("it is empty", param_hint="'QUESTION'")
    with quiet():
        from kvrag.cli.answering import answer_from

        options = {"strategy": strategy, "adapter": adapter, "codec": codec, "namespace": namespace, "device": device}
        kept = {"policy": place.policy, "remote": remote, "disk_bytes": disk_bytes}
        with open_built(place, model, loading=loading, **kept, **options) as (engine, index):
            nodes = index.as_retriever(similarity_top_k=top_k).retrieve(question)
            answers = [
                answer_from(nodes, question, index=index, engine=engine, strategy=chosen, max_new_tokens=max_new_tokens)
                for chosen in ([strategy, _FULL] if full else [strategy])
            ]
            known = answers[0].cached_tokens or answers[0].fell_back
            if engine.strategy.attaches and not known and not engine.policy.uses:
                warn("none of these chunks had a packet; build again with this model")
            sources = [_source(found) for found in nodes]
            if as_json:
                write_json(_told(question, engine.model.name, sources, answers))
            elif full:
                _compare(answers, sources)
            else:
                _show(answers[0], sources)
            engine.wait_for_builds()


def _source(found: "NodeWithScore") -> dict[str, Any]:
    metadata = found.node.metadata
    return {
        "file": metadata.get("file_path"),
        "page": metadata.get("page_label"),
        "score": found.score,
        "text": found.node.get_content(),
    }


def _ratio(answers: "list[Answer]") -> float:
    return answers[1].first_token_ms / answers[0].first_token_ms


def _told(question: str, model: str, sources: list[dict[str, Any]], answers: "list[Answer]") -> dict[str, Any]:
    told = {"question": question, "model": model, **asdict(answers[0]), "sources": sources}
    return told | {"full": asdict(answers[1]), "ratio": _ratio(answers)} if len(answers) > 1 else told


def _show(answer: "Answer", sources: list[dict[str, Any]]) -> None:
    out = results()
    out.print(Text(printable(answer.answer)), soft_wrap=True)
    _list(sources, out)
    out.print(
        f"{answer.cached_tokens} tokens cached, {answer.computed_tokens} computed; "
        f"first token after {answer.first_token_ms:.0f} ms" + _remarks(answer),
        soft_wrap=True,
    )


def _compare(answers: "list[Answer]", sources: list[dict[str, Any]]) -> None:
    out, table = results(), Table("", *(answer.strategy for answer in answers))
    table.add_row("answer", *(Text(printable(answer.answer)) for answer in answers))
    table.add_row("tokens cached", *(str(answer.cached_tokens) for answer in answers))
    table.add_row("tokens computed", *(str(answer.computed_tokens) for answer in answers))
    table.add_row("first token", *(f"{answer.first_token_ms:.0f} ms" for answer in answers))
    out.print(table)
    _list(sources, out)
    faster, slower = sorted(answers, key=lambda answer: answer.first_token_ms)
    out.print(
        f"first token: {slower.strategy} takes {_ratio([faster, slower]):.1f} times as long as {faster.strategy}"
        + _remarks(answers[0]),
        soft_wrap=True,
    )


def _remarks(answer: "Answer") -> str:
    """How it came about, where it was not simply from all packets."""
    remarks = ""
    if kept := [numbers for numbers in answer.kept if numbers is not None]:
        count = sum(map(len, kept)) if len(kept) == answer.prompts else "some"
        remarks += f"; answered from {count} of the packets"
    if answer.fell_back:
        remarks += "; doubtful from packets, so answered once more"
    return remarks


def _list(sources: list[dict[str, Any]], out: Console) -> None:
    out.print("\nSources")
    for source in sources:
        page = f", page {source['page']}" if source["page"] else ""
        out.print(Text(printable(f"  {source['score'] or 0:.2f}  {source['file']}{page}")), soft_wrap=True)
    out.print()
