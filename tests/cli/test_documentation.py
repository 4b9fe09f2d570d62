"""docs/cli.md knows every command and option."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from kvrag.cli import app

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {child}")


def test_every_command_has_a_section_with_all_its_options():
    sections = dict(re.findall(r"^#+ `(kvrag[^`]*)`\n(.*?)(?=^#+ |\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL))
    told = {title.split(" [")[0].split(" FOLDER")[0].split(' "')[0]: text for title, text in sections.items()}
    for name, command in commands(typer.main.get_command(app), "kvrag"):
        assert name in told, f"docs/cli.md has no section on `{name}`"
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
                assert f"`{option}" in told[name], f"docs/cli.md does not mention {option} of `{name}`"
    assert set(told) == {name for name, _ in commands(typer.main.get_command(app), "kvrag")}
