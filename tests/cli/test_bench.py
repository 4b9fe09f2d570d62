"""`kvrag bench`: rows, files and charts; on a CPU, where the figures themselves mean little."""

import json

import pytest

from tests.cli.test_errors import assert_fails

TTFT = ("bench", "ttft", "--model", "tiny", "--packet", 48, "--runs", 3, "--dtype", "float32")


def test_first_tokens_of_every_context_and_method(kvrag, tmp_path):
    out, chart = tmp_path / "ttft.json", tmp_path / "ttft.png"
    done = kvrag(*TTFT, "--context", 100, "--context", 48, "--question", 5, "--json", "--out", out, "--chart", chart)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert found["model"].startswith("tiny")
    assert found["hbm_gbps"] > 0
    methods = ("full prefill", "copy and re-rotate", "zero-copy eager")
    assert [(r["context"], r["method"]) for r in found["rows"]] == [(c, m) for c in (100, 48) for m in methods]
    for row in found["rows"]:
        assert (row["question"], row["packets"]) == (5, 3 if row["context"] == 100 else 1)
        assert row["ttft_ms"] > row["floor_ms"] > 0
        assert row["times_floor"] == pytest.approx(row["ttft_ms"] / row["floor_ms"], rel=0.1)
    assert all(r["speedup_over_full"] == 1 for r in found["rows"] if r["method"] == "full prefill")


def test_steps_of_requests_that_share_packets(kvrag):
    done = kvrag("bench", "decode", "--model", "tiny", "--context", 100, "--requests", 1, "--requests", 3, "--runs", 3)
    assert done.exit_code == 0, done.stderr
    assert "tokens/s" in done.stdout
    done = kvrag(
        "bench", "decode", "--model", "tiny", "--context", 100, "--requests", 1, "--requests", 3, "--runs", 3, "--json"
    )
    rows = json.loads(done.stdout)["rows"]
    assert [row["requests"] for row in rows] == [1, 3]
    assert len({row["packet_bytes"] for row in rows}) == 1  # the packets are in memory once
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(1e3 * row["requests"] / row["step_ms"], rel=0.05)


def test_packets_computed_loaded_and_both(kvrag, tmp_path):
    out, chart = tmp_path / "load.json", tmp_path / "load.png"
    options = ("--context", 300, "--packet", 150, "--bandwidth", 0.005, "--runs", 3, "--dtype", "float32")
    done = kvrag("bench", "load", "--model", "tiny", *options, "--json", "--out", out, "--chart", chart)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert (found["context"], found["packet"]) == (300, 150)
    modes = ("compute", "load", "hybrid")
    assert [(r["bandwidth_gbps"], r["mode"]) for r in found["rows"]] == [(b, m) for b in (0.005, None) for m in modes]
    times = {r["mode"]: r["ms"] for r in found["rows"] if r["bandwidth_gbps"]}
    assert times["load"] > 300 * 2 * 2 * 2 * 32 * 4 / 5e6 * 1e3 * 0.95  # the reader really waits
    assert found["disk"]["kvrag_gbps"] > 0
    assert found["disk"]["raw_gbps"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "tiny", "--graphs", "fast"), "expected graphs out of compiled, recorded, none, found 'fast'"),
        (("--model", "tiny", "--tier", "disk"), "expected tiers out of device, host, found disk"),
        (("--model", "tiny", "--context", 5000), "expected at most 4096 tokens"),
        (("--model", "tiny", "--out", "nowhere/ttft.json"), "make it first"),
    ],
)
def test_wrong_options_are_said_before_anything_is_measured(kvrag, options, message):
    assert_fails(kvrag("bench", "ttft", *options), 2, message)
