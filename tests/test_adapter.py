"""Adapter files: what goes in comes out, and what does not fit is refused."""

import errno
import os

import pytest
import torch

from kvrag.adapter import Adapter, AdapterHeader
from kvrag.errors import AdapterError, UnsupportedModelError
from kvrag.model import LanguageModel
from kvrag.sources import open_adapter
from kvrag.strategies import KVPacket
from kvrag.writer import Writer

HEADER = AdapterHeader(weights="w", config="c", trained_on="nothing", writer_scale=0.5)
PATH = "model.layers.0.mlp.up_proj"


def tensors(dtype=torch.float32, rank=2):
    torch.manual_seed(3)
    return {
        "header": torch.randn(3, 64).to(dtype),
        "link": torch.randn(1, 64).to(dtype),
        f"writer.{PATH}.lora_A.weight": torch.randn(rank, 64).to(dtype),
        f"writer.{PATH}.lora_B.weight": torch.randn(96, rank).to(dtype),
    }


def for_model(model, tensors):
    return Adapter(AdapterHeader(weights=model.identity.weights, config=model.identity.config), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_the_same_when_loaded(tmp_path, dtype):
    adapter = Adapter(HEADER, tensors(dtype))
    adapter.save(tmp_path / "a.safetensors")
    loaded = Adapter.load(tmp_path / "a.safetensors")
    assert loaded.header == adapter.header
    assert loaded.digest == adapter.digest
    assert set(loaded.tensors) == set(adapter.tensors)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    assert loaded.rank == adapter.rank == 2
    assert loaded.writer.scale == 0.5
    assert set(loaded.embeddings) == {"header", "link"}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_digest_depends_on_every_part():
    digests = {Adapter(HEADER, tensors()).digest, Adapter(HEADER, tensors(torch.bfloat16)).digest}
    digests.add(Adapter(HEADER.model_copy(update={"writer_scale": 1.0}), tensors()).digest)
    changed = tensors()
    changed[f"writer.{PATH}.lora_B.weight"][0, 0] += 1
    digests.add(Adapter(HEADER, changed).digest)
    assert len(digests) == 4


def test_tensors_that_share_memory_are_saved(tmp_path):
    both = torch.randn(4, 64)
    Adapter(HEADER, {"header": both[:2], "trailer": both[2:], "link": both}).save(tmp_path / "a.safetensors")
    assert torch.equal(Adapter.load(tmp_path / "a.safetensors").soft("trailer"), both[2:])


def test_a_full_disk_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    Adapter(HEADER, {}).save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdapterError, match=r"a\.safetensors.*No space left"):
        Adapter(HEADER, tensors()).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(AdapterError, match="nowhere"):
        Adapter(HEADER, {}).save(tmp_path / "nowhere" / "a.safetensors")


def without(name):
    return {key: tensor for key, tensor in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"header": torch.zeros(64)}, "matrix.*'header'.*\\[64\\]"),
        ({"header": torch.full((2, 64), torch.inf)}, "128 of them not finite"),
        ({"header": torch.zeros(2, 64, dtype=torch.int64)}, "int64"),
        (without(f"writer.{PATH}.lora_A.weight"), "lora_B.weight'"),
        (without(f"writer.{PATH}.lora_B.weight"), "lora_B.weight'"),
        ({"writer.lm_head.weight": torch.zeros(2, 64)}, "'writer.lm_head.weight'"),
        (tensors() | {f"writer.{PATH}.lora_B.weight": torch.zeros(96, 3)}, "up_proj.*\\[2, 64\\] and \\[96, 3\\]"),
        (tensors() | {f"writer.{PATH}.lora_A.weight": torch.full((2, 64), torch.nan)}, "128 of them not finite"),
    ],
)
def test_malformed_tensors_are_refused(broken, message):
    with pytest.raises(AdapterError, match=message):
        Adapter(HEADER, broken)


@pytest.mark.parametrize("text", ["", "not json", '{"weights": "w", "config": "c", "writer_scale": "NaN"}'])
def test_a_header_that_says_nothing_sensible_is_refused(tmp_path, text):
    from safetensors.torch import save_file

    save_file({"header": torch.zeros(1, 64)}, tmp_path / "a.safetensors", {"kvrag_adapter": text})
    with pytest.raises(AdapterError, match="cannot be read"):
        Adapter.load(tmp_path / "a.safetensors")


def test_a_writer_that_fits_is_opened(tiny):
    adapter = for_model(tiny, tensors())
    assert open_adapter(adapter, tiny) is adapter
    assert KVPacket().recipe(adapter).writer


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.7.mlp.up_proj", (96, 64), "model.layers.7.mlp.up_proj, found none among its 21"),
        ("lm_head", (400, 64), "lm_head, found none"),
        (PATH, (64, 96), "96 inputs and 64 outputs, found 64 and 96"),
    ],
)
def test_a_writer_for_other_layers_is_refused(tiny, name, shape, message):
    pair = {name: (torch.zeros(1, shape[1]), torch.zeros(shape[0], 1))}
    with pytest.raises(AdapterError, match=message):
        open_adapter(for_model(tiny, Writer(pair).named_tensors()), tiny)


def test_an_adapter_for_other_weights_is_refused_for_that_reason(tiny):
    with pytest.raises(AdapterError, match="weights and config differ"):
        open_adapter(Adapter(HEADER, {}), tiny)
    with pytest.raises(AdapterError, match="64 channels, found 32 in 'link'"):
        open_adapter(for_model(tiny, {"link": torch.zeros(1, 32)}), tiny)


@pytest.mark.parametrize("header", [HEADER, None])
def test_a_compiled_model_is_refused_only_by_a_writer_that_fits(tiny, header):
    model = LanguageModel(torch.compile(tiny._model, backend="eager"), tiny._chat_tokenizer)
    adapter = for_model(model, tensors()) if header is None else Adapter(header, tensors())
    with pytest.raises(UnsupportedModelError if header is None else AdapterError, match="compiled|weights and config"):
        open_adapter(adapter, model)
