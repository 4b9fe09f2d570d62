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
