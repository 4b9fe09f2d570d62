"""Question sets from files, folders and the Hugging Face hub."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ValidationError

from kvrag.errors import DataError
from kvrag.qa.folder import read_folder
from kvrag.qa.hub import read_hub
from kvrag.qa.schemas import SCHEMAS, Record, Row, rows_to_topics
from kvrag.qa.topics import QuestionSet, Topic

__all__ = ["load_questions"]

_GZIP = b"\x1f\x8b"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_SUFFIXES = frozenset({".csv", ".gz", ".json", ".jsonl", ".md", ".parquet", ".txt", ".zip"})


def load_questions(source: str | Path, *, name: str | None = None) -> QuestionSet:
    """Read a question set.

    Files are JSON or JSON lines, plain or gzipped, in one of these forms, told by their fields: SQuAD's articles
    (`data`), SQuAD's rows (`context`, `question`, `answers`), questions with marked documents (`question`, `answers`,
    `docs`), conversations with retrieved passages (`conversation_id`, `turn`, `input`, `contexts`). A folder's .txt and
    .md files are passages without questions. Any other name is looked up on the Hugging Face hub.

    Args:
        source: of a file or a folder, or "owner/name" or "owner/name:split" of a data set.
        name: of the set in reports; by default the file's or folder's.

    Raises:
        DataError: there is no such thing, it cannot be read, or nothing is in it.
    """
    path = Path(source)
    if path.is_dir():
        topics = tuple(read_folder(path))
        wanted = "a .txt or .md file with text"
    elif path.exists():
        topics = tuple(_read_file(path))
        wanted = "a record with passages"
    elif isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.suffix in _SUFFIXES:
        raise DataError(f"expected a file or a folder at {path}, found nothing there; correct the path")
    else:
        topics = tuple(read_hub(source))
        wanted = "a row with a context"
    if not topics:
        raise DataError(f"expected {wanted} in {source}, found none; name another source")
    stem = Path(path.absolute().name.removesuffix(".gz")).stem if path.is_file() else path.absolute().name
    return QuestionSet(name or stem, topics)


def _read_file(path: Path) -> Iterator[Topic]:
    rows: list[Row] = []
    for record in _records(path):
        match record:
            case Row():
                rows.append(record)
            case Record():
                yield from record.topics()
    yield from rows_to_topics(rows)


def _records(path: Path) -> Iterator[BaseModel]:
    """The records of a file: its lines, or what a file that is one JSON value holds."""
    try:
        with ExitStack() as stack:
            yield from _parse(path, _open(path, stack))
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text in {path}, found something else; it is no file of questions") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"expected to read {path}, found: {error}; check the file") from error


def _open(path: Path, stack: ExitStack) -> TextIO:
    """A file as text, unpacked on the way if its first bytes say so."""
    raw = stack.enter_context(path.open("rb"))
    packed = raw.peek(2).startswith(_GZIP)
    unpacked: Any = stack.enter_context(gzip.GzipFile(fileobj=raw)) if packed else raw
    return stack.enter_context(io.TextIOWrapper(unpacked, encoding="utf-8-sig"))


def _parse(path: Path, lines: TextIO) -> Iterator[BaseModel]:
    schema = None
    for where, record in _values(path, lines):
        schema = schema or _schema(path, where, record)
        yield _check(path, where, schema, record)


def _values(path: Path, lines: TextIO) -> Iterator[tuple[str, Any]]:
    """Records as JSON gives them, and where they stand."""
    number, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not first:
        raise DataError(f"expected JSON in {path}, found an empty file; name another")
    try:
        value = json.loads(first)
    except json.JSONDecodeError:
        value = _loads(path, first + lines.read(), number)
    if isinstance(value, dict) and "data" not in value:
        yield f"line {number}", value
        for n, line in enumerate(lines, number + 1):
            if line.strip():
                yield f"line {n}", _loads(path, line, n)
        return
    records = value["data"] if isinstance(value, dict) else value
    if not isinstance(records, list) or lines.read().strip():
        raise DataError(f"expected one list of records in {path}, found more or other things; {_forms()}")
    yield from ((f"record {n}", record) for n, record in enumerate(records))


def _loads(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"expected JSON in {path}, found at line {line + error.lineno - 1}: {error.msg}; correct it there"
        ) from error


def _schema(path: Path, where: str, record: Any) -> type[BaseModel]:
    fields = set(record) if isinstance(record, dict) else set()
    for schema, needed in SCHEMAS.items():
        if needed <= fields:
            return schema
    found = f"the fields {', '.join(sorted(fields))}" if fields else f"{type(record).__name__} without fields"
    raise DataError(f"expected a record of questions in {path}, found {found} at {where}; {_forms()}")


def _check(path: Path, where: str, schema: type[BaseModel], record: Any) -> BaseModel:
    try:
        return schema.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"expected records like the first one in {path}, found at {where}, {field or 'all of it'}: {first['msg']}; "
            "correct it there"
        ) from error


def _forms() -> str:
    return "a record has the fields " + ", or ".join(" ".join(sorted(fields)) for fields in SCHEMAS.values())
