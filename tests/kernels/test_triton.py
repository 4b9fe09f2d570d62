"""The Triton kernels: in the interpreter where there is no GPU, and compiled for GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kvrag_kernels.packet_attention import AttentionItem, AttentionTable, packet_attention_reference

from . import numerics
from .test_packet_attention import CASES, D, angles, case, grouped, to

pytest.importorskip("triton")

from kvrag_kernels.packet_attention import device
from kvrag_kernels.packet_attention.device import DeviceWork
from kvrag_kernels.packet_attention.once import packet_attention_triton
from kvrag_kernels.packet_attention.readers import READER, place_of, readers_of
from kvrag_kernels.packet_attention.work import CapacityError, plan_work

from .mutants import mutated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FACTOR = 3.0 if DEVICE == "cuda" else 2.0
"""A GPU's own power of two is off by two units in the last place, PyTorch's by one."""


def assert_as_accurate_as(actual, baseline, oracle):
    numerics.assert_as_accurate_as(actual, baseline, oracle, FACTOR if actual.dtype == torch.float32 else 2.0)


def on_device(inputs):
    q, keys, values = inputs
    return q.to(DEVICE), [k.to(DEVICE) for k in keys], [v.to(DEVICE) for v in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_triton_is_as_accurate_as_the_reference(name, dtype):
    inputs, table, exact, _ = case(**CASES[name])
    inputs = to(inputs, dtype)
    oracle = packet_attention_reference(*to(inputs, torch.float64), exact, D**-0.5)
    baseline = packet_attention_reference(*inputs, table, D**-0.5)
    got = packet_attention_triton(*on_device(inputs), table, D**-0.5)
    assert_as_accurate_as(got.cpu(), baseline, oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_merges_groups_like_the_reference(dtype):
    q, keys, values, table = grouped(dtype)
    oracle = packet_attention_reference(*to((q, keys, values), torch.float64), table, D**-0.5)
    baseline = packet_attention_reference(q, keys, values, table, D**-0.5)
    got = packet_attention_triton(*on_device((q, keys, values)), table, D**-0.5)
    assert_as_accurate_as(got.cpu(), baseline, oracle)


def random_case(head_dim, group, rows, lengths, *, seed=0, heads=2, half=None):
    """Packets at random places, rows that see them from some row on, and the rows' own keys behind earlier ones."""
    torch.manual_seed(seed)
    half = head_dim // 2 if half is None else half
    earlier = 3
    q = torch.randn(rows, heads * group, head_dim)
    sizes = [*lengths, earlier + rows]
    keys, values = ([torch.randn(heads, n, head_dim) for n in sizes] for _ in range(2))
    first = torch.randint(0, rows, (len(lengths),)).tolist()
    first[0] = 0
    items = [AttentionItem(f, rows, rotation=i) for i, f in enumerate(first)]
    items.append(AttentionItem(0, rows, diagonal=earlier))
    cos, sin = angles([1000 * (i + 1) for i in range(len(lengths))], half)
    return (q, keys, values), AttentionTable(tuple(items), cos.float(), sin.float())


@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_every_shape_of_head(head_dim, group):
    inputs, table = random_case(head_dim, group, 5, [70, 33, 100])
    oracle = packet_attention_reference(*to(inputs, torch.float64), table, 0.1)
    baseline = packet_attention_reference(*inputs, table, 0.1)
    assert_as_accurate_as(packet_attention_triton(*on_device(inputs), table, 0.1).cpu(), baseline, oracle)


@pytest.mark.parametrize("rows", [1, 2, 17, 40])
def test_any_number_of_rows_and_programs(rows):
    """More rows than a unit takes, items over the ends of extents, more and fewer units than programs."""
    heads = max(2, 16 // rows)  # of one row and few heads the largest error would be a matter of luck
    inputs, table = random_case(64, 2, rows, [300, 1, 64, 129, 511], heads=heads, half=16)
    oracle = packet_attention_reference(*to(inputs, torch.float64), table, 0.1)
    baseline = packet_attention_reference(*inputs, table, 0.1)
    for multiprocessors in (1, 9):
        got = packet_attention_triton(*on_device(inputs), table, 0.1, multiprocessors=multiprocessors)
        assert_as_accurate_as(got.cpu(), baseline, oracle)


def test_a_packet_may_stand_twice_in_a_prompt():
    torch.manual_seed(5)
    q, k, v = torch.randn(3, 4, D), torch.randn(2, 30, D), torch.randn(2, 30, D)
    cos, sin = angles([100, 500], D // 2)
    table = AttentionTable((AttentionItem(0, 3, 0), AttentionItem(1, 3, 1)), cos.float(), sin.float())
    wanted = packet_attention_reference(q, [k, k], [v, v], table, 0.1)
    k, v = k.to(DEVICE), v.to(DEVICE)
    torch.testing.assert_close(packet_attention_triton(q.to(DEVICE), [k, k], [v, v], table, 0.1).cpu(), wanted)


def shared_packet(dtype=torch.float32):
    """Three requests: two see both packets, from different places; one sees the second packet only."""
    torch.manual_seed(4)
    q = torch.randn(9, 4, D).to(dtype)
    a_k, a_v, b_k, b_v = (torch.randn(2, n, D).to(dtype) for n in (90, 90, 40, 40))
    own_k, own_v = torch.randn(2, 2, 9, D).to(dtype)
    cos, sin = angles([100, 190, 2000, 2090, 7], D // 2)
    items, keys, values = [], [], []
    for (first, last), turns in (((0, 4), (0, 1)), ((4, 6), (2, 3)), ((6, 9), (None, 4))):
        for (k, v), turn in zip(((a_k, a_v), (b_k, b_v)), turns, strict=True):
            if turn is not None:
                items.append(AttentionItem(first, last, rotation=turn))
                keys.append(k)
                values.append(v)
        items.append(AttentionItem(first, last, diagonal=0))
        keys.append(own_k[:, first:last])
        values.append(own_v[:, first:last])
    return (q, keys, values), AttentionTable(tuple(items), cos.float(), sin.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_requests_share_packets_from_different_places(dtype):
    inputs, table = shared_packet(dtype)
    oracle = packet_attention_reference(*to(inputs, torch.float64), table, 0.2)
    baseline = packet_attention_reference(*inputs, table, 0.2)
    q, keys, values = inputs
    moved = {id(t): t.to(DEVICE) for t in (*keys, *values)}
    shared = q.to(DEVICE), [moved[id(k)] for k in keys], [moved[id(v)] for v in values]
    assert_as_accurate_as(packet_attention_triton(*shared, table, 0.2).cpu(), baseline, oracle)


def test_a_shared_packet_is_read_once():
    (q, keys, values), table = shared_packet()
    readers, scales = readers_of(q, keys, values, table)
    work = plan_work(readers, scales, len(q), D, groups=1, unit_rows=16, units=1)
    assert [list(work.piece_offsets[:, 0]).count(key) for key in (readers[0, 0], readers[1, 0])] == [1, 1]
    assert work.pieces[:, 0].sum() == 90 + 40 + 9  # tokens, each of them once
    assert work.counts[0] == 5  # a packet of two readers, one of three, and each request's own rows


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("lengths", [[1], [64, 128, 129], [700, 3, 3, 64, 1000], [0, 5, 0]])
def test_the_work_of_one_request_begins_that_of_several(lengths, rows):
    """A request is planned alone by the shortest way; beside one of other packets it is divided no differently."""
    (q, keys, values), table = random_case(64, 2, rows, lengths)
    readers, scales = readers_of(q, keys, values, table)
    other = readers + np.where(np.isin(READER, ["key", "value"]), 1 << 30, 0)
    other[:, READER.index("first")] += rows
    other[:, READER.index("last")] += rows
    both, of_both = np.concatenate([readers, other]), np.concatenate([scales, scales])
    options = {"groups": 1, "unit_rows": 4, "units": 8}
    alone = plan_work(readers, scales, rows, 64, **options)
    joined = plan_work(both, of_both, 2 * rows, 64, **options | {"units": 16})
    arrays = alone.arrays() | {"items": alone.items[:-1]}  # the last one ends the pieces
    units, groups = arrays.pop("counts")
    assert joined.counts.tolist() == [2 * units, groups]
    assert joined.items[-1, 0] == 2 * alone.items[-1, 0]
    assert joined.parts == 2 * alone.parts
    for name, array in arrays.items():
        assert np.array_equal(getattr(joined, name)[: len(array)], array), name


def test_the_same_pass_gives_the_same_bits():
    inputs, table = random_case(64, 2, 20, [300, 64, 129])
    first, second = (packet_attention_triton(*on_device(inputs), table, 0.1) for _ in range(2))
    assert torch.equal(first, second)


def test_buffers_serve_one_pass_after_another_and_leave_nothing():
    """What an earlier, larger pass left is not read, and rows behind a pass are zero."""
    big, of_big = random_case(64, 2, 8, [200, 100, 50])
    small, of_small = random_case(64, 2, 3, [20], seed=1)
    anchor = torch.zeros(16, device=DEVICE)
    work = DeviceWork(anchor, 8, 2, 2, 64, 32)
    for inputs, table in ((big, of_big), (small, of_small), (big, of_big)):
        work._partial.fill_(torch.nan)
        work._partial_lse.fill_(torch.nan)
        q, keys, values = on_device(inputs)
        rows = len(q)
        work.fill(*readers_of(anchor, keys, values, table), table)
        padded = torch.full((8, 4, 64), torch.nan, device=DEVICE)
        padded[:rows] = q
        got = work.attend(padded, 0, 0.1)
        torch.testing.assert_close(got[:rows].cpu(), packet_attention_reference(*inputs, table, 0.1))
        assert (got[rows:] == 0).all()


def test_a_step_is_the_last_one_and_one_key_more():
    """Two requests over a packet, one with many keys of its own: work added to is work planned anew."""
    torch.manual_seed(3)
    q, packet, long, short = (torch.randn(2, n, 64, device=DEVICE) for n in (4, 70, 330, 9))
    cos, sin = angles([100, 900], 32)
    anchor = torch.zeros(16, device=DEVICE)

    def filled(work, step):
        own = long[:, : 300 + step], short[:, : 1 + step]
        keys = [packet, own[0], packet, own[1]]
        items = [AttentionItem(0, 1, 0), AttentionItem(0, 1, diagonal=299 + step)]
        items += [AttentionItem(1, 2, 1), AttentionItem(1, 2, diagonal=step)]
        table = AttentionTable(tuple(items), cos.float(), sin.float())
        work.fill(*readers_of(anchor, keys, keys, table), table, np.zeros((2, 4), np.int64))

    stepwise, anew = DeviceWork(anchor, 2, 2, 2, 64, 32), DeviceWork(anchor, 2, 2, 2, 64, 32)
    filled(stepwise, 0)
    for step in range(1, 8):
        stepwise.advance(2)
        filled(anew, step)
        rows = q.unflatten(1, (2, 2)).transpose(0, 1).flatten(1, 2)
        torch.testing.assert_close(stepwise.attend(rows, 0, 0.1), anew.attend(rows, 0, 0.1))
        assert (stepwise.arrays["places"].view(2, 4)[:, :2] == 64 * step).all()


def test_too_much_work_is_refused_and_nothing_is_changed():
    small, of_small = random_case(64, 2, 3, [20], seed=1)
    anchor = torch.zeros(16, device=DEVICE)
    work = DeviceWork(anchor, 4, 2, 2, 64, 32)
    q, keys, values = on_device(small)
    work.fill(*readers_of(anchor, keys, values, of_small), of_small)
    before = work.attend(q, 0, 0.1)
    many = AttentionTable((*of_small.items[:1] * 600, of_small.items[1]), of_small.cos, of_small.sin)
    apart = list(torch.zeros(600, 2, 16, 64, device=DEVICE))
    readers = readers_of(anchor, [*apart, keys[1]], [*apart, values[1]], many)
    with pytest.raises(CapacityError) as caught:
        work.fill(*readers, many)
    assert caught.value.needed["pieces"] > 512
    assert torch.equal(work.attend(q, 0, 0.1), before)
    DeviceWork(anchor, 4, 2, 2, 64, 32, capacity=caught.value.needed).fill(*readers, many)


def test_rows_are_written_where_they_belong():
    anchor = torch.zeros(16, device=DEVICE)
    block = torch.full((3, 2, 2, 10, 64), torch.nan, device=DEVICE)  # [L, 2, H, T, D]
    work = DeviceWork(anchor, 4, 2, 2, 64, 32)
    inputs, table = random_case(64, 2, 4, [20])
    q, keys, values = on_device(inputs)
    first_key, first_value, head_stride = place_of(anchor, block[0, 0], block[0, 1])
    places = [[first_key + t * 64, first_value + t * 64, head_stride, block.stride(0)] for t in (7, 2, 3, 9)]
    work.fill(*readers_of(anchor, keys, values, table), table, torch.tensor(places).numpy())
    key, value = torch.randn(2, 2, 4, 64, device=DEVICE)  # [H, S, D], as transformers has them
    work.write(key.transpose(0, 1), value.transpose(0, 1), 1)
    for row, token in enumerate((7, 2, 3, 9)):
        assert torch.equal(block[1, 0, :, token], key[:, row])
        assert torch.equal(block[1, 1, :, token], value[:, row])
    assert block.isnan().sum() == block.numel() - 2 * 2 * 4 * 64


def test_unaligned_blocks_are_refused():
    anchor = torch.zeros(1000, device=DEVICE)
    block = anchor[8:].unflatten(0, (2, -1))[:, : 2 * 64 * 3].view(2, 2, 3, 64)
    with pytest.raises(ValueError, match="multiples of 16"):
        place_of(anchor, block[0], block[1])


MUTANTS = {
    "rotation sign": ("x * c + y * s", "x * c - y * s"),
    "mask off by one": ("token[None, :] < limit[:, None]", "token[None, :] <= limit[:, None]"),
    "dropped piece": ("tl.load(items + item * 4 + 4)):", "tl.load(items + item * 4 + 4) - 1):"),
    "dropped part": ("there = number < count\n", "there = number < count - 1\n"),
    "no rescaling": ("output * shrink[:, None]", "output"),
    "wrong head": ("(head * GROUP + m % GROUP) * query_head", "(head * GROUP) * query_head"),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter suffices")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_tolerance_sees_a_broken_kernel(mutant, tmp_path, monkeypatch):
    module = mutated(*MUTANTS[mutant], tmp_path, monkeypatch)
    inputs, table, exact, _ = case([63, 130, 300, 7], 9, first_seen=[0, 2, 3, 5])
    inputs = to(inputs, torch.float32)
    oracle = packet_attention_reference(*to(inputs, torch.float64), exact, D**-0.5)
    baseline = packet_attention_reference(*inputs, table, D**-0.5)
    assert_as_accurate_as(packet_attention_triton(*inputs, table, D**-0.5), baseline, oracle)
    for name in ("attend_units", "merge_parts"):
        monkeypatch.setattr(device, name, getattr(module, name))
    with pytest.raises(AssertionError):
        assert_as_accurate_as(packet_attention_triton(*inputs, table, D**-0.5), baseline, oracle)


SHAPES = [
    "1,4,128",
    "32,4,128",
    "64,4,128",
    "128,8,128",
    "1,7,128",
    "32,7,128",
    "1,3,64",
    "32,3,64",
    "32,4,96",
    "1,4,256",
    "32,8,256",
]

ENCODED = ["1,4,128", "128,8,128", "32,7,128", "32,3,64", "32,8,256"]


@pytest.mark.parametrize("form", ["raw", "int8", "fp8"])
@pytest.mark.parametrize("architecture", [80, 90])
def test_kernels_compile_without_spilling(architecture, form):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "resources.py"
    command = [sys.executable, script, str(architecture), form, *(SHAPES if form == "raw" else ENCODED)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for kernel in (*found["attend"], found["merge"], found["write"]):
        assert kernel["stack"] == 0, kernel
        assert kernel["shared"] <= (227 if architecture >= 90 else 163) * 1024, kernel
    for kernel in found["attend"]:
        assert kernel["asynchronous"], kernel
        if architecture >= 90 and kernel["block_rows"] >= 64:
            assert kernel["warpgroups"], kernel
