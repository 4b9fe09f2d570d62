"""Batches by step number: the same number gives the same batch, whoever asks and whenever."""

import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from kvrag.errors import KVRagError, TrainingError
from kvrag.packed_rows import PromptTree
from kvrag.qa import Context
from kvrag.qa.prompt_template import PromptTemplate
from kvrag.training.examples import Batch, BatchSizes, Grower, micro_batches
from kvrag.training.mixture import Mixture
from kvrag.training.settings import TrainingSettings
from kvrag.training.task import Task

__all__ = ["Steps", "held_out_batches"]


class Steps(Dataset):
    """The micro-batches of every step, for one of several processes.

    Args:
        task: that lays prompts out.
        mixture: to draw contexts from.
        templates: to fill in, each as often as the others.
        settings: of the run.
        process: number of this one.
        processes: that share a step's contexts.

    Attributes:
        sizes: that batches are filled up to where they fit, smallest first.

    Raises:
        TrainingError: there are no templates.
    """

    def __init__(
        self,
        task: Task,
        mixture: Mixture,
        templates: Sequence[PromptTemplate],
        settings: TrainingSettings,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not templates:
            raise TrainingError("expected at least one template to fill in, found none; name one")
        self._task = task
        self._mixture = mixture
        self._templates = list(templates)
        self._settings = settings
        self._mine = range(process, settings.contexts, processes)
        self.sizes: Sequence[BatchSizes] = ()
        self._grower = Grower(task.model, settings.max_tokens, settings.max_answer_tokens)

    def __len__(self) -> int:
        return self._settings.steps

    def __getitem__(self, step: int) -> list[Batch] | list[list[PromptTree]] | KVRagError:
        """Micro-batches laid out, or only their prompts when the teacher has to answer them first.

        An error is returned: a loader that has it from another process would bury its message under a traceback.
        """
        first = step * self._settings.contexts
        try:
            return self.batches([first + number for number in self._mine])
        except KVRagError as error:
            return error

    def batches(self, numbers: Sequence[int]) -> list[Batch] | list[list[PromptTree]]:
        """The same for contexts by their numbers."""
        given = self._settings.answers == "given"
        trees: list[PromptTree] = []
        for number in numbers:
            template = self._templates[number % len(self._templates)]
            context = self._mixture.context(number)
            if not template.asks_last:  # every further question would be a whole prompt more
                context = Context(context.passages, context.questions[:1])
            trees += self._grower.trees(context, template, answers=given)
        groups = micro_batches(trees, self._settings.micro_tokens)
        return [self._pack(group) for group in groups] if given else groups

    def _pack(self, prompts: Sequence[PromptTree]) -> Batch:
        """Filled up to the smallest of the sizes that holds them, if one does."""
        batch = self._task.pack(prompts)
        found = BatchSizes.of(batch)
        sizes = next((sizes for sizes in self.sizes if sizes.hold(found)), None)
        return batch if sizes is None else self._task.pack(prompts, sizes)

    def sample(self, count: int) -> list[Batch]:
        """The batches of the first steps, where they are laid out ahead."""
        steps = (self[step] for step in range(min(count, len(self))))
        return [batch for step in steps if isinstance(step, list) for batch in step if isinstance(batch, Batch)]

    def loaded(self, first: int) -> Iterator[list]:
        """The steps from `first` on, made ahead by other processes where the model has a GPU of its own."""
        ahead = self._task.model.device.type == "cuda"
        workers = min(8, max(1, len(os.sched_getaffinity(0)) - 2)) if ahead else 0
        for batches in DataLoader(
            self,
            batch_size=None,
            sampler=range(first, len(self)),  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=2 if workers else None,
        ):
            if isinstance(batches, KVRagError):
                raise batches
            yield batches


def held_out_batches(steps: Steps, settings: TrainingSettings, process: int, processes: int) -> list:
    """This process's share of the held-out contexts."""
    with torch.random.fork_rng(devices=[]):
        return steps.batches(range(process, settings.held_out, processes))
