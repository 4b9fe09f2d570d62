"""Several processes on one store, and processes that are killed in the middle of a write."""

import random
import time

import pytest
from toy_packets import SCOPE, put_and_stop, put_many, raw, read_in_a_fork, toy_packet, toy_text, use_after_fork

from kvrag.matching import fingerprint
from kvrag.store import PacketStore, RepairReport


def assert_safe(store: PacketStore, seeds) -> None:
    for seed in seeds:
        known = fingerprint(toy_text(seed))
        assert known
        key = store.find(SCOPE, known.digest)
        assert key is not None
        packet = store.get(key)
        assert packet is not None
        assert raw(packet) == raw(toy_packet(seed))


def test_the_commits_of_other_processes_are_seen(store, child):
    assert len(store.matcher(SCOPE)) == 0
    with child(put_many, store.root, range(5)) as acknowledged:
        for count in range(1, 6):
            acknowledged.recv()
            assert len(store.matcher(SCOPE)) >= count
    assert_safe(store, range(5))


def test_packets_and_texts_removed_by_another_process_are_gone(store):
    store.put(toy_packet(), [toy_text(0)])
    assert len(store.matcher(SCOPE)) == 1
    with PacketStore(store.root) as other:
        other.remove(toy_packet().key)
    assert len(store.matcher(SCOPE)) == 0
    assert store.get(toy_packet().key) is None


def test_processes_that_build_the_same_packets_do_no_harm(store, child):
    seeds = range(30)
    with child(put_many, store.root, seeds) as first, child(put_many, store.root, seeds) as second:
        for _ in seeds:
            first.recv()
            second.recv()
    assert_safe(store, seeds)
    assert list(store.verify()) == []
    assert (store.stat().packets, store.stat().texts) == (30, 30)


def test_a_store_can_be_used_on_both_sides_of_a_fork(store, child):
    with child(use_after_fork, store.root) as answers:
        assert answers.recv() == (0, 3, [])
    assert_safe(store, range(3))


def test_large_packets_are_read_on_both_sides_of_a_fork(tmp_path, child):
    with child(read_in_a_fork, tmp_path) as answers:
        assert answers.poll(60), "the fork waits for threads that it does not have"
        assert answers.recv() == (0, [True, True])


@pytest.mark.parametrize("seed", range(50))
def test_a_writer_killed_at_any_moment_loses_nothing_it_had_promised(tmp_path, child, seed):
    chance, seeds, safe = random.Random(seed), range(16), []
    with child(put_many, tmp_path, seeds) as acknowledged:
        safe.append(acknowledged.recv())
        time.sleep(chance.uniform(0, 0.06))
    while True:
        try:
            safe.append(acknowledged.recv())
        except EOFError:
            break
    with PacketStore(tmp_path) as store:
        assert_safe(store, safe)
        assert {problem.kind for problem in store.verify()} <= {"orphan", "temporary"}
        store.repair()
        assert list(store.verify()) == []
        for again in seeds:
            store.put(toy_packet(again), [toy_text(again)])
        assert_safe(store, seeds)
        assert list(store.verify()) == []


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize(
    ("point", "left", "report"),
    [
        ("temporary file begun", ["temporary"], RepairReport(swept=1)),
        ("temporary file written", ["temporary"], RepairReport(swept=1)),
        ("renamed", ["orphan"], RepairReport(adopted=1)),
        ("in the transaction", ["orphan"], RepairReport(adopted=1)),
    ],
)
def test_a_writer_killed_before_its_row_leaves_what_repair_can_mend(tmp_path, child, point, left, report, turn):
    with PacketStore(tmp_path) as store:
        store.put(toy_packet(100), [toy_text(100)])
        with child(put_and_stop, tmp_path, turn, point) as reached:
            assert reached.recv() == point
            assert list(store.verify()) == []  # a writer at work is not a problem
            if point != "in the transaction":  # the index waits for it
                assert store.repair() == RepairReport()
        assert [problem.kind for problem in store.verify()] == left
        assert store.repair() == report
        assert list(store.verify()) == []
        store.put(toy_packet(turn), [toy_text(turn)])
        assert_safe(store, [turn, 100])
