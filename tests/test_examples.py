"""Every example and every code block of README and docs runs, on a tiny model in the demo model's place."""

import difflib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from transformers import LlamaConfig

from .conftest import CHUNKS, TINY, build_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SERVED = "streaming_web_page"
"""Runs until it is stopped; it has tests of its own."""

BLOCKS = [
    (page, number, code)
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


APP = {path.stem: path for path in EXAMPLES if path.stem in ("existing_app", "three_line_diff")}


def load_example(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short_enough_to_read(path):
    for each in (path, *path.parent.glob(f"{path.stem}.html")):
        assert len(each.read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path not in APP.values() and path.stem != SERVED], ids=lambda path: path.name
)
def test_example_answers_from_packets(path, tiny_demo, completions, capsys):
    load_example(path).main()
    assert capsys.readouterr().out.strip()
    assert completions[0].usage.cached_tokens > 200  # its chunks; no earlier prompt has left anything to reuse


@pytest.fixture
def folders(tmp_path, hf_tokenizer, monkeypatch) -> tuple[str, str]:
    """A model and Markdown files, as an application has them."""
    monkeypatch.chdir(tmp_path)
    build_model(LlamaConfig(**TINY)).save_pretrained(tmp_path / "model")
    hf_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "corran.md").write_text("\n## ".join(CHUNKS))
    return str(tmp_path / "model"), str(tmp_path / "notes")


def test_an_application_adapts_in_three_lines():
    before, after = (APP[name].read_text().splitlines() for name in ("existing_app", "three_line_diff"))
    changes = [line for line in difflib.unified_diff(before, after, lineterm="", n=0) if line[0] in "+-"][2:]
    assert len([line for line in changes if line[0] == "-"]) == 3
    assert len([line for line in changes if line[0] == "+"]) == 3


@pytest.mark.slow
def test_the_existing_application_runs(folders, capsys):
    load_example(APP["existing_app"]).main(*folders, "When was the lighthouse lit?")
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_adapted_application_answers_from_packets(folders, completions, capsys):
    load_example(APP["three_line_diff"]).main(*folders, "When was the lighthouse lit?")
    assert capsys.readouterr().out.strip()
    assert completions[0].usage.cached_tokens > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run_from_top_to_bottom(page, tiny_demo):
    namespace: dict[str, object] = {}
    for of_page, number, code in BLOCKS:
        if of_page == page:
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
    engine = namespace.get("engine")
    if engine is not None:
        engine.close()


def test_readme_opens_with_what_a_newcomer_needs():
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "pip install" in head
    assert "```python" in head
    assert "benchmarks/results/" in head


def test_shell_lines_name_targets_and_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for block in re.findall(r"^```(?:console|bash|sh)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                words = line.removeprefix("$ ").split("#")[0].split()
                if words[:1] == ["make"]:
                    assert all(f"\n{target}:" in makefile for target in words[1:] if "=" not in target), line


def test_numbers_name_their_results_file():
    """A line that claims a speed names the file that holds it, and the file exists."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            if re.search(r"\d+(\.\d+)? times (sooner|faster)", line):
                names = re.findall(r"benchmarks/results/[\w.-]+\.json", line)
                assert names, f"{page.name}: {line}"
                assert all((ROOT / name).exists() for name in names), line
