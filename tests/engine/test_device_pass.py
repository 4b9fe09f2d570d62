"""Passes by the kernels for GPUs equal passes by the others; in Triton's interpreter where there is no GPU."""

import numpy as np
import pytest
import torch
from kvrag_kernels.packet_attention import AttentionTable
from transformers import LlamaConfig, Qwen3Config

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel, Rows
from kvrag.store import PacketStore

from ..conftest import CHUNKS, TINY, build_model

pytest.importorskip("triton")

from kvrag_kernels.packet_attention.work import EVERY

from kvrag.attach import Extent
from kvrag.attach.device import DevicePass, DeviceWorks, PlainPass

PROMPT = "Documents:\n" + "\n\n".join(CHUNKS[:3]) + "\nQuestion: how many goats? Answer:"
MODELS = {
    "llama": lambda: LlamaConfig(**TINY),
    "qwen3, three query heads to a KV head": lambda: Qwen3Config(
        **TINY | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    ),
}


@pytest.fixture(params=MODELS)
def models(request, hf_tokenizer):
    """The same model twice: as everywhere, and with the kernels for GPUs."""
    found = []
    for _ in range(2):
        found.append(LanguageModel(build_model(MODELS[request.param]()), hf_tokenizer, name="tiny"))
    model = found[1]
    model.passes.works = DeviceWorks.of(model.geometry, model.rope, model.dtype, model.device)
    assert model.passes.works is not None
    return found


def answer(model, folder, **options):
    with (
        PacketStore(folder) as store,
        PacketEngine(model, store=store, adapter="none", strategy="no-recompute") as engine,
    ):
        engine.build(CHUNKS)
        return engine.generate(PROMPT, **options)


def test_answers_are_the_same(models, tmp_path):
    plain, by_kernels = (answer(m, tmp_path / str(i), max_new_tokens=3) for i, m in enumerate(models))
    assert by_kernels.token_ids == plain.token_ids
    assert by_kernels.usage == plain.usage
    assert by_kernels.usage.cached_tokens > 0


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
        readers = [[n * 1024, n * 1024 + 512, 16, 16, 4, 0, 0, 1, EVERY, 0] for n in range(extents)]
        return works.filled(1, np.asarray(readers), np.ones(extents, np.float32), table, places)

    small = filled(3)
    assert filled(4) is small
    large = filled(3000)
    assert large is not small
    assert large.arrays["counts"][0] >= small.arrays["counts"][0]
    assert filled(3) is large
