"""Training of adapters and readers."""

from kvrag.training.distill import AdapterTask
from kvrag.training.parts import AdapterShape
from kvrag.training.reader import BARE, KVLINK, ReaderTask, companion_adapter
from kvrag.training.run import RunResult, run_training
from kvrag.training.settings import TrainingSettings
from kvrag.training.stored import stored_passages

__all__ = [
    "BARE",
    "KVLINK",
    "AdapterShape",
    "AdapterTask",
    "ReaderTask",
    "RunResult",
    "TrainingSettings",
    "companion_adapter",
    "run_training",
    "stored_passages",
]
