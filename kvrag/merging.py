"""Merging a reader, a LoRA trained with peft, into the weights of its model once and for all.

Works on the files and needs neither peft nor transformers. The merged weights are the same bits on every machine:
products of the factors' numbers are exact in float64, their sums are taken one after another in a fixed order, and the
result is rounded once to the checkpoint's dtype.
"""

import json
import os
import secrets
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from kvrag.errors import AdapterError, ModelError
from kvrag.writer import Writer

__all__ = ["READER_FILES", "merge_reader"]

READER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What a reader's folder holds, as peft writes it."""

_PREFIX = "base_model.model."
_WANTED = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the base weights too
}
_HARMLESS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
}
"""Settings of peft that are no news: the tensors tell them, or the merged weights do not depend on them."""

_BLOCK = 1 << 15  # cells: what fits into a core's cache, and what PyTorch does not spread over threads
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CARRIED = (".json", ".txt", ".model", ".jinja")
_LEFT = ("adapter_", "pytorch_model", "kvrag.json")


def merge_reader(base_folder: str | Path, reader_folder: str | Path, out_folder: str | Path) -> None:
    """Write a model folder whose weights are those of a base model with a reader merged: `W + alpha / r * B @ A`.

    The folder appears whole or not at all, with the base's configuration and tokenizer.

    Args:
        base_folder: config.json, safetensors (one file, or several with an index) and tokenizer.
        reader_folder: adapter_config.json and adapter_model.safetensors of a plain LoRA, as peft writes them.
        out_folder: to make; it must not exist yet, or be empty.

    Raises:
        AdapterError: the reader cannot be read, is no plain LoRA, or was trained for another model.
        ModelError: the base cannot be read, or the folder cannot be written.
    """
    base, out = Path(base_folder), Path(out_folder)
    reader = _read_reader(Path(reader_folder))
    files = _weight_files(base)
    made = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    try:
        if out.exists() and any(out.iterdir()):
            raise ModelError(f"expected a folder to make at {out}, found one with something in it; choose another")
        made.mkdir(parents=True)
        try:
            missing = set(reader.tensors)
            for path in files:
                missing -= _merge_file(path, made / path.name, reader)
            if missing:
                raise AdapterError(
                    f"expected weights of {min(missing)} in {base}, found none; "
                    "the reader was trained for another model"
                )
            for path in base.iterdir():
                if path.suffix in _CARRIED and not path.name.startswith(_LEFT):
                    shutil.copyfile(path, made / path.name)
            for path in made.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            os.rename(made, out)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"expected to make a merged model from {base} in {out}, found: {error}; check both folders and the disk"
        ) from error


def _read_reader(folder: Path) -> Writer:
    try:
        config = json.loads((folder / READER_FILES[0]).read_text())
        tensors = load_file(folder / READER_FILES[1])
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"expected {' and '.join(READER_FILES)} of a LoRA in {folder}, found {type(error).__name__}: {error}; "
            "give a folder that peft has written"
        ) from error
    strange = {name: value for name, value in config.items() if value and name not in _HARMLESS | _WANTED.keys()}
    strange |= {name: config.get(name) for name, wanted in _WANTED.items() if config.get(name) not in wanted}
    if strange:
        found = ", ".join(f"{name}={value!r}" for name, value in sorted(strange.items()))
        raise AdapterError(f"expected a plain LoRA in {folder}, found {found}; train the reader without that")
    reader = Writer.from_named(tensors, alpha / max(rank, 1), prefix=_PREFIX)
    odd = [name for name in tensors if not name.startswith(_PREFIX)]
    odd += [f"{name} with numbers that are not finite" for name, t in tensors.items() if not torch.isfinite(t).all()]
    odd += [f"rank {len(a)} of {path}" for path, (a, _) in reader.tensors.items() if len(a) != rank]
    if odd or not tensors:
        raise AdapterError(
            f"expected nothing but finite updates of rank {rank} in {folder}, found "
            f"{odd[0] if odd else 'nothing at all'}; train the reader without that"
        )
    return reader


def _weight_files(base: Path) -> list[Path]:
    """The safetensors files that transformers would load."""
    try:
        index = base / "model.safetensors.index.json"
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        if all((base / name).is_file() for name in names):
            return [base / name for name in sorted(names)]
        found = ", ".join(sorted(path.name for path in base.iterdir())) or "nothing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
    raise ModelError(
        f"expected the weights of a model in {base}, as model.safetensors or several files with an index, found "
        f"{found}; save it with save_pretrained"
    )


def _merge_file(path: Path, made: Path, reader: Writer) -> set[str]:
    """Write one file of weights with the reader merged; the module paths it had updates for."""
    with safe_open(str(path), framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    merged = {module: f"{module}.weight" for module in reader.tensors if f"{module}.weight" in tensors}
    for module, name in merged.items():
        weight, (a, b) = tensors[name], reader.tensors[module]
        if weight.dtype not in _FLOATS or list(weight.shape) != [len(b), a.shape[1]]:
            raise AdapterError(
                f"expected {name} to be floating point numbers [{len(b)}, {a.shape[1]}], found {weight.dtype} "
                f"{list(weight.shape)}; the reader was trained for another model"
            )
        tensors[name] = _merged(weight, a, b, reader.scale)
    save_file(tensors, made, metadata)
    return set(merged)


def _merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight + scale * b @ a`, rounded once; no matrix product, since libraries differ in the order of its sums."""
    a, b, merged = a.double(), b.double(), torch.empty_like(weight)
    rows = max(1, _BLOCK // weight.shape[1])
    for block, of_weight, of_b in zip(merged.split(rows), weight.split(rows), b.split(rows), strict=True):
        update = torch.zeros(block.shape, dtype=torch.float64)
        for column, row in zip(of_b.T, a, strict=True):
            update.addr_(column, row)
        block.copy_(_rounded(of_weight.double() + scale * update, weight.dtype))
    return merged


def _rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float64 numbers in another dtype, rounded to nearest.

    PyTorch goes to two-byte numbers by way of float32, and would round twice. Therefore float32 gets what "round to
    odd" gives, from which rounding again is rounding once (Boldo and Melquiond, 2008).
    """
    if dtype.itemsize > 2:
        return exact.to(dtype)
    single = exact.float()
    away = (single.double().abs() > exact.abs()).int()  # those whose bits, less one, are nearer to zero
    inexact = (single.double() != exact).int()
    return ((single.view(torch.int32) - away) | inexact).view(torch.float32).to(dtype)
