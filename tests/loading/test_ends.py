"""Both threads at work, with sources that hang, fail, or are given up."""

import threading

import pytest

from kvrag.loading.ends import BothEnds
from kvrag.loading.parts import Item
from kvrag.loading.rates import Rates
from kvrag.loading.schedule import Schedule

RATES = Rates(bandwidth=1e9, latency=0, token_seconds=1e-6)


def items(count=4):
    return [Item(str(n), 256, 256_000, splits=True) for n in range(count)]


def test_a_load_that_hangs_holds_nobody_up():
    hung, left_behind, computed = threading.Event(), threading.Event(), []

    def load(part):
        hung.wait()
        left_behind.set()
        return True

    def compute(parts):
        computed.extend((part.item.key, part.last - part.first) for part in parts)

    schedule = Schedule(items(), lambda: RATES, "both")
    BothEnds(schedule, load, compute).run()
    assert sum(tokens for _, tokens in computed) == 4 * 256
    hung.set()
    assert left_behind.wait(5)


def test_what_cannot_be_loaded_is_computed():
    computed = []
    schedule = Schedule(items(), lambda: RATES, "both")
    BothEnds(schedule, lambda part: False, computed.extend).run()
    assert sum(part.last - part.first for part in computed) == 4 * 256


@pytest.mark.parametrize("side", ["load", "compute"])
def test_errors_of_either_side_reach_the_caller(side):
    def fail(part):
        raise RuntimeError("out of order")

    def load(part):
        return True

    def compute(parts):
        pass

    schedule = Schedule(items(), lambda: RATES, side)
    with pytest.raises(RuntimeError, match="out of order"):
        BothEnds(schedule, fail if side == "load" else load, fail if side == "compute" else compute).run()


def test_several_loads_are_under_way_where_the_schedule_allows_it():
    meeting, loaded = threading.Barrier(3, timeout=10), []

    def load(part):
        meeting.wait()
        loaded.append(part.item.key)
        return True

    schedule = Schedule([Item(str(n), 256, 256_000) for n in range(6)], lambda: RATES, "load", loads=3)
    BothEnds(schedule, load, lambda parts: None).run()
    assert sorted(loaded) == [str(n) for n in range(6)]


def test_the_first_error_of_several_loads_reaches_the_caller():
    meeting = threading.Barrier(2, timeout=10)

    def load(part):
        meeting.wait()
        if part.item.key == "0":
            raise RuntimeError("out of order")
        return True

    schedule = Schedule([Item(str(n), 256, 256_000) for n in range(2)], lambda: RATES, "load", loads=2)
    with pytest.raises(RuntimeError, match="out of order"):
        BothEnds(schedule, load, lambda parts: None).run()
