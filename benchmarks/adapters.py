"""The ablation of adapters: train each form alike, then ask the same questions.

    python benchmarks/adapters.py --train squad_train.json.gz=3 --data squad_dev.json.gz --variant soft writer \
        --work out/adapters --out benchmarks/results/adapters-h200.json

Every variant is a training run in a folder of its own, so the same command goes on where it was stopped. A run that
`kvrag train adapter` has finished is asked as it is (`--run NAME=FOLDER`). Several variants may be trained side by side
on GPUs of their own (`CUDA_VISIBLE_DEVICES`): whoever comes last writes the file of all that are in `--work`.
"""

import argparse
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

from accelerate import Accelerator

from kvrag.adapter import Adapter
from kvrag.cli.prompts import find_template, training_templates
from kvrag.evaluation.batched_answerer import BatchedAnswerer
from kvrag.evaluation.cases import Window, make_cases
from kvrag.evaluation.quality import measure, methods_from_names
from kvrag.model import LanguageModel
from kvrag.qa import load_questions
from kvrag.qa.generated import EVALUATION_SETS, TRAINING_DOMAINS, generate_questions
from kvrag.qa.topics import QuestionSet
from kvrag.sources import open_model
from kvrag.training import AdapterShape, AdapterTask, TrainingSettings, run_training

SHAPES = {
    "soft": AdapterShape(writer_rank=0),
    "link": AdapterShape(header=0, trailer=0, link=4, writer_rank=0),
    "writer": AdapterShape(header=0, trailer=0),
    "soft+link": AdapterShape(link=4, writer_rank=0),
    "soft+writer": AdapterShape(),
    "soft+link+writer": AdapterShape(link=4),
    "soft16+writer": AdapterShape(header=16, trailer=16),
    "soft4+writer": AdapterShape(header=4, trailer=4),
    "soft+writer, no sink": AdapterShape(sink=0),
    "soft+writer, answers only": AdapterShape(),
}
QUESTION_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="*", default=[], help="files of questions, FILE=SHARE")
    parser.add_argument("--data", nargs="+", required=True, help="files of questions, or needle or biography")
    parser.add_argument("--domains", type=float, default=0.5, help="share of each generated domain")
    parser.add_argument("--label", default="", help="what to add to the variants' names, such as other data")
    parser.add_argument("--variant", nargs="*", choices=SHAPES, default=[])
    parser.add_argument("--run", nargs="*", default=[], help="finished runs to evaluate, NAME=FOLDER")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--passages", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--work", type=Path, default=Path("out/adapters"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = open_model(args.model)
    runs = {name: Path(folder) for name, _, folder in (spec.partition("=") for spec in args.run)}
    sets = training_sets(args.train, args.domains) if args.variant else []
    for variant in args.variant:
        name = f"{variant}{args.label}"
        runs[name] = args.work / name.replace(" ", "-")
        train(model, variant, sets, args, runs[name])
    for name, folder in runs.items():
        found = {"variant": name, **told(folder), "rows": ask(model, folder, args)}
        kept = args.work / name.replace(" ", "-") / "result.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    entries = [json.loads(path.read_text()) for path in sorted(args.work.glob("*/result.json"))]
    report = {
        "model": args.model,
        "device": model.device_name,
        "dtype": str(model.dtype)[6:],
        "date": date.today().isoformat(),
        "variants": entries,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def training_sets(specs: list[str], domains: float) -> list[tuple[QuestionSet, float]]:
    named = (spec.rpartition("=") for spec in specs)
    sets = [(load_questions(file), float(share)) for file, _, share in named]
    return sets + [(generate_questions(name, 1500, 0), domains) for name in TRAINING_DOMAINS]


def train(
    model: LanguageModel,
    variant: str,
    sets: list[tuple[QuestionSet, float]],
    args: argparse.Namespace,
    folder: Path,
) -> None:
    settings = TrainingSettings(
        steps=args.steps,
        contexts=args.contexts,
        questions=10,
        answers="given",
        micro_tokens=60_000,
        evaluate_every=-(-args.steps // 3),
    )
    shape, tail = SHAPES[variant], 0 if "answers only" in variant else QUESTION_TOKENS
    task = AdapterTask(model, shape, settings.seed, tail)
    described = {"shape": shape.model_dump(), "question_tokens": tail}
    run_training(task, sets, training_templates(), settings, folder, accelerator=Accelerator(), describe=described)


def told(folder: Path) -> dict:
    """What a finished run says about itself."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "seconds" in line]
    return {
        "data": json.loads((folder / "run.json").read_text())["data"],
        "steps": len(steps),
        "training_seconds": round(sum(line["seconds"] for line in steps), 1),
        "held_out_kl": round(min(line["held_out"] for line in log if "held_out" in line), 4),
    }


def ask(model: LanguageModel, folder: Path, args: argparse.Namespace) -> list[dict]:
    adapter = Adapter.load(folder / "adapter.safetensors")
    methods = methods_from_names(["kv-packet"])
    answerer = BatchedAnswerer(model, adapter, 24)
    rows = []
    for source in args.data:
        questions = generate_questions(source, 150, 1) if source in EVALUATION_SETS else load_questions(source)
        for count in args.passages:
            window = Window(model, list(methods.values()), adapter, 24)
            cases = make_cases(questions, count, find_template("llama-index-compact"), model, window, limit=args.limit)
            rows += [asdict(row) for row in measure(cases, methods, lambda _: answerer, batch_tokens=300_000)]
    return rows


if __name__ == "__main__":
    main()
