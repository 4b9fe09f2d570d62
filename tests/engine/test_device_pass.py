"""Passes by the kernels for GPUs equal passes by the others; in Triton's interpreter where there is no GPU."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from kvrag_kernels.packet_attention import AttentionTable
from transformers import LlamaConfig, Qwen3Config

from kvrag.engine import PacketEngine
from kvrag.errors import PoolFullError
from kvrag.model import LanguageModel, Rows
from kvrag.store import PacketStore

from ..conftest import CHUNKS, TINY, build_model

pytest.importorskip("triton")

from kvrag_kernels.packet_attention.readers import EVERY

from kvrag.attach import ComputedStates, Extent
from kvrag.attach.device import DevicePass, DeviceWorks
from kvrag.attach.plain import PlainPass
from kvrag.graphs import ForwardGraphs
from kvrag.plan import plan_lane

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = "Documents:\n" + "\n\n".join(CHUNKS[:3]) + "\nQuestion: how many goats? Answer:"
MODELS = {
    "llama": lambda: LlamaConfig(**TINY | {"head_dim": 32}),
    "qwen3, three query heads to a KV head": lambda: Qwen3Config(
        **TINY | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    ),
}


@pytest.fixture(params=MODELS)
def models(request, hf_tokenizer):
    """The same model twice: as everywhere, and with the kernels for GPUs."""
    found = []
    for _ in range(2):
        found.append(LanguageModel(build_model(MODELS[request.param]()).to(DEVICE), hf_tokenizer, name="tiny"))
    found[0].passes.works = None
    model = found[1]
    model.passes.works = DeviceWorks.of(model.geometry, model.rope, model.dtype, model.device)
    assert model.passes.works is not None
    return found


def open_engine(model, store, device_memory=1 << 20):
    return PacketEngine(
        model, store=store, adapter="none", strategy="no-recompute", computed_bytes=0, device_memory=device_memory
    )


def answer(model, folder, **options):
    with PacketStore(folder) as store, open_engine(model, store) as engine:
        engine.build(CHUNKS)
        return engine.generate(PROMPT, **options)


def test_answers_are_the_same(models, tmp_path):
    plain, by_kernels = (answer(m, tmp_path / str(i), max_new_tokens=2) for i, m in enumerate(models))
    assert by_kernels.token_ids == plain.token_ids
    assert by_kernels.usage == plain.usage
    assert by_kernels.usage.cached_tokens > 0


@pytest.mark.parametrize("models", list(MODELS)[:1], indirect=True)
def test_packets_are_ranked_alike(models, tmp_path, monkeypatch):
    """By the queries that buffers keep, or passes that are too large for them, and keys wherever the pool has them."""
    found = []
    for number, model in enumerate(models):
        with PacketStore(tmp_path / str(number)) as store, open_engine(model, store) as engine:
            engine.build(CHUNKS)
            prepared = engine.prepare(PROMPT, strategy="kv-packet:top_n=2")

            def rank(engine=engine, prepared=prepared):
                plan = plan_lane(engine.model, prepared, ComputedStates(0), 1, engine._worker._pool)
                engine.model.forward([plan.rows])
                plan.release()
                return plan.rows.ranking.shares

            found.append(engine.run(rank))
            if model.passes.works is not None:
                with monkeypatch.context() as patch:
                    patch.setattr("kvrag.attach.device.SIZES", (1,))
                    model.passes.works._works.clear()
                    assert engine.run(rank) == pytest.approx(found[0], rel=1e-3)
                model.passes.works._works.clear()
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_packets_stay_on_the_device_and_wait_for_room(models, tmp_path):
    """Two prompts of three packets each, and room for four: the second waits for the first, and both are answered."""
    prompts = ["\n".join(chunks) + "\nAnswer:" for chunks in (CHUNKS[:3], CHUNKS[3:])]
    found = []
    for number, model in enumerate(models):
        g = model.geometry
        tokens = sum(len(model.tokenizer.encode(chunk, literal=True)) for chunk in CHUNKS)
        room = tokens * g.layers * 2 * g.kv_heads * g.head_dim * 4 * 2 // 3
        with PacketStore(tmp_path / str(number)) as store, open_engine(model, store, room) as engine:
            engine.build(CHUNKS)
            streams = [engine.stream(prompt, max_new_tokens=2) for prompt in prompts]
            found.append(["".join(stream) for stream in streams])
            pool = engine._worker._pool
            if pool is not None:
                pool.check_integrity()
                assert 0 < pool.nbytes <= pool.capacity
                assert pool.fits(engine.prepare(prompts[0]).packets.values())  # nothing is held any more
    assert found[1] == found[0]


def test_packets_that_never_fit_are_a_clear_error(models, tmp_path):
    _, model = models
    with PacketStore(tmp_path) as store, open_engine(model, store, 4096) as engine:
        engine.build(CHUNKS)
        with pytest.raises(PoolFullError, match="device_memory"):
            engine.generate(PROMPT, max_new_tokens=1)


def test_several_requests_in_a_pass_equal_single_ones(models, tmp_path):
    plain, by_kernels = models
    ids = list(range(5, 45))
    found = []
    for model in models:
        packet = model.new_lane(20)
        model.forward([Rows(packet, ids[:20], range(20))])
        kv = packet.own(0, 20).clone()
        rows = []
        for start, question in ((0, ids[20:26]), (700, ids[26:40]), (31, ids[30:31])):
            lane = model.new_lane(4)
            lane.attach([Extent(kv, start, 0)])
            rows.append(Rows(lane, question, range(start + 20, start + 20 + len(question))))
        first = model.forward(rows)
        more = [Rows(r.lane, [7 + n], [r.positions[-1] + 1]) for n, r in enumerate(rows)]
        found.append((first, model.forward(more)))
    for got, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-4)


def test_steps_over_the_same_packets_are_planned_once_in_a_while(models, monkeypatch):
    """Whatever moves in between, every step sees what it is to see."""
    plain, by_kernels = models
    monkeypatch.setattr("kvrag.attach.device._STEPS", 5)
    fills = Mock(side_effect=DeviceWorks.filled, autospec=True)
    monkeypatch.setattr(DeviceWorks, "filled", lambda *args: fills(*args))
    found = []
    for model in models:
        packet = model.new_lane(20)
        model.forward([Rows(packet, list(range(5, 25)), range(20))])
        block = Movable(packet.own(0, 20).clone())
        lanes = []
        for start, capacity in ((0, 3), (700, 20)):  # the first has to grow
            lanes.append(model.new_lane(capacity))
            lanes[-1].attach([Extent(block, start, 0)])
        steps = []
        for number in range(9):
            if number == 7 and model is by_kernels:
                block.move()
                model.passes.works.arrivals.moves += 1
            steps.append(model.forward([Rows(lane, [7 + number], [720 + number]) for lane in lanes]))
        steps.append(model.forward([Rows(lane, [3], [740]) for lane in reversed(lanes)]))
        found.append(torch.stack(steps))
    torch.testing.assert_close(found[1], found[0], rtol=2e-4, atol=2e-4)
    assert fills.call_count == 5  # at first, when a lane grew, when steps were enough, after the move, in another order


class Movable:
    """A block that is somewhere else from time to time; where it was, there is nothing."""

    def __init__(self, kv):
        self.kv = kv

    def move(self):
        before, self.kv = self.kv, self.kv.clone()
        before.fill_(torch.nan)

    @property
    def place(self):
        return Extent(self.kv, 0, 0).place


def test_an_empty_lane_is_left_to_pytorch_and_others_are_not(models):
    _, model = models
    lane, other = model.new_lane(4), model.new_lane(4)
    assert isinstance(model.passes.new([lane, other], [3, 2]), PlainPass)
    lane.advance(3)
    assert isinstance(model.passes.new([lane, other], [1, 2]), DevicePass)


def test_more_work_than_ever_before_gets_larger_buffers(models):
    _, model = models
    works = model.passes.works
    table = AttentionTable((), *model.rope.angles([]))
    places = np.zeros((1, 4), np.int64)

    def filled(extents):
        readers = [[n * 1024, n * 1024 + 512, 16, 16, 0, 0, 4, 0, 0, 1, EVERY, 0] for n in range(extents)]
        return works.filled(1, np.asarray(readers), np.ones(extents, np.float32), table, places)

    small = filled(3)
    assert filled(4) is small
    large = filled(3000)
    assert large is not small
    assert large.arrays["counts"][0] >= small.arrays["counts"][0]
    assert filled(3) is large


def test_blocks_that_kernels_cannot_read_are_refused(models):
    _, model = models
    g = model.geometry
    numbers = torch.zeros(8 + g.block(20, model.dtype, model.device).numel())
    shape = (g.layers, 2, g.kv_heads, 20, g.head_dim)
    apart = torch.zeros(*shape[:3], g.head_dim, 20).transpose(3, 4)
    for kv, wrong in ((numbers[8:].view(shape), "multiples of 16"), (apart, "one behind the other")):
        lane = model.new_lane(1)
        lane.attach([Extent(kv, 0, 0)])
        with pytest.raises(ValueError, match=wrong):
            model.passes.new([lane], [1])


def test_recorded_passes_equal_others(models):
    """Calls stand in for CUDA graphs: what they read stays where it is, and rows that fill a pass up change nothing."""
    _, model = models
    recorded = []

    def record(call):
        recorded.append(call)
        call()
        return call

    ids = list(range(5, 45))
    packet = model.new_lane(20)
    model.forward([Rows(packet, ids[:20], range(20))])
    kv = packet.own(0, 20).clone()
    before = kv.clone()
    found = []
    for graphs in (None, ForwardGraphs(model.run, model.embed, record)):
        model.graphs = graphs
        logits = []
        for start, count in ((0, 9), (300, 12), (11, 1)):
            lane = model.new_lane(3)
            lane.attach([Extent(kv, start, 0)])
            logits.append(model.forward([Rows(lane, ids[-count:], range(start + 20, start + 20 + count))]))
        found.append(torch.cat(logits))
    torch.testing.assert_close(found[1], found[0], rtol=2e-4, atol=2e-4)
    assert len(recorded) == 2  # of 16 rows, and of one
    assert torch.equal(kv, before)


def test_a_recorded_pass_takes_embeddings_that_no_token_has(models):
    _, model = models
    packet = model.new_lane(20)
    model.forward([Rows(packet, list(range(5, 25)), range(20))])
    given = torch.randn(2, model.hidden_size, device=model.device)
    found = []
    for graphs in (None, ForwardGraphs(model.run, model.embed, lambda call: call)):
        model.graphs = graphs
        for soft in ([(1, given)], [], [(3, given)]):
            lane = model.new_lane(6)
            lane.attach([Extent(packet.own(0, 20), 30, 0)])
            found.append(model.forward([Rows(lane, [9, 8, 7, 6, 5], range(50, 55), soft)]))
    torch.testing.assert_close(found[3:], found[:3], rtol=2e-4, atol=2e-4)
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_a_model_that_cannot_be_recorded_says_why_and_goes_on(models, caplog):
    _, model = models

    def record(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    lane = model.new_lane(3)
    model.forward([Rows(lane, [5, 6, 7], range(3))])
    model.graphs = ForwardGraphs(model.run, model.embed, record)
    first = model.forward([Rows(lane, [8], [3])])
    assert "not permitted when stream is capturing" in caplog.text
    assert not model.graphs.takes(model.passes.new([lane], [1]))
    model.graphs = None
    lane.length -= 1
    assert torch.equal(model.forward([Rows(lane, [8], [3])]), first)


def test_a_compiled_pass_equals_others(models):
    _, model = models
    packet = model.new_lane(20)
    model.forward([Rows(packet, list(range(5, 25)), range(20))])

    def logits():
        lane = model.new_lane(3)
        lane.attach([Extent(packet.own(0, 20), 30, 0)])
        return model.forward([Rows(lane, [9], [50])])

    wanted = logits()
    before = {name: weight.clone() for name, weight in model.transformers_model.named_parameters()}
    products = []

    def backend(graph, _):
        products.append(sum(node.target is torch.nn.functional.linear for node in graph.graph.nodes))
        return graph

    model.graphs = ForwardGraphs(model.compiled_run(backend=backend, fullgraph=True), model.embed, lambda call: call)
    for _ in range(2):
        torch.testing.assert_close(logits(), wanted, rtol=2e-4, atol=2e-4)
    assert products == [4 * model.geometry.layers + 1]  # of seven in a layer: query, key and value; gate and up
    assert all(torch.equal(weight, before[name]) for name, weight in model.transformers_model.named_parameters())
    model.graphs = None
    assert torch.equal(logits(), wanted)


def test_an_engine_does_without_kernels_that_do_not_run(models, tmp_path, monkeypatch, caplog):
    _, model = models
    monkeypatch.setattr(DeviceWorks, "filled", Mock(side_effect=RuntimeError("no kernel image is available")))
    assert answer(model, tmp_path, max_new_tokens=2).usage.cached_tokens > 0
    assert "no kernel image is available" in caplog.text
    assert model.passes.works is None


def test_scores_and_merges_of_packets_are_scaled_alike(models, tmp_path):
    """APE's temperature and scale: a merge group of its own in the kernels' work."""
    plain, by_kernels = models
    prompt, scaled = "\n".join(CHUNKS[:2]) + "\nAnswer:", "ape:temperature=0.5:scale=0.6:prefix=?"

    def logits(model, *strategies):
        found = []
        with PacketStore(tmp_path / "store") as store, open_engine(model, store) as engine:
            for strategy in strategies:
                engine.build(CHUNKS[:2], strategy=strategy)
                plan = plan_lane(model, engine.prepare(prompt, strategy=strategy), ComputedStates(0), 1)
                found.append(model.forward([plan.rows], recorded=False)[0].cpu())
        return found

    wanted, unscaled = logits(plain, scaled, "ape:temperature=1.0:scale=1.0:prefix=?")
    assert (wanted - unscaled).abs().max() > 1e-2
    torch.testing.assert_close(*logits(by_kernels, scaled), wanted, rtol=1e-3, atol=1e-3)
