"""`kvrag eval quality`: from files of questions to tables, JSON and charts."""

import json
import sys
from pathlib import Path

import pytest

from kvrag import plotting
from tests.cli.collections_of_files import BELLS, BOXES, BREAD, GOATS, LAMPS
from tests.cli.test_errors import assert_fails


def record(question: str, answer: str, *passages: str) -> dict:
    """A question about the first passage."""
    docs = [{"text": text, "gold": text == passages[0]} for text in passages]
    return {"question": question, "answers": [answer], "docs": docs}


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "harbour.jsonl"
    records = [
        record("How many goats does the night boat carry?", "twelve", GOATS, BELLS, LAMPS),
        record("What was the school bell cast from?", "two sunken anchors", BELLS, BOXES, BREAD),
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def quality(kvrag, model, data):
    def run(*options: object):
        common = ("--model", model, "--data", data, "--max-new-tokens", 4, "--passages", 2)
        return kvrag("eval", "quality", *common, *options)

    return run


def test_a_table_of_every_method(quality):
    result = quality()
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "harbour: 2 questions, 2 passages, llama-index-compact"
    names = [line.split()[0] for line in lines[2:] if line.strip()]
    assert names == ["kv-packet", "no-recompute", "full-recompute", "full-recompute-natural"]
    assert max(map(len, lines)) <= 100


def test_json_is_one_object_and_the_file_holds_the_same(quality, tmp_path):
    out = tmp_path / "report.json"
    result = quality("--json", "--out", out, "--methods", "no-recompute", "--passages", 3, "--template", "raw")
    told = json.loads(result.stdout)
    assert json.loads(out.read_text()) == told
    assert {row["template"] for row in told["rows"]} == {"raw"}
    assert [row["passages"] for row in told["rows"]] == [2, 2, 2, 3, 3, 3]
    assert (told["seed"], told["max_new_tokens"], told["adapter"]) == (0, 4, "untrained")
    assert set(told) == {"model", "device", "dtype", "adapter", "codec", "date", "seed", "max_new_tokens", "rows"}


def test_a_killed_run_keeps_what_it_had(quality, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    from kvrag.evaluation import quality as module

    measure, calls = module.measure, []

    def once(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(module, "measure", once)
    assert quality("--out", out, "--passages", 3).exit_code == 130
    assert {row["passages"] for row in json.loads(out.read_text())["rows"]} == {2}


def test_generated_sets_and_dtypes(kvrag, model):
    common = ("--model", model, "--max-new-tokens", 2, "--limit", 1, "--passages", 2, "--json")
    result = kvrag("eval", "quality", "--data", "needle", "--dtype", "bfloat16", *common)
    told = json.loads(result.stdout)
    assert told["dtype"] == "bfloat16"
    assert {(row["dataset"], row["n"]) for row in told["rows"]} == {("needle", 1)}


def test_prompts_that_never_fit_are_a_warning(quality):
    result = quality("--max-new-tokens", 4090)
    assert result.exit_code == 0
    assert "no question of harbour with 2 passages fits into 4096 tokens" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--methods", "magic"], 2, "expected a strategy out of"),
        (["--template", "runes"], 2, "expected the name of a template: raw"),
        (["--backend", "quantum"], 2, "expected a backend out of auto"),
        (["--codec", "int8", "--backend", "batched"], 2, "expected the backend engine for codec int8"),
        (["--codec", "zip"], 2, "raw, int8, fp8, int4"),
        (["--dtype", "int4"], 2, "expected a dtype out of auto, float32, bfloat16"),
        (["--passages", "0"], 2, "--passages"),
        (["--data", "nowhere.json"], 1, "expected a file or a folder at nowhere.json"),
        (["--data", "."], 1, "expected a .txt or .md file"),
        (["--out", "no/such/folder/report.json"], 2, "make it first"),
        (["--chart", "no/such/folder/chart.png"], 2, "make it first"),
    ],
)
def test_what_is_wrong_costs_no_model(quality, monkeypatch, options, code, part):
    monkeypatch.setattr("kvrag.sources.open_model", lambda *arguments: pytest.fail("a model was loaded"))
    assert_fails(quality(*options), code, part)


def test_data_is_asked_for(kvrag):
    assert_fails(kvrag("eval", "quality"), 2, "--data")
    assert_fails(kvrag("eval"), 2, "Missing command")


def test_a_folder_without_questions_is_refused(kvrag, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "goats.txt").write_text(GOATS)
    assert_fails(kvrag("eval", "quality", "--data", folder), 1, "found passages only")


def test_a_chart_without_matplotlib_names_the_extra(quality, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None)
    assert_fails(quality("--chart", "chart.png"), 1, "pip install 'kvrag[train]'")


def test_a_chart_is_an_image(quality, tmp_path):
    pytest.importorskip("matplotlib")
    assert quality("--chart", tmp_path / "chart.png").exit_code == 0
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert_fails(quality("--chart", tmp_path / "chart.nonsense", "--json"), 1, "expected the name of an image")
