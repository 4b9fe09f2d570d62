"""`kvrag store`."""

import json
import os
from pathlib import Path

import pytest


@pytest.fixture
def built(documents, build) -> Path:
    build(documents)
    return Path(".kvrag").absolute()


def packet_files(store: Path) -> list[Path]:
    return sorted((store / "packets" / "packets").rglob("*.safetensors"))


@pytest.mark.parametrize("part", ["", "packets"])
def test_packets_are_listed_and_counted(built, kvrag, part):
    rows = json.loads(kvrag("store", "ls", "--store", built / part, "--json").stdout)
    assert len(rows) == 5
    assert {row["namespace"] for row in rows} == {"default"}
    listed = kvrag("store", "ls", "--store", built / part).stdout
    assert all(row["key"][:16] in listed for row in rows)
    stat = json.loads(kvrag("store", "stat", "--store", built / part, "--json").stdout)
    assert (
        stat["bytes"] == sum(row["bytes"] for row in rows) == sum(path.stat().st_size for path in packet_files(built))
    )
    assert (stat["packets"], stat["texts"], len(stat["scopes"])) == (5, 5, 1)
    assert "5 packets" in kvrag("store", "stat", "--store", built / part).stdout


def test_a_sound_store_is_verified(built, kvrag):
    result = kvrag("store", "verify")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "no problems: 5 packets" in result.stdout
    told = json.loads(kvrag("store", "verify", "--json").stdout)
    assert told == {"problems": [], "packets": 5}


def test_a_flipped_bit_is_found_explained_and_repaired(built, kvrag, documents, build):
    path = packet_files(built)[2]
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    result = kvrag("store", "verify")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.count(str(path)) == 1
    assert "`kvrag store repair` moves the file into quarantine" in result.stdout
    (problem,) = json.loads(kvrag("store", "verify", "--json").stdout)["problems"]
    assert (problem["kind"], problem["key"]) == ("corrupt", path.stem)
    result = kvrag("store", "repair")
    assert result.exit_code == 0
    assert "1 files quarantined" in result.stdout
    assert kvrag("store", "verify").exit_code == 0
    assert "packets  1 built, 4 existing" in build(documents).stdout


def test_a_lost_file_a_stray_file_and_a_temporary_file_are_told_apart(built, kvrag):
    lost, *_ = packet_files(built)
    lost.unlink()
    (lost.parent / "stray.txt").write_text("what is this?")
    (lost.parent / ".1234.tmp").write_text("half a packet")
    told = json.loads(kvrag("store", "verify", "--json").stdout)["problems"]
    assert {problem["kind"] for problem in told} == {"missing", "stray", "temporary"}
    assert all(problem["remedy"] for problem in told)
    result = kvrag("store", "repair", "--json")
    repaired = json.loads(result.stdout)
    assert (result.exit_code, repaired["dropped"], repaired["swept"]) == (1, 1, 1)
    assert [problem["kind"] for problem in repaired["problems"]] == ["stray"]  # somebody else's; left alone


def test_a_damaged_index_is_rebuilt_and_building_makes_texts_lead_to_packets_again(
    built, kvrag, documents, build, ask, model
):
    (built / "packets" / "index.sqlite").write_bytes(b"this is no database" * 1000)
    for suffix in ("-wal", "-shm"):
        (built / "packets" / f"index.sqlite{suffix}").unlink(missing_ok=True)
    for command in ("ls", "stat"):
        result = kvrag("store", command)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "run `kvrag store repair`" in result.stderr
    result = kvrag("store", "verify")
    assert result.exit_code == 1
    assert result.stdout.startswith("index: ")
    result = kvrag("store", "repair")
    assert result.exit_code == 0
    assert "5 packets put into the index" in result.stdout
    assert kvrag("ask", "goats", "--model", model).exit_code == 1  # no text leads to a packet any more
    assert "packets  0 built, 5 existing" in build(documents).stdout
    assert ask("goats", "--top-k", 1)["cached_tokens"] > 30


@pytest.mark.parametrize("command", ["ls", "stat", "verify", "repair"])
@pytest.mark.parametrize("kind", ["missing", "empty", "other", "file"])
def test_what_is_no_store_stays_what_it_is(kvrag, tmp_path, command, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("")
    elif kind != "missing":
        place.mkdir()
    if kind == "other":
        (place / "packets").mkdir()
    before = sorted(os.walk(tmp_path))
    result = kvrag("store", command, "--store", place)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: expected a packet store")
    assert sorted(os.walk(tmp_path)) == before
