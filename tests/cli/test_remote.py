"""Packets that machines share, on the command line."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_errors import assert_fails


@pytest.fixture
def remote(tmp_path) -> str:
    return f"file://{tmp_path}/remote"


def objects(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "remote").rglob("*.safetensors"))


def test_a_second_machine_builds_nothing_and_asks_packets_of_the_first(
    documents, build, ask, kvrag, remote, tmp_path, monkeypatch
):
    assert "packets  5 built, 0 existing" in build(documents, "--remote", remote).stdout
    assert len(objects(tmp_path)) == 5
    expected = ask("goats", "--top-k", 1)
    shutil.rmtree(".kvrag/packets")
    monkeypatch.setenv("KVRAG_REMOTE", remote)
    assert "packets  0 built, 5 existing" in build(documents).stdout
    stat = json.loads(kvrag("store", "stat", "--json").stdout)
    assert stat["tiers"]["disk"] == 0
    assert stat["tiers"]["remote"] == stat["bytes"] > 0
    answer = ask("goats", "--top-k", 1)
    assert (answer["answer"], answer["cached_tokens"]) == (expected["answer"], expected["cached_tokens"])
    assert kvrag("store", "verify").exit_code == 0
    assert json.loads(kvrag("store", "repair", "--json").stdout)["dropped"] == 0


def test_packets_of_an_older_build_are_pushed(documents, build, kvrag, remote, tmp_path):
    build(documents)
    told = json.loads(kvrag("store", "push", "--remote", remote, "--json").stdout)
    assert told == {"packets": 5, "pending_uploads": 0}
    assert len(objects(tmp_path)) == 5
    assert kvrag("store", "push", "--remote", remote).stdout == "5 of 5 packets are on the remote\n"


def test_a_remote_that_cannot_be_written_is_said_and_costs_nothing(documents, build, kvrag, remote, tmp_path):
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "packets").write_text("a file where a folder should be")
    result = build(documents, "--remote", remote)
    assert "packets  5 built" in result.stdout
    assert "warning: 5 packets are not on the remote yet; `kvrag store push` uploads them" in result.stderr
    result = kvrag("store", "push", "--remote", remote)
    assert (result.exit_code, result.stdout) == (1, "0 of 5 packets are on the remote\n")
    assert kvrag("store", "verify").exit_code == 0


@pytest.mark.parametrize("wrong", ["nonsense", "gopher://x", "s3://"])
def test_what_is_no_remote_is_wrong_usage(documents, kvrag, model, wrong):
    result = kvrag("build", documents, "--model", model, "--remote", wrong)
    assert_fails(result, 2, "expected a remote such as s3://bucket/prefix")
    assert not Path(".kvrag").exists()


def test_pushing_needs_a_remote(documents, build, kvrag):
    build(documents)
    assert_fails(kvrag("store", "push"), 2, "give --remote or set KVRAG_REMOTE")
