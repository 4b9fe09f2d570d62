"""Which models' packets can be moved: measured by the probe, on small random models of every family."""

import pytest
import torch
import transformers

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.engine import PacketEngine
from kvrag.errors import ModelError, UnsupportedModelError
from kvrag.model import LanguageModel
from kvrag.probe import check_movable, probe_error
from kvrag.writer import Writer

from ..conftest import CHUNKS, TINY, build_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}

MOVABLE = {
    "llama": ("LlamaConfig", {}),
    "llama, llama3 rope": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, yarn": ("Qwen2Config", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral without window": ("MistralConfig", {"sliding_window": None}),
    "phi3, partial rotary": ("Phi3Config", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.1, "embedding_multiplier": 3.0}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 2, "sliding_window": None}),
}
REFUSED = {
    "gemma2": ("Gemma2Config", {"head_dim": 16, "layer_types": ["full_attention"] * 3}, "softcap"),
    "cohere": ("CohereConfig", {}, "found a relative error"),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}, "found a relative error"),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 16, "num_local_experts": 2, "layer_types": ["full_attention"] * 3},
        "s_aux|yarn|relative",
    ),
    "mistral with a window": ("MistralConfig", {"sliding_window": 256}, "sliding window of 256"),
    "qwen2 with a window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 256, "max_window_layers": 1},
        "sliding window of 256",
    ),
    "dynamic ntk": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "dynamic",
    ),
    "longrope": (
        "Phi3Config",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 1024,
            },
        },
        "longrope",
    ),
    "gpt2 has no rope": ("GPT2Config", {}, "rotary"),
}


def config(name, options):
    return getattr(transformers, name)(**TINY, **options)


@pytest.mark.parametrize("family", MOVABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packets_of_these_models_move(family, dtype, hf_tokenizer):
    model = LanguageModel(build_model(config(*MOVABLE[family]), dtype), hf_tokenizer)
    check_movable(model)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3, partial rotary", "llama, yarn"])
def test_in_float64_moving_is_exact(family, hf_tokenizer):
    """What remains is the float32 in which transformers itself computes the angles."""
    model = LanguageModel(build_model(config(*MOVABLE[family]), torch.float64), hf_tokenizer)
    error, _ = probe_error(model)
    assert error < 2e-4


@pytest.mark.parametrize("family", REFUSED)
def test_these_models_are_refused_with_the_reason(family, hf_tokenizer):
    name, options, reason = REFUSED[family]
    with pytest.raises(UnsupportedModelError, match=reason):
        check_movable(LanguageModel(build_model(config(name, options)), hf_tokenizer))


def test_a_model_spread_over_devices_is_refused(hf_tokenizer):
    model = build_model(config("LlamaConfig", {}))
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(UnsupportedModelError, match="hf_device_map"):
        LanguageModel(model, hf_tokenizer)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_users_model_generates_as_before(implementation, hf_tokenizer):
    """Bit for bit the same logits before, while and after kvrag uses it."""
    model = build_model(config("LlamaConfig", {}))
    model.set_attn_implementation(implementation)
    ids = torch.tensor([[5, 9, 200, 31, 7, 8, 1]])
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])

    def observe():
        with torch.no_grad():
            plain, masked = model(ids).logits, model(ids, attention_mask=padded).logits
        return plain, masked, model.generate(ids, max_new_tokens=8, do_sample=False)

    before = observe()
    wrapped = LanguageModel(model, hf_tokenizer)
    check_movable(wrapped)
    during = observe()
    wrapped.close()
    after = observe()
    assert model.config._attn_implementation == implementation
    for first, second, third in zip(before, during, after, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_identity_names_what_changed(hf_tokenizer):
    one = LanguageModel(build_model(config("LlamaConfig", {})), hf_tokenizer).identity
    same = LanguageModel(build_model(config("LlamaConfig", {})), hf_tokenizer).identity
    other_weights = LanguageModel(build_model(config("LlamaConfig", {}), seed=1), hf_tokenizer).identity
    other_dtype = LanguageModel(build_model(config("LlamaConfig", {}), torch.bfloat16), hf_tokenizer).identity
    other_rope = LanguageModel(build_model(config("LlamaConfig", {"rope_parameters": YARN})), hf_tokenizer).identity
    assert one == same
    assert one.digest == same.digest
    assert one.differences(other_weights) == ["weights"]
    assert set(one.differences(other_dtype)) == {"weights", "dtype"}
    assert {"config", "rope"} <= set(one.differences(other_rope))


@pytest.fixture
def loaded_both_ways(hf_tokenizer, tmp_path):
    """A bfloat16 checkpoint, loaded in bfloat16 and in float32."""
    build_model(config("LlamaConfig", {}), torch.bfloat16).save_pretrained(tmp_path)
    hf_tokenizer.save_pretrained(tmp_path)
    return [LanguageModel.from_pretrained(tmp_path, device="cpu", dtype=kind) for kind in ("bfloat16", "float32")]


def test_a_checkpoint_is_the_same_model_in_either_dtype(loaded_both_ways):
    one, other = loaded_both_ways
    assert (one.dtype, other.dtype) == (torch.bfloat16, torch.float32)
    assert one.identity.differences(other.identity) == ["dtype"]
    with torch.no_grad():
        next(other._model.parameters())[0, 0] += 2**-20
    other.forget_identity()
    assert one.identity.differences(other.identity) == ["weights", "dtype"]


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_an_adapter_fits_a_checkpoint_in_either_dtype(loaded_both_ways, store, saved):
    one, other = loaded_both_ways
    header = AdapterHeader(weights=one.identity.weights, config=one.identity.config)
    path = "model.layers.1.self_attn.v_proj"
    pair = (torch.randn(2, 64).to(saved), torch.randn(32, 2).to(saved))
    soft = {"header": torch.randn(2, 64).to(saved), "link": torch.randn(1, 64).to(saved)}
    adapter = Adapter(header, soft | Writer({path: pair}).named_tensors())
    keys = []
    for model in (one, other):
        engine = PacketEngine(model, store=store, adapter=adapter)
        engine.build(CHUNKS)
        found = engine.prepare(f"{CHUNKS[0]}\nWhen?")
        keys += found.packets
        assert engine.generate(f"{CHUNKS[0]}\nWhen?", max_new_tokens=2).usage.cached_tokens > 0
        assert next(iter(found.packets.values())).kv.dtype == model.dtype
        engine.close()
    assert len(set(keys)) == 2


def test_training_the_model_is_noticed(tiny):
    before, stamp = tiny.identity, tiny.state_stamp()
    weight = next(tiny._model.parameters())
    with torch.no_grad():
        weight.add_(0.01)
    assert tiny.state_stamp() != stamp
    tiny.forget_identity()
    assert before.differences(tiny.identity) == ["weights"]


@pytest.mark.parametrize("device", ["gpu", "cpu:x"])
def test_a_device_that_does_not_exist_is_not_blamed_on_the_model(device, tmp_path):
    with pytest.raises(ModelError, match=f"expected a device that PyTorch has here.*found '{device}'"):
        LanguageModel.from_pretrained(tmp_path, device=device)
