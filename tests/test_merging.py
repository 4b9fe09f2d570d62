"""Merging a reader: bit for bit what the formula says, and refused where it would say something else."""

import json
import math
import os
import shutil
from fractions import Fraction

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from kvrag.errors import AdapterError, KVRagError, ModelError
from kvrag.merging import READER_FILES, merge_reader
from kvrag.model import LanguageModel

from .conftest import TINY, build_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks the old way


@pytest.fixture
def base(tmp_path, hf_tokenizer):
    """A random model's folder, in bfloat16."""
    build_model(LlamaConfig(**TINY), torch.bfloat16).save_pretrained(tmp_path / "base")
    hf_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def reader(tmp_path, base):
    return write_reader(tmp_path / "reader", base)


def write_reader(folder, base, **options):
    """A LoRA of random numbers, written by peft in bfloat16."""
    torch.manual_seed(11)
    options = {"r": 16, "lora_alpha": 24, "target_modules": "all-linear", "init_lora_weights": False} | options
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options), autocast_adapter_dtype=False)
    wrapped.save_pretrained(folder)
    return folder


def rounded(exact: Fraction) -> float:
    """The nearest bfloat16 number, ties to even, in whole numbers: the oracle."""
    if not exact:
        return 0.0
    exponent = math.floor(math.log2(abs(exact))) - 7
    for shift in (exponent - 1, exponent, exponent + 1):  # the logarithm may be off by one
        digits = abs(exact) / Fraction(2) ** shift
        if 128 <= digits < 256:
            return math.copysign(round(digits) * 2.0**shift, exact)
    raise AssertionError(exact)


def test_merged_weights_are_the_exact_ones_rounded_once(tmp_path, base, reader):
    """Against rational numbers; with alpha / r = 1.5, which is exact in float64."""
    merge_reader(base, reader, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    factors = load_file(reader / READER_FILES[1])
    name = "model.layers.1.mlp.down_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    assert a.dtype == torch.float64
    weight = before[f"{name}.weight"].double()
    for row in range(0, 64, 7):
        for column in range(0, 96, 5):
            terms = (Fraction(x) * Fraction(y) for x, y in zip(b[row].tolist(), a[:, column].tolist(), strict=True))
            exact = Fraction(weight[row, column].item()) + Fraction(3, 2) * sum(terms)
            assert after[f"{name}.weight"][row, column].item() == rounded(exact)
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert changed == {f"{key.removeprefix('base_model.model.')[:-14]}.weight" for key in factors}
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_number_is_rounded_twice(tmp_path, dtype):
    """Just above the middle of two numbers: float32 takes it for the middle, and even would be the lower one."""
    step = torch.finfo(dtype).eps
    weight = torch.tensor([[1.0], [-1.0], [1.0], [1 + step]], dtype=dtype)
    a = torch.tensor([[step / 2], [2**-40.0]], dtype=torch.float32)
    b = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    base, reader = tmp_path / "base", tmp_path / "reader"
    base.mkdir()
    reader.mkdir()
    save_file({"layers.0.q.weight": weight}, base / "model.safetensors")
    save_file(
        {f"base_model.model.layers.0.q.lora_{n}.weight": t for n, t in (("A", a), ("B", b))}, reader / READER_FILES[1]
    )
    (reader / READER_FILES[0]).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    merge_reader(base, reader, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")["layers.0.q.weight"]
    assert merged.double().flatten().tolist() == [1 + step, -1 - step, 1.0, 1 + step]


def test_merging_equals_pefts_own_merge_within_rounding(tmp_path, base, reader, hf_tokenizer):
    merge_reader(base, reader, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(model, reader).merge_and_unload().state_dict()
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in ours.items():
        wanted = theirs[name].float()
        assert ((tensor.float() - wanted).abs() <= wanted.abs() * 2**-8 + 1e-6).all(), name
    loaded = LanguageModel.from_pretrained(tmp_path / "out", device="cpu")
    bare = LanguageModel.from_pretrained(base, device="cpu")
    assert bare.identity.differences(loaded.identity) == ["weights"]
    assert loaded.plain_forward([5, 6, 7], range(3)).isfinite().all()


def test_a_model_in_several_files_is_merged_alike(tmp_path, base, reader):
    merge_reader(base, reader, tmp_path / "one")
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    merge_reader(tmp_path / "sharded", reader, tmp_path / "several")
    one, several = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).state_dict()
        for name in ("one", "several")
    )
    assert all(torch.equal(tensor, several[name]) for name, tensor in one.items())


def test_only_what_belongs_to_the_model_is_carried_over(tmp_path, base, reader):
    for name in ("adapter_config.json", "pytorch_model.bin", "kvrag.json", "notes.md"):
        (base / name).write_text("{}")
    (tmp_path / "out").mkdir()  # an empty folder may be there
    merge_reader(base, reader, tmp_path / "out")
    found = set(os.listdir(tmp_path / "out"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= found
    assert not found & {"adapter_config.json", "pytorch_model.bin", "kvrag.json", "notes.md"}
    assert set(os.listdir(tmp_path)) == {"base", "reader", "out"}


def refused(error, message, base, reader, out):
    before = set(os.listdir(out.parent))
    with pytest.raises(KVRagError, match=message) as caught:
        merge_reader(base, reader, out)
    assert type(caught.value) is error
    assert set(os.listdir(out.parent)) == before


@pytest.mark.parametrize(
    "variant",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=lambda variant: next(iter(variant)),
)
def test_other_kinds_of_lora_are_refused_by_name(tmp_path, base, variant):
    reader = write_reader(tmp_path / "reader", base, **variant)
    refused(AdapterError, f"plain LoRA.*{next(iter(variant))}=", base, reader, tmp_path / "out")


@pytest.mark.parametrize("change", [{"init_lora_weights": "pissa"}, {"peft_type": "LOHA"}, {"lora_bias": True}])
def test_settings_that_change_the_meaning_are_refused(tmp_path, base, reader, change):
    path = reader / READER_FILES[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(AdapterError, f"plain LoRA.*{next(iter(change))}=", base, reader, tmp_path / "out")


def test_a_reader_for_another_model_is_refused(tmp_path, base, hf_tokenizer):
    for name, options in (("deeper", {"num_hidden_layers": 4}), ("wider", {"intermediate_size": 128})):
        build_model(LlamaConfig(**TINY | options), torch.bfloat16).save_pretrained(tmp_path / name)
        reader = write_reader(tmp_path / f"reader-{name}", tmp_path / name)
        refused(AdapterError, "another model", base, reader, tmp_path / "out")


def test_tensors_that_are_no_plain_updates_are_refused(tmp_path, base, reader):
    whole = load_file(reader / READER_FILES[1])
    first = next(iter(whole))
    for tensors, message in (
        ({}, "nothing at all"),
        (whole | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, "lm_head"),
        (whole | {"elsewhere": torch.zeros(2, 2)}, "elsewhere"),
        ({name: tensor for name, tensor in whole.items() if name != first}, "missing"),
        (whole | {first: torch.full_like(whole[first], torch.nan)}, "not finite"),
        ({name: t[:8] if "lora_A" in name else t[:, :8].contiguous() for name, t in whole.items()}, "rank 8 of"),
    ):
        save_file(tensors, reader / READER_FILES[1])
        refused(AdapterError, message, base, reader, tmp_path / "out")


def test_what_cannot_be_read_or_written_is_named(tmp_path, base, reader):
    refused(AdapterError, "adapter_config.json", base, tmp_path / "nowhere", tmp_path / "out")
    refused(ModelError, "FileNotFoundError|nothing", tmp_path / "nowhere", reader, tmp_path / "out")
    refused(ModelError, "something in it", base, reader, base)
    (tmp_path / "file").write_text("")
    refused(ModelError, "file", base, reader, tmp_path / "file")
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"1234")
    refused(ModelError, "broken", broken, reader, tmp_path / "out")
    (broken / "model.safetensors").unlink()
    refused(ModelError, "found .*config.json.*save_pretrained", broken, reader, tmp_path / "out")
