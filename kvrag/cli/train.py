"""`kvrag train`: an adapter for a model, or a reader for a small one."""

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kvrag.cli.app import app
from kvrag.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, NamespaceOption
from kvrag.cli.terminal import quiet, warn
from kvrag.cli.training_options import (
    AnswersOption,
    AuthorOption,
    CheckpointingOption,
    ContextsOption,
    DataOption,
    EvaluateOption,
    FromOption,
    GraphsOption,
    InitOption,
    MicroOption,
    OutOption,
    PassagesOption,
    PatienceOption,
    QuestionsOption,
    RateOption,
    SeedOption,
    StepsOption,
    TemplateOption,
    training_settings,
)
from kvrag.cli.training_run import start_training, tell
from kvrag.errors import SettingsError

__all__ = ["Pattern", "adapter", "reader"]


class Pattern(StrEnum):
    """How chunks are read in training a reader, besides with full attention."""

    full = "full"
    bare = "bare"
    kvlink = "kvlink"
    kv_packet = "kv-packet"


_train = typer.Typer(help="Train an adapter for a model, or a reader for a small one.")
app.add_typer(_train, name="train")


@_train.command()
def adapter(
    out: OutOption,
    data: DataOption = None,
    stored: FromOption = None,
    namespace: NamespaceOption = "default",
    model: ModelOption = "demo",
    soft: Annotated[int, typer.Option("--soft", min=0, max=256, help="Soft tokens on either side of a chunk.")] = 8,
    link: Annotated[int, typer.Option("--link", min=0, max=256, help="Soft tokens computed behind every packet.")] = 0,
    writer_rank: Annotated[
        int, typer.Option("--writer-rank", min=0, max=1024, help="LoRA while chunks are encoded.")
    ] = 16,
    sink: Annotated[int, typer.Option("--sink", min=0, max=16, help="Tokens a chunk is encoded behind, dropped.")] = 1,
    question_tokens: Annotated[
        int, typer.Option("--question-tokens", min=0, help="At the end of questions, learnt from like answers.")
    ] = 24,
    labels: Annotated[float, typer.Option("--labels", min=0, help="Weight of given answers beside the teacher.")] = 0.0,
    answers: AnswersOption = "teacher",
    steps: StepsOption = 1500,
    contexts: ContextsOption = 16,
    questions: QuestionsOption = 12,
    passages: PassagesOption = "1-12",
    rate: RateOption = 1e-3,
    soft_rate: Annotated[float, typer.Option("--soft-rate", help="Highest learning rate of soft tokens.")] = 5e-3,
    template: TemplateOption = None,
    init: InitOption = None,
    author: AuthorOption = "",
    evaluate_every: EvaluateOption = 50,
    patience: PatienceOption = 0,
    micro_tokens: MicroOption = 0,
    gradient_checkpointing: CheckpointingOption = False,
    cuda_graphs: GraphsOption = True,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Teach packets to answer as full recompute does, from the model's own answers.

    With --from the model asks and answers about the chunks of a store, so that packets fit one's own documents better.

    Run the same command again to go on with a run that was interrupted. Several GPUs: `accelerate launch -m kvrag train
     adapter ...`.
    """
    if stored is None and not data:
        raise SettingsError("expected --data with what to train on, or --from with a store of packets, found neither")
    if labels and answers != "given":
        raise SettingsError("expected --answers given with --labels, found the teacher's answers; give both or neither")
    of_store = {} if data else {"longer_chunks": 0.0, "metadata": 0.0}  # its chunks are as long as they will be
    settings = training_settings(
        **of_store,
        answers=answers,
        steps=steps,
        contexts=contexts,
        questions=questions,
        passages=passages,
        learning_rate=rate,
        soft_learning_rate=soft_rate,
        evaluate_every=evaluate_every,
        patience=patience,
        gradient_checkpointing=gradient_checkpointing,
        cuda_graphs=cuda_graphs,
        seed=seed,
    )
    with quiet():
        from kvrag.training import AdapterShape, AdapterTask

        shape = AdapterShape(header=soft, trailer=soft, link=link, writer_rank=writer_rank, sink=sink)
        result = start_training(
            lambda opened: AdapterTask(opened, shape, seed, question_tokens, labels),
            {"shape": shape.model_dump(), "question_tokens": question_tokens, "labels": labels},
            data=data or [],
            stored=stored,
            namespace=namespace,
            templates=template,
            init=init,
            author=author,
            own_answers=True,
            settings=settings,
            micro_tokens=micro_tokens,
            model=model,
            out=out,
            device=device,
            dtype=dtype,
        )
    if result is not None:
        tell(result, as_json)


@_train.command()
def reader(
    data: DataOption,
    out: OutOption,
    model: ModelOption = "demo-base",
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA.")] = 16,
    pattern: Annotated[
        Pattern, typer.Option("--pattern", help="How else than with full attention chunks are read in training.")
    ] = Pattern.bare,
    share: Annotated[float, typer.Option("--share", min=0, max=1, help="Of the loss, taken with that pattern.")] = 0.5,
    agreement: Annotated[float, typer.Option("--agreement", min=0, help="Weight of what both ways differ by.")] = 0.0,
    steps: StepsOption = 1500,
    contexts: ContextsOption = 16,
    questions: QuestionsOption = 12,
    passages: PassagesOption = "1-12",
    rate: RateOption = 1e-3,
    template: TemplateOption = None,
    init: InitOption = None,
    author: AuthorOption = "",
    evaluate_every: EvaluateOption = 50,
    patience: PatienceOption = 0,
    micro_tokens: MicroOption = 0,
    gradient_checkpointing: CheckpointingOption = False,
    cuda_graphs: GraphsOption = True,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a LoRA that answers questions about several passages, from given answers.

    The result is a folder in peft's format, and `merged`, a folder with the whole model that `--model` takes; with the
    patterns kvlink and kv-packet also `adapter.safetensors`, which was learnt along with it.
    """
    settings = training_settings(
        answers="given",
        steps=steps,
        contexts=contexts,
        questions=questions,
        passages=passages,
        learning_rate=rate,
        evaluate_every=evaluate_every,
        patience=patience,
        gradient_checkpointing=gradient_checkpointing,
        cuda_graphs=cuda_graphs,
        seed=seed,
    )
    with quiet():
        from kvrag.training import BARE, KVLINK, AdapterShape, ReaderTask

        if agreement and pattern is Pattern.full:
            raise SettingsError("expected a --pattern to agree with for --agreement, found full, which is one way only")
        shapes = {Pattern.bare: BARE, Pattern.kvlink: KVLINK, Pattern.kv_packet: AdapterShape()}
        shape = shapes.get(pattern, BARE)
        part = share if pattern in shapes else 0.0
        described = {"pattern": pattern.value, "share": part, "agreement": agreement}
        result = start_training(
            lambda opened: ReaderTask(opened, rank, seed, part, shape, agreement),
            described | {"rank": rank, "shape": shape.model_dump()},
            data=data or [],
            templates=template,
            init=init,
            author=author,
            own_answers=False,
            settings=settings,
            micro_tokens=micro_tokens,
            model=model,
            out=out,
            device=device,
            dtype=dtype,
        )
        if result is not None:
            _merge(result.path, model, out, device, dtype)
    if result is not None:
        tell(result, as_json)


def _merge(reader_folder: Path, model: str, out: Path, device: str, dtype: str) -> None:
    """Write the whole model with its reader, where the model is a folder of this machine, and the adapter for it."""
    from kvrag.demo.weights import demo_folder
    from kvrag.merging import merge_reader
    from kvrag.sources import DEMO_MODELS, open_model
    from kvrag.training import companion_adapter

    base = demo_folder(model) if model in DEMO_MODELS else Path(model)
    if not base.is_dir():
        warn(f"{model} is no folder, so the reader was not merged; peft loads it beside the model")
        return
    merged, fresh = out / "merged", out / ".merged"
    shutil.rmtree(fresh, ignore_errors=True)
    merge_reader(base, reader_folder, fresh)
    shutil.rmtree(merged, ignore_errors=True)  # not before another one stands
    fresh.rename(merged)
    if adapter := companion_adapter(reader_folder, open_model(str(merged), device, dtype)):
        adapter.save(out / "adapter.safetensors")
