"""Changes to an application as a page of the docs shows them, in a block of lines with - and + in front."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def documented_changes(page: str) -> list[tuple[str, str]]:
    """Old and new lines of every hunk on a page; hunks are separated by empty lines."""
    (block,) = re.findall(r"^```diff\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    hunks = [hunk.splitlines() for hunk in block.strip("\n").split("\n\n")]
    assert all(line[0] in " -+" for lines in hunks for line in lines)
    return [
        tuple("\n".join(line[1:] for line in lines if line[0] in kept) + "\n" for kept in (" -", " +"))
        for lines in hunks
    ]


def changed_as_documented(application: str, page: str) -> str:
    """The application after the changes, each of which has one place in it."""
    for old, new in documented_changes(page):
        assert application.count(f"\n{old}") == 1, f"docs/{page} changes lines that are not there once: {old}"
        application = application.replace(f"\n{old}", f"\n{new}")
    return application
