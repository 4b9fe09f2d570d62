"""Kernels with a mistake in them, which tests have to notice."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from kvrag_kernels.packet_attention import triton


def mutated(old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels' module with one piece of its source replaced, which must be there once."""
    source = Path(triton.__file__).read_text()
    assert source.count(old) == 1
    (tmp_path / "mutant.py").write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mutant", tmp_path / "mutant.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutant", module)
    spec.loader.exec_module(module)
    return module
