"""Packets that stay in their codec's bytes from the disk to the kernels; in Triton's interpreter without a GPU."""

from contextlib import ExitStack

import pytest
import torch
from transformers import LlamaConfig

from kvrag.engine import PacketEngine
from kvrag.errors import CorruptPacketError
from kvrag.model import LanguageModel, Rows
from kvrag.plan import plan_lane
from kvrag.store import PacketStore
from kvrag.store.format import read_packet

from ..conftest import CHUNKS, TINY, build_model

pytest.importorskip("triton")

from kvrag.attach import ComputedStates, Extent
from kvrag.attach.attention import AttentionPass
from kvrag.attach.device import DeviceWorks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = "Documents:\n" + "\n\n".join(CHUNKS[:2]) + "\nQuestion: how many goats? Answer:"
BYTES = ["int8", "fp8"]


@pytest.fixture(params=["float32", "bfloat16"] if DEVICE == "cuda" else ["float32"])
def opened(request, hf_tokenizer, tmp_path):
    """Opens engines over the same store, whose packets stay in bytes or not."""
    ended = ExitStack()

    def opened(codec, *, in_bytes=True):
        made = build_model(LlamaConfig(**TINY | {"head_dim": 32})).to(DEVICE, getattr(torch, request.param))
        model = LanguageModel(made, hf_tokenizer, name="tiny")
        model.passes.works = DeviceWorks.of(model.geometry, model.rope, model.dtype, model.device)
        store = ended.enter_context(PacketStore(tmp_path))
        options = {"strategy": "no-recompute", "computed_bytes": 0, "device_memory": 1 << 20, "loading": "load"}
        engine = ended.enter_context(PacketEngine(model, store=store, adapter="none", codec=codec, **options))
        store._disk.encoded = in_bytes
        return engine

    with ended:
        yield opened


def built(opened, codec, **options):
    """An engine whose packets are on disk and nowhere else."""
    assert opened(codec).build(CHUNKS[:2]).built == 2
    return opened(codec, **options)


def forms(engine, **options):
    return {packet.form for packet in engine.prepare(PROMPT, **options).packets.values()}


@pytest.mark.parametrize("codec", BYTES)
def test_packets_stay_in_their_bytes_down_to_the_device(opened, tmp_path, codec):
    engine = built(opened, codec)
    model, packets = engine.model, engine.prepare(PROMPT).packets.values()
    raw = {path.stem: read_packet(path, key=path.stem).kv for path in tmp_path.rglob("*.safetensors")}
    share = (model.geometry.head_dim + 2) / (model.geometry.head_dim * model.dtype.itemsize)
    assert len(packets) == 2
    for packet in packets:
        assert packet.form == codec
        assert packet.shape == raw[packet.key].shape
        assert packet.dtype == model.dtype
        assert packet.nbytes <= share * raw[packet.key].nbytes + 16 * model.geometry.layers
        assert torch.equal(packet.kv, raw[packet.key])
    pool = model.new_pool(1 << 20)
    with pool.hold(packets) as hold:
        pool.arrivals.wait_for_all()
        assert pool.nbytes <= sum(packet.nbytes + 255 for packet in packets)
        for packet in packets:
            slot = hold.slots[packet.key]
            assert torch.equal(slot.data.cpu(), packet.data)
            assert torch.equal(slot.kv.cpu(), raw[packet.key])
    pool.check_integrity()


@pytest.mark.parametrize("codec", BYTES)
def test_attaching_bytes_is_attaching_what_they_stand_for(opened, codec):
    """Logits after the prompt and after a step, beside packets that were expanded on the device."""
    engine = built(opened, codec)
    model, prompt, found = engine.model, engine.prepare(PROMPT), []
    for expanded in (True, False):
        pool = model.new_pool(1 << 20)
        plan = plan_lane(model, prompt, ComputedStates(0), 4, pool)
        pool.arrivals.wait_for_all()
        if expanded:
            plan.lane.extents = [Extent(e.kv, e.turn, e.seen_from) for e in plan.lane.extents]
        assert model.passes.new([plan.lane], [len(plan.rows.ids)]).work.forms == (set() if expanded else {codec})
        step = Rows(plan.lane, [7], [prompt.end])
        found.append(torch.cat([model.forward([rows], recorded=False) for rows in (plan.rows, step)]).float().cpu())
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance * found[0].abs().max().item())


@pytest.mark.parametrize("codec", BYTES if DEVICE == "cuda" else BYTES[:1])
def test_packets_are_ranked_by_what_bytes_stand_for(opened, codec):
    engine = built(opened, codec)
    model, prompt, found = engine.model, engine.prepare(PROMPT, strategy="kv-packet:top_n=1"), []
    for expanded in (True, False):
        pool = model.new_pool(1 << 20)
        plan = plan_lane(model, prompt, ComputedStates(0), 4, pool)
        pool.arrivals.wait_for_all()
        if expanded:
            for extent in plan.lane.extents:
                extent.block = extent.kv
        model.forward([plan.rows], recorded=False)
        found.append(plan.rows.ranking.shares)
    assert found[1] == pytest.approx(found[0], rel=1e-4 if model.dtype == torch.float32 else 5e-2)


def test_answers_are_those_of_expanded_packets(opened):
    """Through recorded passes where there is a GPU."""
    in_bytes, expanded = built(opened, "int8"), opened("int8", in_bytes=False)
    found = [engine.generate(PROMPT, max_new_tokens=2) for engine in (in_bytes, expanded)]
    assert found[0].usage == found[1].usage
    assert found[0].usage.cached_tokens > 0
    if in_bytes.model.dtype == torch.float32:
        assert found[0].token_ids == found[1].token_ids


def test_tokens_computed_anew_find_expanded_packets(opened):
    """A private lane begins as the packets' expanded numbers, re-rotated."""
    lanes = []
    for engine, form in ((built(opened, "int8"), "int8"), (opened("int8", in_bytes=False), "raw")):
        engine.build(CHUNKS[:2], strategy="cacheblend")
        prompt = engine.prepare(PROMPT, strategy="cacheblend")
        assert forms(engine, strategy="cacheblend") == {form}
        plan = plan_lane(engine.model, prompt, ComputedStates(0), 1, engine.model.new_pool(1 << 20))
        spans = plan.rows.repair._layout.packets
        lanes.append([plan.lane.own(first, last).clone() for first, last in spans])
    assert len(lanes[0]) == 2
    assert all(torch.equal(one, other) for one, other in zip(*lanes, strict=True))


def test_without_kernels_packets_are_expanded(opened):
    engine = built(opened, "int8")
    prompt = engine.prepare(PROMPT)
    plans = [
        plan_lane(engine.model, prompt, ComputedStates(0), 1, pool) for pool in (engine.model.new_pool(1 << 20), None)
    ]
    attended = [AttentionPass([plan.lane], [1], engine.model.rope) for plan in plans]
    for one, other in zip(attended[0]._keys[:-1], attended[1]._keys[:-1], strict=True):
        assert all(torch.equal(*layers) for layers in zip(one, other, strict=True))


def test_layers_stored_as_they_are_expand_the_packet(opened, monkeypatch):
    monkeypatch.setattr("kvrag.store.codecs._ByToken.encode_intact", lambda self, layer: None)
    assert forms(built(opened, "int8")) == {"raw"}


def test_packets_of_int4_are_expanded(opened):
    assert forms(built(opened, "int4")) == {"raw"}


@pytest.mark.parametrize("codec", BYTES)
def test_a_flipped_bit_of_encoded_bytes_is_found(opened, tmp_path, codec):
    engine = built(opened, codec)
    path = next(tmp_path.rglob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[4096 + 77] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptPacketError, match="checksum of layer 0"):
        read_packet(path, key=path.stem, encoded=True)
    assert len(engine.prepare(PROMPT).packets) == 1  # the other is text again
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
