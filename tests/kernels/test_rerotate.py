"""Packets copied to where they stand: the reference against the textbook, Triton against the reference."""

import pytest
import torch
from kvrag_kernels.packet_attention import AttentionItem, AttentionTable, packet_attention_reference
from kvrag_kernels.rerotate import rerotate, rerotate_reference

from .numerics import assert_as_accurate_as
from .test_packet_attention import angles, rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STARTS = [7, 0, 40]


def packets(dtype, head_dim):
    torch.manual_seed(0)
    return [torch.randn(2, 2, 3, n, head_dim, dtype=torch.float64).to(dtype) for n in (5, 1, 130)]


def targets(dtype, head_dim, count):
    return [torch.full((2, 2, 3, 200, head_dim), torch.nan, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("half", [16, 8])
def test_reference_turns_keys_and_copies_values(half):
    found = packets(torch.float64, 32)
    (target,) = targets(torch.float64, 32, 1)
    rerotate(found, *angles(STARTS, half), target, STARTS)
    for packet, start in zip(found, STARTS, strict=True):
        placed = target[:, :, :, start : start + packet.shape[3]]
        assert torch.equal(placed[:, 1], packet[:, 1])
        for layer in range(2):
            wanted = rotate(packet[layer, 0], [start] * packet.shape[3], half)
            torch.testing.assert_close(placed[layer, 0], wanted, rtol=0, atol=1e-12)
    assert target.isnan().sum() == 2 * 2 * 3 * (200 - 136) * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "half"), [(64, 32), (96, 48), (64, 16)])
def test_triton_is_as_accurate_as_the_reference(dtype, head_dim, half):
    pytest.importorskip("triton")
    from kvrag_kernels.rerotate.triton import rerotate_triton

    found = packets(dtype, head_dim)
    exact = angles(STARTS, half)
    cos, sin = (a.float() for a in exact)
    got, baseline = targets(dtype, head_dim, 2)
    (oracle,) = targets(torch.float64, head_dim, 1)
    rerotate_reference([p.double() for p in found], *exact, oracle, STARTS)
    rerotate_reference(found, cos, sin, baseline, STARTS)
    got = got.to(DEVICE)
    rerotate_triton([p.to(DEVICE) for p in found], cos, sin, got, STARTS)
    got = got.cpu()
    assert torch.equal(got.isnan(), oracle.isnan())
    known = ~oracle.isnan()
    assert_as_accurate_as(got[known], baseline[known], oracle[known])


def test_a_copy_gives_what_attaching_gives():
    (packet,) = packets(torch.float64, 32)[2:]
    q = torch.randn(4, 6, 32, dtype=torch.float64)
    cos, sin = angles([40], 16)
    target = torch.empty(2, 2, 3, 130, 32, dtype=torch.float64)
    rerotate([packet], cos, sin, target, [0])
    empty = torch.empty(0, 16, dtype=torch.float64)
    attached = packet_attention_reference(
        q, [packet[1, 0]], [packet[1, 1]], AttentionTable((AttentionItem(0, 4, 0),), cos, sin), 0.2
    )
    copied = packet_attention_reference(
        q, [target[1, 0]], [target[1, 1]], AttentionTable((AttentionItem(0, 4),), empty, empty), 0.2
    )
    torch.testing.assert_close(attached, copied, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", ["too long", "no angles", "another dtype"])
def test_what_does_not_fit_is_refused(wrong):
    found = packets(torch.float32, 32)
    cos, sin = (a.float() for a in angles(STARTS, 16))
    (target,) = targets(torch.float64 if wrong == "another dtype" else torch.float32, 32, 1)
    starts = [7, 0, 71] if wrong == "too long" else STARTS
    with pytest.raises(ValueError, match="expected"):
        rerotate(found, cos[:2] if wrong == "no angles" else cos, sin, target, starts)
    assert target.isnan().all()
