"""The prompt templates that training and evaluation use, and files of more."""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kvrag.errors import DataError, PromptError, SettingsError
from kvrag.qa.prompt_template import FilledPrompt, PromptTemplate

__all__ = [
    "HELD_OUT",
    "TEMPLATES",
    "FilledPrompt",
    "PromptTemplate",
    "dump_templates",
    "load_templates",
    "template_from_name",
]

TEMPLATES: tuple[PromptTemplate, ...] = (
    PromptTemplate("raw", (("", "{context}\n\nQuestion: {question}\nShort answer from the text above:"),)),
    PromptTemplate(
        "raw-lines",
        (("", "Texts:\n{context}\n\nTake the answer, a few words, from these texts.\nQ: {question}\nA:"),),
        separator="\n",
    ),
    PromptTemplate(
        "chat",
        (
            ("system", "You answer questions briefly, in words taken from the text that you are given."),
            ("user", "{context}\n\n{question}"),
        ),
    ),
    PromptTemplate(
        "chat-user-only",
        (("user", "Text:\n{context}\n\nAnswer in a few words of the text. {question}"),),
        separator=" ",
    ),
    PromptTemplate(
        "chat-rules",
        (
            ("system", "Reply with the shortest span of the documents that answers. No sentence, no explanation."),
            ("user", "DOCUMENTS\n\n{context}\n\nQUESTION\n\n{question}"),
        ),
        separator="\n---\n",
    ),
    PromptTemplate(
        "system-context",
        (
            ("system", "You know the following and nothing else:\n\n{context}\n\nGive short answers from it."),
            ("user", "{question}"),
        ),
    ),
    PromptTemplate(
        "system-context-lines",
        (
            ("system", "{context}\nEverything above is the knowledge base. Quote a few words of it as the answer."),
            ("user", "{question}"),
        ),
        separator="\n",
    ),
    PromptTemplate(
        "numbered",
        (
            ("system", "Answer from the numbered sources, as briefly as they allow."),
            ("user", "Sources:\n\n{context}\n\nQuestion: {question}"),
        ),
        passage="[{number}] {passage}",
    ),
    PromptTemplate(
        "headed",
        (("user", "{context}\n\nOne of these sources holds the answer. Copy it, briefly: {question}"),),
        separator="\n\n---\n\n",
        passage="Source {number}:\n{passage}",
    ),
    PromptTemplate(
        "bullets",
        (
            ("system", "Use the notes to answer. A name, a number or a phrase is enough."),
            ("user", "Notes:\n{context}\n\n{question}"),
        ),
        separator="\n",
        passage="- {passage}",
    ),
    PromptTemplate(
        "question-first",
        (("user", "Find a short answer to this question: {question}\n\nIt is in one of these texts:\n\n{context}"),),
    ),
    PromptTemplate(
        "question-twice",
        (("user", "{question}\n\nRead this first:\n\n{context}\n\nNow answer in a few words: {question}"),),
        separator="\n",
    ),
    PromptTemplate(
        "search",
        (
            ("system", "You search documents before you answer, and answer with a few words that you found."),
            ("user", "{question}"),
            ("assistant", "I search the documents for that."),
            ("user", "Search results:\n\n{context}\n\nAnswer my question from these results, briefly."),
        ),
        separator="\n---\n",
    ),
    PromptTemplate(
        "search-numbered",
        (
            ("user", "{question}"),
            ("assistant", 'search("{question}")'),
            ("user", "{context}\nThe tool has returned this. What is the short answer?"),
        ),
        separator="\n",
        passage="Result {number}: {passage}",
    ),
    PromptTemplate(
        "stuff",
        (("user", "Extracts from the documents:\n\n{context}\n\nQuestion: {question}\nConcise answer from them:"),),
    ),
    PromptTemplate(
        "stuff-chat",
        (
            ("system", "You assist with questions. Be concise, and say only what these extracts say.\n\n{context}"),
            ("user", "{question}"),
        ),
    ),
)
"""What training draws from; all ask for a short answer taken from the passages."""

HELD_OUT: PromptTemplate = PromptTemplate(
    "xml",
    (
        ("system", "Documents come as XML elements. Answer with a short extract of one of them."),
        ("user", "<documents>\n{context}\n</documents>\n\n<query>{question}</query>"),
    ),
    separator="\n",
    passage='<document index="{number}">\n{passage}\n</document>',
)
"""What training never sees and evaluation uses."""

_FILE = TypeAdapter(list[PromptTemplate])


def template_from_name(name: str) -> PromptTemplate:
    """One of `TEMPLATES`, or `HELD_OUT`.

    Raises:
        SettingsError: none has this name.
    """
    known = {template.name: template for template in (*TEMPLATES, HELD_OUT)}
    if name not in known:
        raise SettingsError(f"expected the name of a template: {', '.join(known)}; found {name!r}; pick one of these")
    return known[name]


def load_templates(path: str | Path) -> tuple[PromptTemplate, ...]:
    """The templates in a JSON file.

    It holds a list of `{"name": ..., "messages": [[role, content], ...], "separator": ..., "passage": ...}`, the last
    two of which may be missing.

    Raises:
        DataError: the file cannot be read, or a template in it is wrong.
    """
    try:
        templates = _FILE.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"expected a JSON file of templates at {path}, found: {error.strerror}; check it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"expected a list of templates with name and messages [[role, content], ...] in {path}, "
            f"found at {where}: {first['msg']}; correct it there"
        ) from error
    except PromptError as error:
        raise DataError(f"{path}: {error}") from error
    names = [template.name for template in templates]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        found = f"several called {twice[0]!r}" if twice else "none"
        raise DataError(f"expected templates with names of their own in {path}, found {found}; correct the file")
    return tuple(templates)


def dump_templates(templates: Iterable[PromptTemplate], path: str | Path) -> None:
    """Write templates as `load_templates` reads them.

    Raises:
        DataError: the file cannot be written.
    """
    text = json.dumps(_FILE.dump_python(list(templates), mode="json"), indent=2, ensure_ascii=False)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"expected to write templates to {path}, found: {error.strerror}; name a file in a folder that exists"
        ) from error
