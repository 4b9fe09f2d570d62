"""Question sets of the Hugging Face hub."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from kvrag.errors import DataError
from kvrag.qa.schemas import Row, rows_to_topics
from kvrag.qa.topics import Topic

__all__ = ["read_hub"]


def read_hub(dataset: str) -> Iterator[Topic]:
    """The topics of a data set with SQuAD's columns: context, question, answers, and a title if there is one.

    Args:
        dataset: its name, and a split if it is not "train": "owner/name" or "owner/name:validation".

    Raises:
        DataError: the `datasets` library is missing, it does not find the data set, or the columns are others.
    """
    try:
        library: Any = import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"expected a file, a folder or a data set of the Hugging Face hub, found no file or folder {dataset!r}, "
            "and the library that reads the hub is not installed; correct the path, or run: pip install 'kvrag[train]'"
        ) from error
    name, _, split = dataset.partition(":")
    try:
        rows = library.load_dataset(name, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"expected a file, a folder or a data set of the Hugging Face hub, found none called {dataset!r}: {error}; "
            "correct the path or the name"
        ) from error
    yield from rows_to_topics(_rows(dataset, rows))


def _rows(dataset: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        try:
            yield Row.model_validate(row)
        except ValidationError as error:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"expected the columns context, question and answers (with a list text) in {dataset}, "
                f"found {found} in row {number}: {error.errors()[0]['msg']}; bring it into this form"
            ) from error
