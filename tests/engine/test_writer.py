"""The writer acts on chunks while they are encoded, and on nothing else."""

import copy
import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.builder import encode_batch, tokenize_chunk
from kvrag.errors import AdapterError, UnsupportedModelError
from kvrag.model import LanguageModel
from kvrag.packet import Recipe, Scope
from kvrag.strategies import KVPacket
from kvrag.writer import Writer

from ..conftest import CHUNKS, TINY, build_model

SCALE = 0.7


def random_pairs(model, rank=3, seed=7):
    torch.manual_seed(seed)
    return {
        path: (torch.randn(rank, m.in_features) * 0.1, torch.randn(m.out_features, rank) * 0.1)
        for path, m in model.linear_modules().items()
    }


def with_merged_weights(model, pairs, scale=SCALE):
    merged = copy.deepcopy(model._model)
    with torch.no_grad():
        for path, (a, b) in pairs.items():
            merged.get_submodule(path).weight += (scale * b @ a).to(model.dtype)
    return merged


def adapter_of(model, pairs, **embeddings):
    header = AdapterHeader(weights=model.identity.weights, config=model.identity.config, writer_scale=SCALE)
    return Adapter(header, embeddings | Writer(pairs).named_tensors())


def checkpointed(model):
    """What transformers' trainer does for every layer, under whatever name this version has for it."""
    model._model.train()
    for layer in model._model.model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def hook_count(model):
    return sum(len(module._forward_hooks) for module in model._model.modules())


def test_linear_modules_are_those_of_the_layers_in_order(tiny):
    paths = list(tiny.linear_modules())
    assert len(paths) == 7 * 3
    assert paths[:2] == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert paths[-1] == "model.layers.2.mlp.down_proj"
    assert not any("lm_head" in path or "embed" in path for path in paths)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers the old way
def test_paths_and_shapes_are_the_same_under_peft(tiny, hf_tokenizer):
    import peft

    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2)
    wrapped = peft.get_peft_model(build_model(LlamaConfig(**TINY)), config)
    model = LanguageModel(wrapped, hf_tokenizer)
    shapes = {path: (m.in_features, m.out_features) for path, m in model.linear_modules().items()}
    assert shapes == {path: (m.in_features, m.out_features) for path, m in tiny.linear_modules().items()}
    with Writer(random_pairs(model), SCALE).active(model.linear_modules()):
        changed = model.plain_forward([5, 6, 7], range(3))
    assert not torch.allclose(changed, model.plain_forward([5, 6, 7], range(3)), atol=1e-2)


def test_a_compiled_model_is_refused(hf_tokenizer):
    model = LanguageModel(torch.compile(build_model(LlamaConfig(**TINY)), backend="eager"), hf_tokenizer)
    with pytest.raises(UnsupportedModelError, match="not compiled"):
        model.linear_modules()


def test_all_rows_equal_merged_weights(tiny):
    pairs = random_pairs(tiny)
    ids = list(range(40, 60))
    wanted = LanguageModel(with_merged_weights(tiny, pairs), tiny._chat_tokenizer).plain_forward(ids, range(20))
    plain = tiny.plain_forward(ids, range(20))
    with Writer(pairs, SCALE).active(tiny.linear_modules()):
        found = tiny.plain_forward(ids, range(20))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert (found - plain).abs().max() > 0.1
    assert torch.equal(tiny.plain_forward(ids, range(20)), plain)


def test_rows_beyond_the_given_ones_are_untouched(tiny):
    path, module = next(iter(tiny.linear_modules().items()))
    a, b = random_pairs(tiny)[path]
    x = torch.randn(1, 9, module.in_features)
    with torch.no_grad(), Writer({path: (a, b)}, SCALE).active({path: module}, rows=4):
        found = module(x)
    assert torch.equal(found[:, 4:], module(x)[:, 4:])
    torch.testing.assert_close(found[:, :4], x[:, :4] @ (module.weight + SCALE * b @ a).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packets_are_those_of_a_model_with_merged_weights(new_engine, hf_tokenizer, dtype):
    engine = new_engine(dtype=dtype)
    pairs = random_pairs(engine.model)
    adapter = adapter_of(engine.model, pairs, header=torch.randn(2, 64) * 0.2)
    scope = Scope(engine.model.identity, KVPacket().recipe(adapter))
    assert scope.recipe == Recipe(soft_before=2, writer=True)
    merged = LanguageModel(with_merged_weights(engine.model, pairs), hf_tokenizer)
    chunks = [tokenize_chunk(engine.model, scope, text) for text in CHUNKS]
    only_soft = Scope(scope.identity, Recipe(soft_before=2))
    found = encode_batch(engine.model, adapter, scope, chunks)
    wanted = encode_batch(merged, adapter, only_soft, chunks)
    plain = encode_batch(engine.model, adapter, only_soft, chunks)
    for one, other, bare in zip(found, wanted, plain, strict=True):
        torch.testing.assert_close(one.kv, other.kv, rtol=1e-5, atol=1e-4)
        assert (one.kv - bare.kv).abs().max() > 0.1
        assert one.key != bare.key
    assert hook_count(engine.model) == 0


def test_questions_are_computed_by_the_bare_model(new_engine):
    """Logits over packets built with the writer equal those over the same packets built by nobody in particular."""
    engine = new_engine(dtype=torch.float64)
    model = engine.model
    before, stamp = model.identity, model.state_stamp()
    adapter = adapter_of(model, random_pairs(model))
    trained = new_engine(dtype=torch.float64, strategy="kv-packet", adapter=adapter)
    trained.build(CHUNKS)
    text = "Which one? Answer:"
    assert torch.equal(
        trained.model.plain_forward(trained.token_ids(text), range(len(trained.token_ids(text)))),
        model.plain_forward(engine.token_ids(text), range(len(engine.token_ids(text)))),
    )
    assert trained.generate(text, max_new_tokens=6).text == engine.generate(text, max_new_tokens=6).text
    assert trained.generate(CHUNKS[0] + text, max_new_tokens=2).usage.cached_tokens > 0
    assert (model.identity, model.state_stamp()) == (before, stamp)
    assert trained.model.identity == before
    assert trained.scope().identity.adapter == adapter.digest
    assert hook_count(trained.model) == 0


def test_hooks_are_gone_after_an_error(tiny):
    writer = Writer(random_pairs(tiny), SCALE)
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_under(writer, tiny)
    assert hook_count(tiny) == 0
    stray = Writer({"layers.9": random_pairs(tiny).popitem()[1]})
    with pytest.raises(AdapterError, match="layers.9"):
        fail_under(stray, tiny)
    assert hook_count(tiny) == 0


def fail_under(writer, model):
    with writer.active(model.linear_modules()):
        assert hook_count(model) == 21
        raise RuntimeError("in the middle")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_updates_and_the_embeddings(tiny, checkpointing):
    """In float32 over activations in bfloat16, with and without gradient checkpointing."""
    model = LanguageModel(tiny._model.to(torch.bfloat16), tiny._chat_tokenizer)
    pairs = {p: (a.requires_grad_(), b.requires_grad_()) for p, (a, b) in random_pairs(model).items()}
    embeds = torch.randn(1, 12, 64, dtype=torch.bfloat16, requires_grad=True)
    model._model.requires_grad_(False)
    if checkpointing:
        checkpointed(model)
    with Writer(pairs, SCALE).active(model.linear_modules(), rows=8):
        model._model(inputs_embeds=embeds, use_cache=False).logits[0, 8:].float().logsumexp(-1).sum().backward()
    assert embeds.grad is not None
    assert embeds.grad[0, :8].abs().max() > 0
    for path, (a, b) in pairs.items():
        # what the last layer makes of rows that nobody after it looks at reaches only through keys and values
        reached = "layers.2" not in path or "k_proj" in path or "v_proj" in path
        for tensor in (a, b):
            assert tensor.grad is not None
            assert tensor.grad.dtype == torch.float32
            assert bool(tensor.grad.abs().max() > 0) == reached, path


def test_checkpointing_gives_the_same_gradients(tiny):
    embeds = torch.randn(1, 12, 64)
    tiny._model.requires_grad_(False)

    def gradients():
        pairs = {p: (a.requires_grad_(), b.requires_grad_()) for p, (a, b) in random_pairs(tiny).items()}
        with Writer(pairs, SCALE).active(tiny.linear_modules(), rows=8):
            tiny._model(inputs_embeds=embeds, use_cache=False).logits[0, 8:].logsumexp(-1).sum().backward()
        return [tensor.grad for pair in pairs.values() for tensor in pair]

    plain = gradients()
    checkpointed(tiny)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_recipe_with_a_writer_needs_an_adapter_with_one(tiny):
    identity = tiny.identity
    chunk = tokenize_chunk(tiny, Scope(identity, Recipe()), CHUNKS[0])
    soft = Adapter(AdapterHeader(weights=identity.weights, config=identity.config), {"header": torch.zeros(2, 64)})
    for adapter, found in ((None, "none"), (soft, "one without")):
        with pytest.raises(AdapterError, match=f"a writer.*{found}"):
            encode_batch(tiny, adapter, Scope(identity, Recipe(writer=True)), [chunk])
    with pytest.raises(AdapterError, match="soft tokens"):
        encode_batch(tiny, None, Scope(identity, Recipe(soft_before=2)), [chunk])
