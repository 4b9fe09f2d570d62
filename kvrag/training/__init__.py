"""Training of adapters and readers."""

from kvrag.training.distill import AdapterShape, AdapterTask
from kvrag.training.reader import ReaderTask
from kvrag.training.run import RunResult, run_training
from kvrag.training.settings import TrainingSettings

__all__ = ["AdapterShape", "AdapterTask", "ReaderTask", "RunResult", "TrainingSettings", "run_training"]
