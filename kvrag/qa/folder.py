"""A folder of texts as topics without questions."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kvrag.errors import DataError
from kvrag.qa.topics import Topic

__all__ = ["PASSAGE_CHARS", "cut_passages", "read_folder"]

PASSAGE_CHARS = 900
"""A passage of a text has about so many characters, and no more."""

_PARAGRAPH = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|(?<=[。！？])")
_WORD = re.compile(r"\s+")


def read_folder(folder: Path) -> Iterator[Topic]:
    """A topic for every .txt and .md file below a folder, by path; hidden ones are left out.

    Raises:
        DataError: a file cannot be read, or is not UTF-8.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in {".txt", ".md"}:
                continue
            passages = cut_passages(_read(path))
            if passages:
                yield Topic(path.relative_to(folder).as_posix(), passages)


def cut_passages(text: str, chars: int = PASSAGE_CHARS) -> tuple[str, ...]:
    """Different passages of at most `chars` characters: paragraphs in a row, long ones cut at the ends of sentences.

    A sentence that is too long is cut between words, and a word that is too long anywhere.
    """
    passages: list[str] = []
    for paragraph in _PARAGRAPH.split(text.strip()):
        joined = f"{passages[-1]}\n\n{paragraph}" if passages else paragraph
        if len(joined) <= chars:
            passages[-1:] = [joined]
        else:
            passages += _cut(paragraph, chars, [_SENTENCE, _WORD])
    return tuple(dict.fromkeys(stripped for passage in passages if (stripped := passage.strip())))


def _cut(text: str, chars: int, ends: list[re.Pattern[str]]) -> list[str]:
    """A text in parts of at most `chars` characters, each as long as the first kind of end that fits allows."""
    if len(text) <= chars:
        return [text]
    if not ends:
        return [text[start : start + chars] for start in range(0, len(text), chars)]
    parts, start, last = [], 0, 0
    for end in [*(found.end() for found in ends[0].finditer(text)), len(text)]:
        if len(text[start:end].rstrip()) > chars:
            parts += _cut(text[start:last].strip(), chars, ends[1:])
            start = last
        last = end
    parts += _cut(text[start:].strip(), chars, ends[1:])
    return [part for part in parts if part]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"expected to read {path}, found: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 text in {path}, found something else at byte {error.start}; convert it or move it away"
        ) from error
