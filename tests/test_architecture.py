"""The invariants of ARCHITECTURE.md, as absences in the import graph, and the public surface."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    "kvrag": ROOT / "kvrag",
    "kvrag_kernels": ROOT / "kernels" / "kvrag_kernels",
    "llama_index_kvrag": ROOT / "integrations" / "llama_index_kvrag",
    "langchain_kvrag": ROOT / "integrations" / "langchain_kvrag",
}
MODULES = [
    (f"{package}.{'.'.join(path.relative_to(folder).with_suffix('').parts)}".removesuffix(".__init__"), path)
    for package, folder in SOURCES.items()
    for path in sorted(folder.rglob("*.py"))
]


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who knows whom"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(*names: str, also_in_functions: bool = True) -> set[str]:
    """Modules of ours that import one of these packages."""
    return {
        module
        for module, path in MODULES
        for found in imports(path)
        if any(found == name or found.startswith(name + ".") for name in names)
    }


def test_kernels_know_neither_kvrag_nor_transformers():
    assert not {m for m in importers("kvrag", "transformers") if m.startswith("kvrag_kernels")}


def test_the_store_never_sees_a_model():
    known = {"kvrag.packet", "kvrag.errors", "kvrag.matching", "kvrag.store"}
    for module, path in MODULES:
        if module.startswith("kvrag.store"):
            ours = {name for name in imports(path) if name.startswith("kvrag.")}
            strangers = {n for n in ours if not any(n == k or n.startswith(k) for k in known)}
            assert not strangers, f"{module} imports {strangers}"
    assert not {m for m in importers("transformers", "tokenizers") if m.startswith("kvrag.store")}


def test_attach_never_sees_text():
    texts = (
        "kvrag.tokenizing",
        "kvrag.prompt",
        "kvrag.matching",
        "kvrag.store",
        "kvrag.model",
        "transformers",
        "tokenizers",
    )
    assert not {m for m in importers(*texts) if m.startswith("kvrag.attach")}


def test_strategies_never_time_log_score_or_know_the_store():
    strangers = ("time", "logging", "kvrag.store", "kvrag.engine", "kvrag.model", "kvrag.evaluation", "torch")
    assert not {m for m in importers(*strangers) if m.startswith("kvrag.strategies")}


def test_only_the_model_knows_transformers_and_sampling_its_logits_processors():
    measured = {"kvrag.bench.baselines", "kvrag.bench.geometries"}  # what packets are held against
    assert importers("transformers") == {"kvrag.model", "kvrag.generate"} | measured
    generate = dict(MODULES)["kvrag.generate"]
    assert {n for n in imports(generate) if n == "transformers"} == set()
    assert all("logits_process" in n for n in imports(generate) if n.startswith("transformers"))


def test_only_the_application_layer_imports_integrations():
    frameworks = ("llama_index_kvrag", "langchain_kvrag", "llama_index", "langchain_core", "chromadb", "langchain")
    ours = {m for m in importers(*frameworks) if m.startswith("kvrag")}
    assert all(m.startswith(("kvrag.cli", "kvrag.demo")) for m in ours), ours


def test_folders_that_would_shadow_other_packages_are_no_packages():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "integrations" / "__init__.py").exists()


def test_nothing_unpickles():
    assert not importers("pickle", "dill", "cloudpickle", "shelve", "marshal")


@pytest.mark.parametrize("package", ["kvrag", "kvrag.cli"])
def test_importing_is_light(package):
    """No torch, no framework, no GPU library; the command line answers --help at once."""
    heavy = {"torch", "transformers", "triton", "llama_index", "langchain_core", "chromadb", "sentence_transformers"}
    code = f"import {package}, sys; print(sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[m for m, _ in MODULES])
def test_public_names_are_sorted_and_documented(module, path):
    loaded = importlib.import_module(module)
    assert loaded.__doc__ or not getattr(loaded, "__all__", None) or ".strategies." in module, f"{module} says nothing"
    names = getattr(loaded, "__all__", None)
    if path.name == "__init__.py" and not path.read_text().strip():
        return
    if names is None:
        assert module.rsplit(".", 1)[-1] == "__main__" or path.name == "__init__.py", f"{module} has no __all__"
        return
    for name in names:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), f"{module}.{name} has no docstring"
    assert len(set(names)) == len(names)
    # ruff's RUF022 order: constants, then classes, then the rest
    assert list(names) == sorted(names, key=_isort_key), f"{module}.__all__ is not sorted"


def _isort_key(name: str):
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name


def test_every_public_name_can_be_imported_from_kvrag():
    kvrag = importlib.import_module("kvrag")
    for name in kvrag.__all__:
        assert getattr(kvrag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = kvrag.Nonsense


def test_every_package_is_in_the_wheel():
    text = (ROOT / "pyproject.toml").read_text()
    for package, folder in SOURCES.items():
        assert str(folder.relative_to(ROOT)) in text, package
        assert (folder / "__init__.py").exists()
        assert {m.name for m in pkgutil.iter_modules([str(folder)])}


def test_long_modules_have_a_reason_in_the_architecture_page():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for module, path in MODULES:
        if len(path.read_text().splitlines()) > 250:
            reasons = page.split("Modules over 250 lines:")[1].split("\n\n")[0]
            assert path.name in reasons, f"{module} is over 250 lines and ARCHITECTURE.md does not say why"


def test_the_architecture_page_is_short_and_names_what_exists():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(page.splitlines()) <= 200
    for name in ("encode_batch", "plan_lane", "segment_prompt", "check_movable", "remember", "AttentionPass"):
        assert name in page
        assert any(f"def {name}" in p.read_text() or f"class {name}" in p.read_text() for _, p in MODULES)
