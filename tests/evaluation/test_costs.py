"""What methods cost, counted by hand on the tiny model."""

import math

import pytest

from kvrag.evaluation.backends import AnswererChoice
from kvrag.evaluation.chart import pareto_front
from kvrag.evaluation.costs import MethodRow, Work, measure_costs
from kvrag.evaluation.quality import FULL, NONE, measure
from kvrag.prompt import PacketSegment
from tests.conftest import CHUNKS, TINY

PROMPT = "Read this.\n" + "\n\n".join(CHUNKS[:2]) + "\nAnswer:"


def by_hand(prepared):
    """Keys that the computed rows attend to, row by row."""
    keys = seen = 0
    for segment in prepared.segments:
        for _ in range(prepared.length(segment)):
            seen += 1
            keys += 0 if isinstance(segment, PacketSegment) else seen
    return keys


def test_work_of_attached_and_computed_prompts(engine):
    engine.build(CHUNKS)
    attached, full = (engine.prepare(PROMPT, strategy=s, documents=CHUNKS) for s in ("no-recompute", "full-recompute"))
    n = attached.tokens
    chunks = [len(engine.model.tokenizer.encode(c, literal=True)) for c in CHUNKS[:2]]
    work = Work.of(attached, n - sum(chunks))
    per_token = 2 * TINY["num_hidden_layers"] * TINY["num_key_value_heads"] * 16 * 4
    assert work == Work(n - sum(chunks), by_hand(attached), sum(chunks) * per_token, sum(chunks))
    m = full.tokens
    assert Work.of(full, m) == Work(m, m * (m + 1) / 2, 0, 0)
    everything = Work.of(attached, n).keys  # what is computed of packets sees half of the prompt on average
    assert everything == by_hand(attached) + sum(chunks) * (n + 1) / 2


def test_operations_by_the_formula(engine):
    hidden, heads, kv, inner = 64, 4, 2, 96
    layer = 2 * hidden * hidden + 2 * hidden * kv * hidden // heads + 3 * hidden * inner
    wanted = 2 * 3 * layer * 10 + 4 * 3 * hidden * 1000 + 2 * hidden * TINY["vocab_size"]
    assert Work(10, 1000, 0, 0).flops(engine.model) == wanted


def test_costs_and_quality_share_a_row(new_engine, methods, cases_for):
    engine = new_engine(computed_bytes=0)
    cases, done = cases_for(engine), []
    costs = measure_costs(engine, cases.cases[:2], methods, runs=1, advance=done.append)
    scored = measure(cases, methods, AnswererChoice(engine, "auto", 8))
    rows = {row.method: MethodRow.of(row, costs[row.method]) for row in scored}
    assert sum(done) == 2 * len(methods)
    none, full = rows[NONE], rows[FULL]
    assert none.ttft_ms > 0 < full.ttft_ms
    assert (none.timed, none.n) == (2, len(cases.cases))
    assert none.flops < full.flops
    assert (full.bytes_loaded, full.bytes_per_token) == (0, 0)
    assert none.bytes_per_token == 2 * 3 * 2 * 16 * 4
    assert none.bytes_loaded > 0


def test_a_measurement_that_runs_out_of_time_counts_what_every_method_answered(engine, methods, cases_for):
    cases = cases_for(engine)
    choice = AnswererChoice(engine, "auto", 4)
    rows = measure(cases, methods, choice, batch_tokens=1, seconds=0)
    assert {row.n for row in rows} == {1}
    assert {row.n for row in measure(cases, methods, choice, batch_tokens=1, seconds=math.inf)} == {len(cases.cases)}


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 5), (2, 9), (3, 8), (4, 9), (5, 10)], [(1, 5), (2, 9), (5, 10)]),
        ([(1, 5), (1, 6)], [(1, 6)]),
        ([(2, 1)], [(2, 1)]),
    ],
)
def test_the_front_holds_what_nothing_else_beats(points, front):
    assert pareto_front(points) == front
