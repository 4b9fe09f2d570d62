"""`kvrag eval methods`: quality and costs in one table."""

import json

import pytest

from kvrag.strategies import available_strategies
from tests.cli.test_errors import assert_fails
from tests.cli.test_eval import data  # noqa: F401  # a fixture

COSTS = {"flops", "bytes_loaded", "ttft_ms", "timed", "bytes_per_token"}


@pytest.fixture
def methods(kvrag, model, data):  # noqa: F811
    def run(*options: object):
        common = ("--model", model, "--data", data, "--max-new-tokens", 3, "--passages", 2, "--runs", 1, "--timed", 1)
        return kvrag("eval", "methods", *common, *options)

    return run


def test_every_registered_method_has_a_row_with_quality_and_costs(methods, kvrag, model, data, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    out, chart = tmp_path / "methods.json", tmp_path / "methods.png"
    done = methods("--json", "--out", out, "--chart", chart)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads(out.read_text())
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert {row["method"] for row in told["rows"]} == {*available_strategies(), "full-recompute-natural"}
    scores = [(-row["f1"], row["kl"]) for row in told["rows"]]
    assert scores == sorted(scores)
    quality = kvrag("eval", "quality", "--model", model, "--data", data, "--max-new-tokens", 3, "--json")
    plain = json.loads(quality.stdout)
    assert set(told) == set(plain)
    assert set(told["rows"][0]) == set(plain["rows"][0]) | COSTS
    stored = {row["method"]: row["bytes_per_token"] for row in told["rows"]}
    assert stored["full-recompute"] == 0 < stored["no-recompute"] == stored["lego-link-0"] < stored["control-chat"]


def test_a_table_of_chosen_methods_with_options(methods):
    done = methods("--methods", "ape:temperature=0.5:scale=0.8,no-recompute", "--budget-seconds", 60)
    assert done.exit_code == 0, done.stderr
    names = {line.split()[0] for line in done.stdout.splitlines()[2:] if line.strip()}
    assert names == {"ape:temperature=0.5:scale=0.8", "no-recompute", "full-recompute", "full-recompute-natural"}


def test_times_of_random_packets_carry_the_shapes_name(kvrag, tmp_path):
    out = tmp_path / "times.json"
    done = kvrag(
        *("eval", "methods", "--times-only", "--geometry", "tiny", "--packets", 2, "--packets", 3, "--packet", 16),
        *("--question", 5, "--runs", 1, "--dtype", "float32", "--json", "--out", out),
    )
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads(out.read_text())
    assert {row["model"] for row in told["rows"]} == {"tiny (random weights)"}
    for count in (2, 3):
        rows = {row["method"]: row for row in told["rows"] if row["packets"] == count}
        assert set(rows) == set(available_strategies())
        assert [row["ttft_ms"] for row in rows.values()] == sorted(row["ttft_ms"] for row in rows.values())
        assert rows["full-recompute"]["computed_tokens"] == rows["full-recompute"]["prompt_tokens"] == 16 * count + 5
        assert rows["no-recompute"]["computed_tokens"] == 5
        assert rows["kvlink"]["computed_tokens"] == 5 + 5 * count
        assert rows["kv-packet"]["prompt_tokens"] == 32 * count + 5


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--times-only"], "expected --times-only without --data"),
        (["--methods", "magic"], "expected a strategy out of"),
        (["--methods", "ape:heat=1"], "expected options of ape out of"),
        (["--dtype", "int4"], "expected a dtype out of auto, float32, bfloat16"),
        (["--out", "no/such/folder/report.json"], "make it first"),
    ],
)
def test_what_is_wrong_costs_no_model(methods, monkeypatch, options, part):
    monkeypatch.setattr("kvrag.sources.open_model", lambda *arguments: pytest.fail("a model was loaded"))
    assert_fails(methods(*options), 2, part)


def test_data_is_asked_for(kvrag):
    assert_fails(kvrag("eval", "methods"), 2, "expected --data with a file of questions")
    assert_fails(kvrag("eval", "methods", "--times-only", "--geometry", "giant"), 2, "expected a geometry out of")
