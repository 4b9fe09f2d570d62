"""How much of the disk packets may take, and how they get into memory, on the command line."""

import json
from pathlib import Path

import pytest

from kvrag.cli.folder import StoreFolder
from kvrag.errors import SettingsError
from tests.cli.test_errors import assert_fails

STORE = Path(".kvrag")


def files() -> list[Path]:
    return sorted((STORE / "packets" / "packets").rglob("*.safetensors"))


@pytest.fixture
def size(documents, build) -> int:
    """Of the largest packet of the documents, in bytes; they are built elsewhere."""
    build(documents, "--store", "elsewhere")
    return max(path.stat().st_size for path in Path("elsewhere").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("500MB", 500 * 10**6), ("20 GB", 20 * 10**9), ("1.5GiB", 3 << 29), ("2tb", 2 * 10**12), ("7", 7), ("8B", 8)],
)
def test_sizes(text, nbytes, tmp_path):
    place = StoreFolder(tmp_path)
    assert place.disk_bytes(text) == nbytes
    place.keep_disk_bytes(nbytes)
    assert place.disk_bytes(None) == nbytes
    assert place.disk_bytes("unlimited") is None
    place.keep_disk_bytes(None)
    assert place.disk_bytes(None) is None


@pytest.mark.parametrize("text", ["", "0", "0.2", "-5GB", "20 gigs", "GB", "1e9", "20iB", "inf"])
def test_what_is_no_size_is_refused(text, tmp_path):
    with pytest.raises(SettingsError, match='expected --disk-bytes such as 500MB, 20GB, 20GiB or "unlimited", found'):
        StoreFolder(tmp_path).disk_bytes(text)


def test_an_eager_build_fills_the_budget_and_says_what_found_no_room(documents, build, ask, size):
    result = build(documents, "--disk-bytes", 2 * size)
    built = len(files())
    assert 2 <= built < 5
    assert f"packets  {built} built, 0 existing, {5 - built} without room" in result.stdout
    assert "with --policy hot-set those are kept" in result.stderr
    assert f"0 built, {built} existing, {5 - built} without room" in build(documents).stdout  # the budget is kept
    assert len(files()) == built
    assert ask("goats", "--top-k", 99)["cached_tokens"] > 30
    build(documents, "--disk-bytes", "unlimited")
    assert len(files()) == 5


def test_questions_fill_the_budget_with_what_they_use_most(documents, build, ask, size):
    build(documents, "--policy", "hot-set", "--disk-bytes", int(1.5 * size))
    assert files() == []
    ask("How many goats does the night boat carry?", "--top-k", 1)
    assert ask("How many goats does the night boat carry?", "--top-k", 1)["cached_tokens"] == 0
    (goats,) = files()
    ask("What was the school bell cast from?", "--top-k", 1)
    assert files() == [goats]
    for _ in range(2):
        ask("What was the school bell cast from?", "--top-k", 1)
    (bell,) = files()
    assert bell != goats
    assert ask("What was the school bell cast from?", "--top-k", 1)["cached_tokens"] > 0


def test_a_smaller_budget_makes_room_for_all_commands_that_write(documents, build, ask, kvrag, size):
    build(documents)
    ask("goats", "--top-k", 1, "--disk-bytes", 2 * size)
    left = len(files())
    assert 2 <= left < 5
    (STORE / "disk_bytes").write_text(str(size))
    for command in (["ls"], ["stat"], ["verify"], ["du"]):
        assert kvrag("store", *command).exit_code == 0
    assert len(files()) == left  # looking takes nothing away
    assert json.loads(kvrag("store", "repair", "--json").stdout)["problems"] == []
    assert len(files()) == 1


@pytest.mark.parametrize("command", [["build", "documents"], ["ask", "goats?"], ["calibrate"]])
def test_a_wrong_budget_is_wrong_usage_and_costs_no_model(documents, build, kvrag, command):
    build(documents)
    result = kvrag(*command, "--model", "nowhere", "--disk-bytes", "20 gigs")
    assert_fails(result, 2, "expected --disk-bytes such as 500MB", "'20 gigs'")


def test_packets_are_loaded_or_computed_as_one_says(documents, build, ask):
    build(documents)
    question = ("goats", "--top-k", 1)
    expected = ask(*question)
    for loading in ("auto", "load", "compute", "both"):
        answer = ask(*question, "--loading", loading)
        assert (answer["answer"], answer["cached_tokens"]) == (expected["answer"], expected["cached_tokens"])
    for path in files():
        path.unlink()
    assert ask(*question, "--loading", "load")["cached_tokens"] == 0
    assert files() == []


def test_packets_that_are_gone_are_computed_and_kept_with_compute(documents, build, ask):
    build(documents)
    for path in files():
        path.unlink()
    assert ask("goats", "--top-k", 1, "--loading", "compute")["cached_tokens"] > 30
    assert len(files()) == 1


def test_an_unknown_way_of_loading_is_refused_before_a_model_is_loaded(documents, build, kvrag):
    build(documents)
    result = kvrag("ask", "goats?", "--model", "nowhere", "--loading", "fast")
    assert_fails(result, 2, "expected loading out of auto, load, compute, both, found 'fast'")
