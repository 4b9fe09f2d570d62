"""Extents of bytes: int8 and fp8 numbers with scales, attended to as they are."""

import pytest
import torch
from kvrag_kernels.packet_attention import AttentionItem, AttentionTable, packet_attention_reference
from kvrag_kernels.packet_attention.encoded import Scaled, expand

from kvrag.store.codecs import CODECS

from .test_packet_attention import angles

pytest.importorskip("triton")

from kvrag_kernels.packet_attention import device
from kvrag_kernels.packet_attention.device import DeviceWork
from kvrag_kernels.packet_attention.once import packet_attention_triton
from kvrag_kernels.packet_attention.readers import READER, forms_of, readers_of

from .mutants import mutated
from .test_triton import DEVICE, assert_as_accurate_as

BYTES = ["int8", "fp8"]


def encoded(layer, form):
    """Keys and values `[H, T, D]` of a layer in a codec's bytes, at a place as the device pool gives."""
    data = CODECS[form].encode(layer)
    block = torch.full((-(-len(data) // 16) * 16,), 255, dtype=torch.uint8, device=layer.device)
    block[: len(data)] = data
    return Scaled.of(block, layer.shape, form)


def mixed_case(forms, *, head_dim=32, group=2, rows=5, heads=2, half=None, dtype=torch.float32):
    """One packet for each form, then rows behind earlier ones; some scales are a thousand times larger than others."""
    torch.manual_seed(7)
    half = head_dim // 2 if half is None else half
    lengths = [(70, 33, 130, 17)[number % 4] for number in range(len(forms))]
    q = torch.randn(rows, heads * group, head_dim).to(dtype).to(DEVICE)
    keys, values = [], []
    for form, tokens in zip(forms, lengths, strict=True):
        layer = torch.randn(2, heads, tokens, head_dim)
        layer[:, :, ::5] *= 1e-3
        layer = layer.to(dtype).to(DEVICE)
        scaled = layer if form == "raw" else encoded(layer, form)
        keys.append(scaled[0])
        values.append(scaled[1])
    own = torch.randn(2, heads, 3 + rows, head_dim).to(dtype).to(DEVICE)
    first = [0, *(number % rows for number in range(1, len(forms)))]
    items = [AttentionItem(f, rows, rotation=number) for number, f in enumerate(first)]
    cos, sin = angles([1000 * (number + 1) for number in range(len(forms))], half)
    table = AttentionTable((*items, AttentionItem(0, rows, diagonal=3)), cos.float(), sin.float())
    return (q, [*keys, own[0]], [*values, own[1]]), table


def on_cpu(tensors):
    return [Scaled(x.numbers.cpu(), x.scales.cpu()) if isinstance(x, Scaled) else x.cpu() for x in tensors]


def reference(q, keys, values, table, scaling):
    """Computed on the CPU, where tables are."""
    return packet_attention_reference(q.cpu(), on_cpu(keys), on_cpu(values), table, scaling).to(q.device)


def assert_attended(inputs, table, scaling=0.3, **options):
    """Within the tolerance of numbers of the query's dtype."""
    q, keys, values = inputs
    exact = [[x.to(torch.float64) for x in on_cpu(xs)] for xs in (keys, values)]
    oracle = packet_attention_reference(q.cpu().double(), *exact, table, scaling)
    got = packet_attention_triton(q, keys, values, table, scaling, **options)
    assert_as_accurate_as(got.cpu(), reference(*inputs, table, scaling).cpu(), oracle)


@pytest.mark.parametrize("form", BYTES)
def test_what_kernels_read_is_what_codecs_write(form):
    """Every bit: an expanded packet is the same, whoever expands it."""
    layers = torch.randn(2, 2, 3, 11, 32).bfloat16()
    layers[:, :, :, ::4] *= 1e-4
    wanted = torch.empty_like(layers)
    found = [CODECS[form].encode(layer) for layer in layers]
    for data, layer in zip(found, wanted, strict=True):
        CODECS[form].decode(data, layer)
    data = torch.stack([torch.nn.functional.pad(data, (0, 12), value=255) for data in found])
    assert torch.equal(expand(data, layers.shape, form, layers.dtype), wanted)
    assert torch.equal(Scaled.of(data, layers.shape[1:], form).to(layers.dtype), wanted)


@pytest.mark.parametrize("form", BYTES)
def test_the_reference_reads_bytes_as_what_they_stand_for(form):
    inputs, table = mixed_case([form, "raw", form], dtype=torch.float64)
    q, keys, values = inputs
    expanded = [[x.to(torch.float64) for x in xs] for xs in (keys, values)]
    got = reference(q, keys, values, table, 0.3)
    torch.testing.assert_close(got, reference(q, *expanded, table, 0.3), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("forms", [["int8"], ["fp8"], ["raw", "int8"], ["fp8", "raw", "int8", "fp8"]], ids="+".join)
def test_forms_mixed_in_a_pass(forms, dtype):
    assert_attended(*mixed_case(forms, dtype=dtype))


@pytest.mark.parametrize("form", BYTES)
@pytest.mark.parametrize("rows", [1, 17, 40])
def test_any_number_of_rows(form, rows):
    for multiprocessors in (1, 9):
        assert_attended(*mixed_case([form, "raw", form], rows=rows, group=3), multiprocessors=multiprocessors)


@pytest.mark.parametrize(("head_dim", "half"), [(64, 16), (96, 48), (128, 64), (256, 128)])
def test_every_shape_of_head(head_dim, half):
    assert_attended(*mixed_case(["int8", "fp8"], head_dim=head_dim, half=half, group=7), 0.1)


@pytest.mark.parametrize("form", BYTES)
def test_every_number_there_is(form):
    """Rows that see one token each, whose value is 32 of all numbers."""
    numbers = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    if form == "fp8":
        numbers[(numbers & 127) == 127] = 0  # no number, and no codec writes it
    data = torch.zeros(8, 80, dtype=torch.uint8, device=DEVICE)  # a token each: numbers [2, 1, 1, 32], scales [2, 1, 1]
    data[:, 32:64] = numbers.view(8, 32)
    data[:, 64:68] = torch.ones(2, dtype=torch.float16, device=DEVICE).view(torch.uint8)
    tokens = [Scaled.of(layer, (2, 1, 1, 32), form) for layer in data]
    items = tuple(AttentionItem(row, row + 1) for row in range(8))
    table = AttentionTable(items, torch.zeros(0, 16), torch.zeros(0, 16))
    query = torch.ones(8, 1, 32, device=DEVICE)
    got = packet_attention_triton(query, [t[0] for t in tokens], [t[1] for t in tokens], table, 1.0)
    wanted = torch.cat([token[1].to(torch.float32)[0] for token in tokens])
    assert torch.equal(got[:, 0], wanted)


def test_requests_share_bytes_and_steps_go_on():
    """Two requests see the same packet from different places; work added to is work planned anew."""
    torch.manual_seed(3)
    packet = encoded(torch.randn(2, 2, 70, 64, device=DEVICE), "int8")
    own = torch.randn(2, 2, 40, 64, device=DEVICE)
    q = torch.randn(2, 4, 64, device=DEVICE)
    cos, sin = angles([100, 900], 32)
    anchor = torch.zeros(16, device=DEVICE)

    def case(step):
        keys = [packet[0], own[0, :, : 20 + step], packet[0], own[1, :, : 1 + step]]
        values = [packet[1], keys[1], packet[1], keys[3]]
        items = AttentionItem(0, 1, 0), AttentionItem(0, 1, diagonal=19 + step), AttentionItem(1, 2, 1)
        return keys, values, AttentionTable((*items, AttentionItem(1, 2, diagonal=step)), cos.float(), sin.float())

    work = DeviceWork(anchor, 2, 2, 2, 64, 32, forms=["int8"])
    for step in range(4):
        keys, values, table = case(step)
        if step:
            work.advance(2)
        else:
            work.fill(*readers_of(anchor, keys, values, table), table, torch.zeros(2, 4, dtype=torch.int64).numpy())
        wanted = reference(q, keys, values, table, 0.1)
        torch.testing.assert_close(work.attend(q, 0, 0.1), wanted)


def test_rows_that_fill_a_recorded_pass_up_read_nothing():
    (q, keys, values), table = mixed_case(["int8", "raw", "fp8"])
    work = DeviceWork(q, 16, 2, 2, 32, 16, forms=BYTES)
    work._partial.fill_(torch.nan)
    work._partial_lse.fill_(torch.nan)
    work.fill(*readers_of(q, keys, values, table), table)
    padded = torch.full((16, 4, 32), torch.nan, device=DEVICE)
    padded[:5] = q
    got = work.attend(padded, 0, 0.3)
    torch.testing.assert_close(got[:5], reference(q, keys, values, table, 0.3))
    assert (got[5:] == 0).all()


def test_layers_lie_behind_each_other():
    """A packet of several layers, read where its layers are."""
    torch.manual_seed(2)
    shape, anchor = (3, 2, 2, 21, 32), torch.zeros(16, device=DEVICE)
    encoded_layers = [CODECS["fp8"].encode(layer) for layer in torch.randn(shape, device=DEVICE)]
    data = torch.stack([torch.nn.functional.pad(layer, (0, -len(layer) % 16)) for layer in encoded_layers])
    layers = Scaled.of(data, shape[1:], "fp8")
    cos, sin = angles([500], 16)
    table = AttentionTable((AttentionItem(0, 4, 0),), cos.float(), sin.float())
    query = torch.randn(4, 2, 32, device=DEVICE)
    readers, scales = readers_of(anchor, [layers[0][0]], [layers[0][1]], table)
    assert forms_of(readers) == {"fp8"}
    readers[:, READER.index("layer_stride")] = data.stride(0)
    work = DeviceWork(anchor, 4, 2, 1, 32, 16, forms=["fp8"])
    work.fill(readers, scales, table)
    for number in range(3):
        wanted = reference(query, [layers[number][0]], [layers[number][1]], table, 0.5)
        torch.testing.assert_close(work.attend(query, number, 0.5), wanted)


def test_buffers_refuse_forms_that_they_are_not_for():
    (q, keys, values), table = mixed_case(["raw", "int8"])
    work = DeviceWork(q, 5, 2, 2, 32, 16, forms=["fp8"])
    with pytest.raises(ValueError, match="int8"):
        work.fill(*readers_of(q, keys, values, table), table)


MUTANTS = {
    "keys without scales": ("scores *= (key_scale * unit)[None, :]", "pass"),
    "values without scales": ("weights *= (value_scale * unit)[None, :]", "pass"),
    "scales of keys for values": ("scales + to_values + token", "scales + token"),
    "scales of the first head": ("+ head * (head_stride // D)", ""),
    "fp8 in other units": ("256.0 if FORM == 2", "128.0 if FORM == 2"),
    "an unknown form": ("if form == 1:", "if form == 3:"),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter suffices")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_tolerance_sees_a_broken_kernel(mutant, tmp_path, monkeypatch):
    module = mutated(*MUTANTS[mutant], tmp_path, monkeypatch)
    inputs, table = mixed_case(["int8", "raw", "fp8"])
    assert_attended(inputs, table)
    monkeypatch.setattr(device, "attend_units", module.attend_units)
    with pytest.raises(AssertionError):
        assert_attended(inputs, table)
