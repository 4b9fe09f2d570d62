"""Notebooks are kept as a run from top to bottom leaves them; `make notebooks` runs them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def text_of(output: dict[str, Any]) -> str:
    parts = [output.get("text", ""), *output.get("data", {}).values()]
    return "\n".join("".join(part) for part in parts)


def test_every_cell_was_run_once_and_in_order(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_no_output_is_an_error_a_warning_or_names_a_machine(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            text = "" if "image/png" in output.get("data", {}) else text_of(output)
            assert not re.search(r"Warning|(?<![\w.])/(home|root|tmp|work|usr|Users)/|site-packages", text), text


def test_pictures_are_kept(path):
    assert any("image/png" in output.get("data", {}) for cell in code_cells(path) for output in cell["outputs"])


def test_results_files_it_reads_exist(path):
    source = "".join(line for cell in code_cells(path) for line in cell["source"])
    for name in re.findall(r'results / "([^"]+)"', source):
        assert (ROOT / "benchmarks" / "results" / name).exists(), name
    prose = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    for name in re.findall(r"benchmarks/results/[\w.-]+\.json", prose):
        assert (ROOT / name).exists(), name
