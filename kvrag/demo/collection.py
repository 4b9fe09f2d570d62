"""The demo's collection: a fictional world, so that no model knows the answers beforehand."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Question", "Section", "load_questions", "load_sections"]

_FOLDER = Path(__file__).parent / "collection"


@dataclass(frozen=True)
class Section:
    """One chunk of the collection.

    Attributes:
        name: `document#heading`.
        text: of the chunk, its heading included.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question about the collection.

    Attributes:
        question: as a user would ask it.
        reference: the answer, as it stands in the section.
        source: the section's name.
    """

    question: str
    reference: str
    source: str


@cache
def load_sections() -> tuple[Section, ...]:
    """All sections, in the order of their documents."""
    sections: list[Section] = []
    for path in sorted(_FOLDER.glob("*.md")):
        for text in re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if text.startswith("## "):
                heading = text.splitlines()[0].removeprefix("## ").strip()
                sections.append(Section(f"{path.stem}#{heading}", text.strip()))
    return tuple(sections)


@cache
def load_questions() -> tuple[Question, ...]:
    """The questions with their reference answers."""
    data = json.loads((_FOLDER / "questions.json").read_text(encoding="utf-8"))
    return tuple(Question(**entry) for entry in data["questions"])
