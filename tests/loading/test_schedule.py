"""Who brings what, without threads and clocks."""

import pytest

from kvrag.loading.division import Division, divide
from kvrag.loading.parts import Item, Part
from kvrag.loading.rates import LiveRates, Rates
from kvrag.loading.schedule import Schedule

BALANCED = Rates(bandwidth=1e5, latency=0, token_seconds=1e-2)  # 1000 bytes a token: as fast to load as to compute


def item(name, tokens=256, nbytes=None, splits=False):
    return Item(name, tokens, 1000 * tokens if nbytes is None else nbytes, splits)


def run(schedule, pass_s=None, load_s=lambda part: 1e-5 * part.left, live=None):
    """Play both sides on a clock of its own; what was done, and when all was there; `live` is told of it."""
    pass_s = pass_s or (lambda parts: 1e-2 * sum(part.last - part.first for part in parts))
    now, log, busy = 0.0, [], {}
    for _ in range(10_000):
        if schedule.finished:
            return log, now
        if "load" not in busy and (part := schedule.next_to_load(now)):
            busy["load"] = now + load_s(part), [part], now
        if "compute" not in busy and (parts := schedule.next_to_compute(now)):
            busy["compute"] = now + pass_s(parts), parts, now
        ends = {side: end for side, (end, *_) in busy.items()}
        side = min(ends, key=ends.__getitem__) if ends else ""
        if not side or ends[side] > now + 0.5:
            now += 0.5  # both sides look again after a while
            continue
        now, parts, began = busy.pop(side)
        if live and side == "load":
            live.loaded(round(parts[0].left), now - began)
        elif live:
            live.computed(sum(part.last - part.first for part in parts), now - began)
        for part in parts:
            log.append((side, part.item.key, part.first, part.last, part.dropped))
            schedule.finish(part)
    raise AssertionError(f"nobody goes on: {log}")


def brought(log, side):
    return sum(last - first for who, _, first, last, dropped in log if who == side and not dropped)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_two_sides_as_fast_as_each_other_take_half_the_time_of_one(count):
    items = [item(n, 1024, splits=True) for n in range(count)]
    log, seconds = run(Schedule(items, lambda: BALANCED))
    alone = 10.24 * count
    assert alone / 2 <= seconds <= 1.15 * alone / 2 + 0.01
    assert brought(log, "load") + brought(log, "compute") == 1024 * count


def test_the_loading_side_takes_what_saves_most_computing_for_a_byte():
    items = [item("dear", nbytes=10**6), item("cheap", nbytes=10**4), item("middle")]
    schedule = Schedule(items, lambda: BALANCED, "both")
    assert schedule.next_to_load(0.0).item.key == "cheap"
    assert schedule.next_to_compute(0.0)[0].item.key == "dear"


def test_nobody_begins_what_the_other_side_finishes_sooner():
    swift = Rates(bandwidth=1e9, latency=0, token_seconds=1e-2)
    log, _ = run(Schedule([item(n) for n in range(4)], lambda: swift), load_s=lambda part: part.left / 1e9)
    assert brought(log, "load") == 1024
    slow = Rates(bandwidth=1e2, latency=0, token_seconds=1e-2)
    log, _ = run(Schedule([item(n) for n in range(4)], lambda: slow), load_s=lambda part: part.left / 1e2)
    assert brought(log, "compute") == 1024
    assert all(side == "compute" for side, *_ in log)


def test_a_packet_is_loaded_in_one_piece_unless_some_of_it_could_be_computed_meanwhile():
    for bandwidth, pieces in ((1e7, {1}), (1e5, {2, 3, 4})):  # 1024 tokens load in 0.1 or 10 s; 128 are computed in 1.3
        rates = Rates(bandwidth=bandwidth, latency=0, token_seconds=1e-2)
        schedule = Schedule([item("a", 1024, splits=True)], lambda rates=rates: rates)
        log, seconds = run(schedule, load_s=lambda part, bandwidth=bandwidth: part.left / bandwidth)
        assert sum(side == "load" for side, *_ in log) in pieces
        assert seconds <= 1.03e6 / bandwidth


def test_a_pass_is_not_cut_in_two_where_another_costs_much_of_what_it_spares():
    """A small model on a CPU: four packets of 11.8 MB at 10 MB/s; the third one is brought from both ends."""
    rates = Rates(bandwidth=1e7, latency=0, pass_seconds=0.075, token_seconds=1e-3)
    items = [item(n, 512, nbytes=11_800_000, splits=True) for n in range(4)]
    log, seconds = run(
        Schedule(items, lambda: rates),
        pass_s=lambda parts: 0.075 + 1e-3 * sum(part.last - part.first for part in parts),
        load_s=lambda part: part.left / 1e7,
    )
    assert ("compute", 2, 0, 384, False) in log
    assert ("load", 2, 384, 512, False) in log
    assert seconds == pytest.approx(1.558)


@pytest.mark.parametrize("splits", [True, False])
def test_computing_takes_over_when_a_load_hardly_moves_any_more(splits):
    dropped = []
    swift = Rates(bandwidth=1e7, latency=0, token_seconds=1e-2)
    live = LiveRates(swift)

    def on_drop(part, now):
        dropped.append(part)
        live.loaded(round(part.left), now - part.moved)

    schedule = Schedule([item(n, splits=splits) for n in range(4)], live.now, on_drop=on_drop)
    calls = []

    def load_s(part):
        calls.append(part)
        return part.left / 1e7 if len(calls) < 2 else 1e9

    log, seconds = run(schedule, load_s=load_s)
    assert seconds < 20
    assert len(dropped) == 1
    assert brought(log, "compute") >= 512


def test_packets_that_are_not_stored_are_computed_first_or_lost():
    items = [item("stored"), item("gone", nbytes=0)]
    schedule = Schedule(items, lambda: Rates(bandwidth=1e12, token_seconds=1.0))
    assert schedule.next_to_compute(0.0)[0].item.key == "gone"
    schedule = Schedule([item("gone", nbytes=0)], lambda: BALANCED, "load")
    assert schedule.finished
    assert schedule.items[0].lost


def test_a_packet_that_cannot_be_loaded_is_computed_even_what_was_loaded_of_it():
    schedule = Schedule([item("a", 512, splits=True)], lambda: BALANCED, "both")
    first = schedule.next_to_load(0.0)
    assert 0 < first.first < first.last == 512
    schedule.finish(first)
    schedule.fail(schedule.next_to_load(1.0))
    log, _ = run(schedule)
    assert brought(log, "compute") == 512


@pytest.mark.parametrize(("mode", "side"), [("load", "load"), ("compute", "compute")])
def test_one_sided_modes(mode, side):
    log, _ = run(Schedule([item(n, splits=True) for n in range(3)], lambda: BALANCED, mode))
    assert brought(log, side) == 768


def test_a_fixed_division_is_the_best_cut():
    items = [item(n, 512, splits=True) for n in range(3)]
    assert list(divide(items, BALANCED, "auto").values()) == [512, 256, 0]
    assert list(divide(items, BALANCED, "load").values()) == [0, 0, 0]
    log, seconds = run(Division(items, BALANCED, "auto"))
    assert (brought(log, "load"), brought(log, "compute")) == (768, 768)
    assert seconds == pytest.approx(7.68)


def test_rates_follow_what_is_measured_and_forgive():
    now = [0.0]
    live = LiveRates(Rates(), clock=lambda: now[0])
    for tokens in (100, 200, 400):
        live.computed(tokens, 0.5 + 0.01 * tokens)
    assert live.now().pass_seconds == pytest.approx(0.5)
    assert live.now().token_seconds == pytest.approx(0.01)
    live.loaded(1000, 1.0)
    assert live.now().bandwidth == pytest.approx(1000)
    live.loaded(1000, 0.5)
    assert 1000 < live.now().bandwidth < 2000
    known, now[0] = live.now().bandwidth, 120.0
    assert live.now().bandwidth == pytest.approx(4 * known)


@pytest.mark.parametrize("gigabytes", [0.25, 1.0, 4.0, 16.0])
def test_where_small_passes_cost_as_much_as_large_ones(gigabytes):
    """An 8B model on a GPU, launched kernel by kernel: 16 packets of 64 MiB, request after request."""

    def compute_s(parts):
        return 2e-3 + max(30e-3, 36e-6 * sum(part.last - part.first for part in parts))

    def load_s(part):
        return part.left / (1e9 * gigabytes)

    live = LiveRates(Rates(bandwidth=1e9, latency=0, token_seconds=75e-6))
    packets = 16
    for tokens in (128, 1024, 1024, 512):
        live.computed(tokens, compute_s([Part(item(0, tokens), 0, tokens, False, 0.0, 0)]))
    live.computed(128, 3.9)  # kernels were compiled
    together = []
    for _ in range(5):
        items = [item(n, 512, nbytes=1 << 26, splits=True) for n in range(packets)]
        _, seconds = run(Schedule(items, live.now), pass_s=compute_s, load_s=load_s, live=live)
        together.append(seconds)
    compute, load = packets / 2 * (2e-3 + 36e-6 * 1024), packets * (1 << 26) / 1e9 / gigabytes
    assert together[-1] <= 1.05 * min(compute, load)
    assert together[-1] <= 1.2 / (1 / compute + 1 / load)


def test_loads_at_a_time_take_what_is_sooner_there_than_computed():
    """Four loads of 2.56 s each against four computations of 1 s: alone each is slower, together they are sooner."""
    rates = Rates(bandwidth=1e5, latency=0, token_seconds=1 / 256)
    items = [item(n) for n in range(4)]
    alone = Schedule(items, lambda: rates)
    assert alone.next_to_load(0.0) is not None
    assert alone._load_left(rates, 0.0) == pytest.approx(4 * 2.56)
    together = Schedule([item(n) for n in range(4)], lambda: rates, loads=4)
    parts = [together.next_to_load(0.0) for _ in range(2)]
    assert [part.item.key for part in parts] == [3, 2]
    assert together._load_left(rates, 0.0) == pytest.approx(2.56)
    assert together._load_left(rates, 1.56) == pytest.approx(2.56)  # of the two that nobody has begun
