"""Every example and every code block of README and docs runs, on a tiny model in the demo model's place."""

import importlib.util
import re
from pathlib import Path

import pytest
from transformers import LlamaConfig

from kvrag.model import LanguageModel

from .conftest import TINY, build_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (page, number, code)
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.fixture
def tiny_demo(monkeypatch, hf_tokenizer, tmp_path):
    """The name "demo" opens a tiny random model, and relative paths lead into a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def open_tiny(source, device="auto"):
        assert source == "demo"
        config = LlamaConfig(**TINY | {"max_position_embeddings": 16384})
        return LanguageModel(build_model(config), hf_tokenizer, name="demo")

    monkeypatch.setattr("kvrag.engine.open_model", open_tiny)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(path, tiny_demo, capsys):
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert capsys.readouterr().out.strip()


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
