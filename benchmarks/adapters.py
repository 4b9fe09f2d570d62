"""The ablation of adapters: train each form alike, then ask the same questions.

    python benchmarks/adapters.py --train squad_train.json.gz=3 --data squad_dev.json.gz --variant soft --out out.json

Several variants may be trained side by side on GPUs of their own (`CUDA_VISIBLE_DEVICES`), with the same `--out`.
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
from kvrag.qa import load_questions
from kvrag.qa.generated import EVALUATION_SETS, TRAINING_DOMAINS, generate_questions
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="*", default=[], help="files of questions, FILE=SHARE")
    parser.add_argument("--data", nargs="+", required=True, help="files of questions, or needle or biography")
    parser.add_argument("--domains", type=float, default=0.5, help="share of each generated domain")
    parser.add_argument("--label", default="", help="what to add to the variant's name, such as other data")
    parser.add_argument("--variant", choices=SHAPES, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--passages", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--work", type=Path, default=Path("out/adapters"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = open_model(args.model)
    named = (spec.rpartition("=") for spec in args.train)
    sets = [(load_questions(file), float(share)) for file, _, share in named]
    sets += [(generate_questions(name, 1500, 0), args.domains) for name in TRAINING_DOMAINS]
    settings = TrainingSettings(
        steps=args.steps,
        contexts=args.contexts,
        questions=10,
        answers="given",
        micro_tokens=60_000,
        evaluate_every=-(-args.steps // 5),
    )
    shape = SHAPES[args.variant]
    name = f"{args.variant}{args.label}"
    question_tokens = 0 if "answers only" in args.variant else 24
    result = run_training(
        AdapterTask(model, shape, settings.seed, question_tokens),
        sets,
        training_templates(),
        settings,
        args.work / name.replace(" ", "-"),
        accelerator=Accelerator(),
        describe={"shape": shape.model_dump(), "question_tokens": question_tokens},
    )
    assert result is not None
    adapter = Adapter.load(result.path)
    methods = methods_from_names(["kv-packet"])
    answerer = BatchedAnswerer(model, adapter, 24)
    rows = []
    for source in args.data:
        questions = generate_questions(source, 150, 1) if source in EVALUATION_SETS else load_questions(source)
        for count in args.passages:
            window = Window(model, list(methods.values()), adapter, 24)
            cases = make_cases(questions, count, find_template("llama-index-compact"), model, window, limit=args.limit)
            rows += [asdict(row) for row in measure(cases, methods, lambda _: answerer, batch_tokens=50_000)]
    entry = {
        "variant": name,
        "steps": args.steps,
        "contexts": args.contexts,
        "training_seconds": round(result.trained.seconds, 1),
        "held_out_kl": round(min(loss for _, loss in result.trained.held_out), 4),
        "rows": rows,
    }
    report = json.loads(args.out.read_text()) if args.out.exists() else {"variants": []}
    report |= {
        "model": model.name,
        "device": model.device_name,
        "dtype": str(model.dtype)[6:],
        "date": date.today().isoformat(),
    }
    report["variants"] = [v for v in report["variants"] if v["variant"] != name] + [entry]
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
