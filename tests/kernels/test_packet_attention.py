"""The reference against dense attention over re-rotated keys in float64; the CPU path against the reference."""

import pytest
import torch
from kvrag_kernels.packet_attention import (
    AttentionItem,
    AttentionTable,
    packet_attention,
    packet_attention_cpu,
    packet_attention_reference,
)

from .numerics import assert_as_accurate_as

D = 32


def angles(distances, half):
    inv = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.tensor(distances, dtype=torch.float64)[:, None] * inv
    return angle.cos(), angle.sin()


def rotate(x, positions, half):
    """Rotate [N, T, D] by [T] positions, the textbook way."""
    cos, sin = angles(positions, half)
    lo, hi, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin, rest], -1)


def case(lengths, rows, *, heads=2, group=3, half=D // 2, first_seen=None, own=True, seed=0):
    """Packets placed one after another, then `rows` question rows; returns inputs and the dense float64 answer."""
    torch.manual_seed(seed)
    starts = [1000 + sum(lengths[:i]) for i in range(len(lengths))]
    raw_k = [torch.randn(heads, n, D, dtype=torch.float64) for n in lengths]
    values = [torch.randn(heads, n, D, dtype=torch.float64) for n in lengths]
    local = [rotate(k, list(range(k.shape[1])), half) for k in raw_k]
    placed = [rotate(k, list(range(s, s + k.shape[1])), half) for k, s in zip(raw_k, starts, strict=True)]
    end = 1000 + sum(lengths)
    q = rotate(torch.randn(heads * group, rows, D, dtype=torch.float64), list(range(end, end + rows)), half)
    own_k = rotate(torch.randn(heads, rows, D, dtype=torch.float64), list(range(end, end + rows)), half)
    own_v = torch.randn(heads, rows, D, dtype=torch.float64)
    seen = first_seen or [0] * len(lengths)
    items = [AttentionItem(f, rows, rotation=i) for i, f in enumerate(seen)]
    items += [AttentionItem(0, rows, diagonal=0)] if own else []
    cos, sin = angles(starts, half)
    table = AttentionTable(tuple(items), cos.float(), sin.float())
    exact = AttentionTable(tuple(items), cos, sin)
    mask = torch.cat(
        [torch.arange(rows)[:, None].expand(rows, n) >= f for n, f in zip(lengths, seen, strict=True)]
        + ([torch.ones(rows, rows, dtype=torch.bool).tril()] if own else []),
        1,
    )
    k = torch.cat(placed + ([own_k] if own else []), 1).repeat_interleave(group, 0)
    v = torch.cat(values + ([own_v] if own else []), 1).repeat_interleave(group, 0)
    scores = (q @ k.transpose(-1, -2) * D**-0.5).masked_fill(~mask, -torch.inf)
    dense = (scores.softmax(-1) @ v).transpose(0, 1)
    inputs = (q.transpose(0, 1).contiguous(), local + ([own_k] if own else []), values + ([own_v] if own else []))
    return inputs, table, exact, dense


def to(inputs, dtype):
    q, keys, values = inputs
    return q.to(dtype), [k.to(dtype) for k in keys], [v.to(dtype) for v in values]


CASES = {
    "one packet": {"lengths": [17], "rows": 5},
    "several ragged packets": {"lengths": [1, 63, 130, 7], "rows": 9},
    "one row": {"lengths": [40, 9], "rows": 1},
    "rows between packets": {"lengths": [20, 30, 11], "rows": 8, "first_seen": [0, 2, 5]},
    "no grouping of heads": {"lengths": [20, 30], "rows": 4, "group": 1, "heads": 3},
    "partial rotary": {"lengths": [20, 30], "rows": 4, "half": 8},
    "nothing of its own": {"lengths": [20, 30], "rows": 4, "own": False},
}


@pytest.mark.parametrize("name", CASES)
def test_reference_equals_dense_attention_over_moved_keys(name):
    inputs, _, exact, dense = case(**CASES[name])
    got = packet_attention_reference(*inputs, exact, D**-0.5)
    torch.testing.assert_close(got, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_cpu_is_as_accurate_as_the_reference(name, dtype):
    inputs, table, exact, _ = case(**CASES[name])
    inputs = to(inputs, dtype)
    oracle = packet_attention_reference(*to(inputs, torch.float64), exact, D**-0.5)
    baseline = packet_attention_reference(*inputs, table, D**-0.5)
    assert_as_accurate_as(packet_attention_cpu(*inputs, table, D**-0.5), baseline, oracle)


@pytest.mark.parametrize("mutant", ["rotation sign", "diagonal off by one", "lost item", "rows off by one"])
def test_the_tolerance_sees_a_broken_kernel(mutant):
    inputs, table, exact, _ = case([20, 30, 11], 8, first_seen=[0, 2, 5])
    inputs = to(inputs, torch.float32)
    q, keys, values = inputs
    oracle = packet_attention_reference(*to(inputs, torch.float64), exact, D**-0.5)
    baseline = packet_attention_reference(*inputs, table, D**-0.5)
    items = list(table.items)
    if mutant == "rotation sign":
        table = AttentionTable(table.items, table.cos, -table.sin)
    elif mutant == "diagonal off by one":
        items[3] = AttentionItem(0, 8, diagonal=1)
    elif mutant == "lost item":
        items, keys, values = items[1:], keys[1:], values[1:]
    else:
        items[1] = AttentionItem(3, 8, rotation=1)
    if mutant != "rotation sign":
        table = AttentionTable(tuple(items), table.cos, table.sin)
    with pytest.raises(AssertionError):
        assert_as_accurate_as(packet_attention_cpu(q, keys, values, table, D**-0.5), baseline, oracle)


def grouped(dtype):
    """A shared prefix and own rows in group 0, two contexts with a temperature in group 1: APE's merge."""
    torch.manual_seed(1)
    q = torch.randn(3, 4, D, dtype=torch.float64).to(dtype)
    keys = [torch.randn(2, n, D, dtype=torch.float64).to(dtype) for n in (5, 20, 30, 3)]
    values = [torch.randn_like(k) for k in keys]
    items = (
        AttentionItem(0, 3),
        AttentionItem(0, 3, scale=1.25, group=1),
        AttentionItem(0, 3, scale=1.25, group=1),
        AttentionItem(0, 3, diagonal=0),
    )
    table = AttentionTable(items, torch.empty(0, D // 2), torch.empty(0, D // 2), (1.0, 0.8), (0.0, 0.1))
    return q, keys, values, table


def test_merge_groups_follow_the_formula():
    q, keys, values, table = grouped(torch.float64)
    got = packet_attention_reference(q, keys, values, table, D**-0.5)
    heads = q.transpose(0, 1)
    scores = [
        heads @ k.repeat_interleave(2, 0).transpose(-1, -2) * D**-0.5 * i.scale
        for k, i in zip(keys, table.items, strict=True)
    ]
    scores[3] = scores[3].masked_fill(~torch.ones(3, 3, dtype=torch.bool).tril(), -torch.inf)
    rest, context = torch.cat([scores[0], scores[3]], -1), torch.cat(scores[1:3], -1)
    v = [x.repeat_interleave(2, 0) for x in values]
    share = torch.stack([rest.logsumexp(-1), context.logsumexp(-1) * 0.8 + 0.1]).softmax(0)[..., None]
    want = share[0] * (rest.softmax(-1) @ torch.cat([v[0], v[3]], 1)) + share[1] * (
        context.softmax(-1) @ torch.cat(v[1:3], 1)
    )
    torch.testing.assert_close(got, want.transpose(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_merges_groups_like_the_reference(dtype):
    q, keys, values, table = grouped(dtype)
    oracle = packet_attention_reference(
        q.double(), [k.double() for k in keys], [v.double() for v in values], table, D**-0.5
    )
    baseline = packet_attention_reference(q, keys, values, table, D**-0.5)
    assert_as_accurate_as(packet_attention_cpu(q, keys, values, table, D**-0.5), baseline, oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("earlier", [1, 6])
def test_rows_continue_a_lane_that_has_rows_already(dtype, earlier):
    torch.manual_seed(2)
    q = torch.randn(4, 6, D).to(dtype)
    key, value = torch.randn(2, 2, earlier + 4, D).to(dtype)
    table = AttentionTable((AttentionItem(0, 4, diagonal=earlier),), torch.empty(0, D // 2), torch.empty(0, D // 2))
    oracle = packet_attention_reference(q.double(), [key.double()], [value.double()], table, D**-0.5)
    baseline = packet_attention_reference(q, [key], [value], table, D**-0.5)
    assert_as_accurate_as(packet_attention_cpu(q, [key], [value], table, D**-0.5), baseline, oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_requests_share_a_packet_from_different_places(dtype):
    """Rows 0-2 meet the packet at one distance, rows 3-7 at another; neither sees the other's own rows."""
    torch.manual_seed(3)
    q = torch.randn(8, 4, D).to(dtype)
    packet_k, packet_v, own_k, own_v = (torch.randn(2, n, D).to(dtype) for n in (25, 25, 8, 8))
    cos, sin = angles([100, 2000], D // 2)
    items = (
        AttentionItem(0, 3, rotation=0),
        AttentionItem(0, 3, diagonal=0),
        AttentionItem(3, 8, rotation=1),
        AttentionItem(3, 8, diagonal=0),
    )
    keys = [packet_k, own_k[:, :3], packet_k, own_k[:, 3:]]
    values = [packet_v, own_v[:, :3], packet_v, own_v[:, 3:]]
    together = packet_attention_cpu(q, keys, values, AttentionTable(items, cos.float(), sin.float()), D**-0.5)
    for rows, turn in ((slice(0, 3), 0), (slice(3, 8), 1)):
        n = rows.stop - rows.start
        one = AttentionTable(
            (AttentionItem(0, n, rotation=0), AttentionItem(0, n, diagonal=0)), cos[[turn]].float(), sin[[turn]].float()
        )
        alone = packet_attention_cpu(
            q[rows], keys[2 * turn : 2 * turn + 2], values[2 * turn : 2 * turn + 2], one, D**-0.5
        )
        torch.testing.assert_close(together[rows], alone)


def test_inputs_are_not_touched():
    inputs, table, *_ = case([20, 30], 4)
    inputs = to(inputs, torch.float32)
    before = [x.clone() for x in (inputs[0], *inputs[1], *inputs[2])]
    packet_attention(*inputs, table, D**-0.5)
    for x, y in zip((inputs[0], *inputs[1], *inputs[2]), before, strict=True):
        assert torch.equal(x, y)


def test_shapes_that_do_not_fit_are_named():
    inputs, table, *_ = case([20, 30], 4)
    q, keys, values = inputs
    with pytest.raises(ValueError, match="one \\[H, T, D\\] per item"):
        packet_attention(q, keys[1:], values, table, 1.0)
    with pytest.raises(ValueError, match="do not fit query"):
        packet_attention(q, [keys[0][..., :8], *keys[1:]], values, table, 1.0)
    with pytest.raises(ValueError, match="outside the pass"):
        packet_attention(q[:2], keys, values, table, 1.0)
