"""Builds that are killed, interrupted, or run at the same time; and what real processes print."""

import json
import signal

import pytest

from tests.cli.conftest import summary

TRACEBACK = "Traceback"


@pytest.mark.parametrize(
    "at",
    [
        ("kvrag.store.packet_store:PacketStore.put", 3),
        ("kvrag.store.index:Index.add", 2),
        ("kvrag.demo.retrieval:add_nodes", 1),
        ("llama_index.vector_stores.chroma:ChromaVectorStore.delete_nodes", 1),
    ],
    ids=lambda at: f"{at[0].rpartition(':')[2]}-{at[1]}",
)
def test_a_killed_build_is_completed_by_running_it_again(
    processes, documents, build, ask, kvrag, model, tmp_path, expected, at
):
    arguments = ["build", documents, "--model", model, "--chunk-tokens", 32]
    if "delete" in at[0]:  # there must be something to delete
        assert processes.run(["build", documents, "--model", model, "--chunk-tokens", 64], tmp_path).code == 0
    killed = processes.run(arguments, tmp_path, (*at, signal.SIGKILL))
    assert (killed.code, killed.stdout) == (-signal.SIGKILL, "")
    build(documents, "--chunk-tokens", 32)
    assert summary(ask("goats", "--top-k", 99)) == expected
    assert "0 added" in build(documents, "--chunk-tokens", 32).stdout
    kvrag("store", "repair")
    assert kvrag("store", "verify").exit_code == 0


def test_ctrl_c_is_one_line_and_the_next_run_completes(processes, documents, build, ask, model, tmp_path, expected):
    arguments = ["build", documents, "--model", model, "--chunk-tokens", 32]
    ended = processes.run(arguments, tmp_path, ("kvrag.store.packet_store:PacketStore.put", 2, signal.SIGINT))
    assert (ended.code, ended.stdout) == (130, "")
    assert ended.stderr.splitlines()[-1].startswith("error: interrupted; run the same command again")
    assert TRACEBACK not in ended.stderr
    build(documents, "--chunk-tokens", 32)
    assert summary(ask("goats", "--top-k", 99)) == expected


def test_an_interrupt_that_somebody_else_swallowed_is_still_one(processes, documents, model, tmp_path):
    at = ("tests.cli.process_server:swallow", 1, signal.SIGINT)
    ended = processes.run(["build", documents, "--model", model], tmp_path, at)
    assert (ended.code, ended.stdout) == (130, "")
    assert ended.stderr.splitlines()[-1].startswith("error: interrupted")


def test_two_builds_at_once_share_the_work(processes, documents, ask, kvrag, model, tmp_path, expected):
    arguments = ["build", documents, "--model", model, "--chunk-tokens", 32]
    ended = [running.wait() for running in [processes.start(arguments, tmp_path) for _ in range(2)]]
    assert [each.code for each in ended] == [0, 0], ended
    built = sorted(line for each in ended for line in each.stdout.splitlines() if line.startswith("packets"))
    assert built[0].startswith("packets  0 built")
    assert summary(ask("goats", "--top-k", 99)) == expected
    assert kvrag("store", "verify").exit_code == 0


def test_a_process_prints_results_and_nothing_else(processes, documents, model, tmp_path):
    built = processes.run(["build", documents, "--model", model], tmp_path)
    assert built.code == 0
    assert [line.split()[0] for line in built.stdout.splitlines()] == [
        "files",
        "chunks",
        "packets",
        "written",
        "seconds",
    ]
    assert {line.split()[0] for line in built.stderr.splitlines()} == {"skipped", "warning:"}
    options = ["--model", model, "--max-new-tokens", 3, "--json"]
    asked = processes.run(["ask", "goats", *options], tmp_path)
    assert asked.code == 0
    assert json.loads(asked.stdout)["completion_tokens"] == 3
    assert [line.split()[0] for line in asked.stderr.splitlines()] == ["warning:"]  # kv-packet is untrained
    failed = processes.run(["build", documents, "--model", tmp_path / "nothing"], tmp_path)
    assert (failed.code, failed.stdout) == (1, "")
    assert TRACEBACK not in failed.stderr
