"""Files of questions without answers."""

import json
from pathlib import Path
from typing import Any

from kvrag.errors import DataError

__all__ = ["read_questions"]

_FORMS = "one question a line, a JSON list, or JSON lines with the field question"


def read_questions(path: Path) -> list[str]:
    """The questions of a file, each once: one a line, a JSON list of them, or JSON lines with the field `question`.

    Raises:
        DataError: it cannot be read, or holds no question.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"expected a file of questions at {path}, found: {error.strerror}; check it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text in {path}, found something else; {_FORMS}") from error
    if text.lstrip().startswith("["):
        values = [(f"entry {n}", value) for n, value in enumerate(_loads(path, text, "the list"))]
    else:
        lines = [(f"line {n}", line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        values = [(where, _loads(path, line, where) if line.startswith("{") else line) for where, line in lines]
    questions = dict.fromkeys(question for where, value in values if (question := _question(path, where, value)))
    if not questions:
        raise DataError(f"expected questions in {path}, found none; write {_FORMS}")
    return list(questions)


def _loads(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"expected JSON in {path}, found at {where}: {error.msg}; correct it there") from error


def _question(path: Path, where: str, value: Any) -> str:
    asked = value.get("question") if isinstance(value, dict) else value
    if not isinstance(asked, str):
        raise DataError(f"expected a question in {path}, found at {where} something else; write {_FORMS}")
    return asked.strip()
