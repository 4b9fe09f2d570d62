"""What is trained: parameters, and a loss that is a sum over answer tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from kvrag.adapter import Adapter
from kvrag.errors import TrainingError
from kvrag.model import LanguageModel
from kvrag.packed_rows import PromptTree
from kvrag.strategies import Strategy
from kvrag.training.examples import Batch, BatchSizes
from kvrag.writer import Writer

__all__ = ["Task", "low_rank"]


class Task(ABC):
    """One kind of training over a frozen model.

    Attributes:
        model: whose own weights stay as they are.
        strategy: that lays out the student's prompts; None when there is no student.
        placeholder: an adapter of the right size, to lay prompts out by.
        parameters: what is trained, in float32, by name.
        soft: names of those with the learning rate of soft tokens.
        passes: through which a batch's gradients flow.
    """

    strategy: Strategy | None = None
    passes: int = 1
    placeholder: Adapter | None = None

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.soft: frozenset[str] = frozenset()

    @abstractmethod
    @contextmanager
    def loss(self, batch: Batch) -> Iterator[torch.Tensor]:
        """The batch's loss, summed over its answer tokens; go backward while the context is open."""
        yield torch.zeros(())

    @abstractmethod
    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor], trained_on: str) -> Path:
        """Write the result from the values of the parameters; returns the file or folder to use."""

    @abstractmethod
    def load(self, path: Path) -> Mapping[str, torch.Tensor]:
        """Values of the parameters in what an earlier run saved."""

    def begin_from(self, path: Path) -> None:
        """Begin with the values of an earlier run instead of fresh ones.

        Raises:
            TrainingError: it trained other parts, or parts of other sizes.
        """
        values = self.load(path)
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        found = {name: tuple(t.shape) for name, t in values.items()}
        if differing := sorted(name for name in shapes | found if shapes.get(name) != found.get(name)):
            name = differing[0]
            raise TrainingError(
                f"expected {shapes.get(name, 'nothing')} for {name} in {path}, found {found.get(name, 'nothing')}, and "
                f"{len(differing) - 1} more that differ; begin from a result of the same shape"
            )
        for name, p in self.parameters.items():
            p.data.copy_(values[name])

    def pack(self, prompts: Sequence[PromptTree], sizes: BatchSizes | None = None) -> Batch:
        """Lay prompts out for the teacher, and for the student if there is one; filled up to sizes if there are any."""
        return Batch.of(prompts, self.strategy, self.placeholder, sizes)


def low_rank(model: LanguageModel, rank: int, scale: float, seed: int) -> tuple[Writer, dict[str, torch.nn.Parameter]]:
    """A fresh LoRA over every linear layer, whose update is nothing at first, and its parameters by name.

    Args:
        model: on whose device the parameters live.
        rank: r.
        scale: of the update.
        seed: of `A`, drawn uniformly within one over the root of the layer's inputs, as LoRA's authors do.
    """
    rng = torch.Generator().manual_seed(seed)
    pairs: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    for path, module in model.linear_modules().items():
        inputs, outputs = int(module.in_features), int(module.out_features)  # pyright: ignore[reportArgumentType]
        down = (2 * torch.rand(rank, inputs, generator=rng) - 1) * inputs**-0.5
        pairs[path] = (
            torch.nn.Parameter(down.to(model.device)),
            torch.nn.Parameter(torch.zeros(outputs, rank, device=model.device)),
        )
    writer = Writer(pairs, scale)
    return writer, dict(writer.named_tensors())  # pyright: ignore[reportReturnType]
