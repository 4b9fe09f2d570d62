"""Small questions, settings, tasks and runs that the tests of training share."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kvrag.model import LanguageModel
from kvrag.qa import Question, QuestionSet, Topic
from kvrag.qa.prompt_template import PromptTemplate
from kvrag.training import AdapterShape, RunResult, TrainingSettings, run_training
from kvrag.training.examples import Batch
from kvrag.training.task import Task

PLAIN = PromptTemplate("plain", (("", "{context}\n{question}"),), separator="\n")
"""A passage stands first."""

CHAT = PromptTemplate("chat", (("user", "Read:\n{context}\n\n{question}"),))
EVERYTHING = AdapterShape(header=3, trailer=2, link=2, writer_rank=4)
_WORDS = ("goat", "bell", "lamp", "rope", "tide", "salt", "moss", "fern", "dusk", "gate", "pear", "wren")


def toy_questions(name: str = "toy", topics: int = 12, passages: int = 3, *, answers: bool = True) -> QuestionSet:
    """Topics of passages of random words; a question about each, whose answer is its last word."""
    rng = random.Random(name)
    made = []
    for t in range(topics):
        texts = tuple(f"{t}.{p} " + " ".join(rng.choices(_WORDS, k=8)) for p in range(passages))
        asked = (
            Question(f"what of {t}.{p}?", (text.split()[-1],) if answers else (), (p,)) for p, text in enumerate(texts)
        )
        made.append(Topic(f"topic {t}", texts, tuple(asked)))
    return QuestionSet(name, tuple(made))


def toy_settings(**changes: Any) -> TrainingSettings:
    """Settings of a run that takes a moment."""
    small: dict[str, Any] = {"steps": 4, "contexts": 4, "questions": 2, "max_passages": 3, "max_tokens": 600}
    small |= {"held_out": 4, "max_answer_tokens": 4, "evaluate_every": 2, "checkpoint_every": 2}
    return TrainingSettings(**small | changes)


def toy_run(
    task: Task,
    folder: Path,
    *,
    questions: QuestionSet | None = None,
    templates: Sequence[PromptTemplate] = (PLAIN, CHAT),
    until: int | None = None,
    **changes: Any,
) -> RunResult | None:
    """Run it as far as it is asked for."""
    return run_training(
        task,
        [(toy_questions() if questions is None else questions, 1.0)],
        templates,
        toy_settings(**changes),
        folder,
        accelerator=Accelerator(cpu=True),
        describe={},
        until=until,
    )


def values(task: Task) -> dict[str, torch.Tensor]:
    """Of its parameters, as they are now."""
    return {name: p.detach().clone() for name, p in task.parameters.items()}


def equal(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether they are the same tensors, bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The log, without times."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


class ScriptedTask(Task):
    """One number that grows by its learning rate, and held-out losses that are told in advance; no model is computed.

    Args:
        model: to lay prompts out for.
        held_out: what each evaluation gives.
    """

    def __init__(self, model: LanguageModel, held_out: Sequence[float] = (1.0,) * 9) -> None:
        super().__init__(model)
        self.parameters = {"number": torch.nn.Parameter(torch.zeros(1))}
        self._held_out = iter(held_out)
        self.batches: list[Batch] = []

    @contextmanager
    def loss(self, batch: Batch) -> Iterator[torch.Tensor]:
        """The number's negative, or what was told."""
        count = len(batch.teacher.answer_ids)
        if torch.is_grad_enabled():
            self.batches.append(batch)
            yield -count * self.parameters["number"].sum()
        else:
            yield torch.tensor(count * next(self._held_out))

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor], trained_on: str) -> Path:
        """Write the number."""
        (folder / "number").write_text(str(float(tensors["number"])))
        return folder / "number"

    def load(self, path: Path) -> Mapping[str, torch.Tensor]:
        """Read it."""
        return {"number": torch.tensor([float(path.read_text())])}
