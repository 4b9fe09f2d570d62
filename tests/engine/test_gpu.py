"""On a GPU the engine gives the answers it gives on the CPU."""

import pytest
import torch
from transformers import LlamaConfig

from kvrag.engine import PacketEngine
from kvrag.model import LanguageModel
from kvrag.store import PacketStore

from ..conftest import CHUNKS, TINY, build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPT = "Documents:\n" + "\n\n".join(CHUNKS) + "\nQuestion: how many goats? Answer:"


def answers(device, hf_tokenizer, folder):
    model = LanguageModel(build_model(LlamaConfig(**TINY | {"head_dim": 32})).to(device), hf_tokenizer, name="tiny")
    with (
        PacketStore(folder) as store,
        PacketEngine(model, store=store, adapter="none", strategy="no-recompute") as engine,
    ):
        built = engine.build(CHUNKS)
        packets = {key: p.kv for key, p in engine.prepare(PROMPT).packets.items()}
        attached = engine.generate(PROMPT, max_new_tokens=40)
        full = engine.generate(PROMPT, max_new_tokens=40, strategy="full-recompute")
    return built, packets, attached, full


def test_answers_and_packets_are_those_of_the_cpu(hf_tokenizer, tmp_path):
    built, packets, attached, full = answers("cpu", hf_tokenizer, tmp_path / "cpu")
    gpu_built, gpu_packets, gpu_attached, gpu_full = answers("cuda", hf_tokenizer, tmp_path / "cuda")
    assert gpu_built.built == built.built == len(CHUNKS)
    assert packets.keys() == gpu_packets.keys()  # the identity does not depend on the device
    for key, kv in packets.items():
        torch.testing.assert_close(gpu_packets[key], kv, rtol=1e-3, atol=1e-3)
    assert gpu_attached.usage == attached.usage
    assert gpu_attached.token_ids == attached.token_ids
    assert gpu_full.token_ids == full.token_ids


def test_packets_built_on_the_cpu_serve_the_gpu(hf_tokenizer, tmp_path):
    _, _, attached, _ = answers("cpu", hf_tokenizer, tmp_path)
    built, _, gpu_attached, _ = answers("cuda", hf_tokenizer, tmp_path)
    assert built.existing == len(CHUNKS)
    assert gpu_attached.token_ids == attached.token_ids


@pytest.mark.parametrize("codec", ["int8", "fp8"])
def test_packets_in_bytes_give_the_answers_of_the_cpu(hf_tokenizer, tmp_path, codec):
    """The CPU expands them when they are read; a GPU attends to them as they are, through recorded passes."""
    found, forms = [], []
    for device in ("cpu", "cpu", "cuda"):
        model = LanguageModel(build_model(LlamaConfig(**TINY | {"head_dim": 32})).to(device), hf_tokenizer, name="tiny")
        options = {"strategy": "no-recompute", "codec": codec, "loading": "load"}
        with (
            PacketStore(tmp_path) as store,
            PacketEngine(model, store=store, adapter="none", **options) as engine,
        ):
            engine.build(CHUNKS)
            forms.append({packet.form for packet in engine.prepare(PROMPT).packets.values()})
            found.append(engine.generate(PROMPT, max_new_tokens=20))
    assert forms[1:] == [{"raw"}, {codec}]
    assert found[2].usage == found[1].usage
    assert found[2].token_ids == found[1].token_ids


@pytest.mark.parametrize("name", ["a3", "cacheblend", "lego-link", "prophetkv", "random-recompute", "sam-kv"])
def test_tokens_computed_anew_give_the_answers_of_the_cpu(hf_tokenizer, tmp_path, name):
    """From packets in the pool; answers go on through recorded passes."""
    found = []
    for device in ("cpu", "cuda"):
        model = LanguageModel(build_model(LlamaConfig(**TINY | {"head_dim": 32})).to(device), hf_tokenizer, name="tiny")
        with (
            PacketStore(tmp_path / device) as store,
            PacketEngine(model, store=store, adapter="none", strategy=name) as engine,
        ):
            engine.build(CHUNKS)
            found.append(engine.generate(PROMPT, max_new_tokens=20))
    assert found[0].token_ids == found[1].token_ids
    assert found[0].usage == found[1].usage
    assert found[0].usage.cached_tokens > 0


@pytest.mark.parametrize("top_n", [1, 3])
def test_prompts_that_are_read_twice_give_the_answers_of_the_cpu(hf_tokenizer, tmp_path, top_n):
    """Ranked by queries that recorded passes leave behind, prompts of several sizes one after the other."""
    prompts = [PROMPT, PROMPT.replace("goats", "goats, and of " + "which colour and size " * 12), PROMPT]
    found = []
    for device in ("cpu", "cuda"):
        model = LanguageModel(build_model(LlamaConfig(**TINY | {"head_dim": 32})).to(device), hf_tokenizer, name="tiny")
        with (
            PacketStore(tmp_path / device) as store,
            PacketEngine(model, store=store, adapter="none", strategy=f"kv-packet:top_n={top_n}") as engine,
        ):
            engine.build(CHUNKS)
            answers = [engine.generate(prompt, max_new_tokens=4) for prompt in prompts]
            found.append([(answer.kept, answer.token_ids, answer.usage) for answer in answers])
    assert found[1] == found[0]
    assert len(found[0][0][0]) == top_n
