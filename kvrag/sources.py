"""Where models and adapters come from."""

from pathlib import Path
from typing import Any

from kvrag.adapter import Adapter
from kvrag.errors import AdapterError
from kvrag.model import LanguageModel

__all__ = ["DEMO_MODELS", "open_adapter", "open_model", "shipped_adapter"]

DEMO_MODELS = ("demo", "demo-base")
"""Names of the embedded model: with the reader that is shipped for it, and as its makers published it."""

_SHIPPED = Path(__file__).parent / "demo" / "adapters"


def open_model(
    source: "str | Path | tuple[Any, Any] | LanguageModel", device: str = "auto", dtype: str = "auto"
) -> LanguageModel:
    """The model behind a hub id, a local folder, a ready `(model, tokenizer)` pair, or "demo".

    Args:
        source: of the model; a ready one stays as it is.
        device: where to load it.
        dtype: to load it in, such as "float32"; "auto" is bfloat16 where the hardware computes in it.

    Raises:
        ModelError: it cannot be loaded.
        UnsupportedModelError: its configuration says that packets cannot be moved.
    """
    if isinstance(source, LanguageModel):
        return source
    if isinstance(source, tuple):
        return LanguageModel(*source)
    if source in DEMO_MODELS:
        from kvrag.demo.weights import demo_folder  # the application layer; only this name needs it

        model = LanguageModel.from_pretrained(demo_folder(str(source)), device=device, dtype=dtype)
        model.name = str(source)
        return model
    return LanguageModel.from_pretrained(source, device=device, dtype=dtype)


def open_adapter(adapter: Adapter | str | Path, model: LanguageModel) -> Adapter | None:
    """The adapter behind a file, "auto" (the one shipped for this model, if any) or "none".

    Raises:
        AdapterError: it cannot be read, or belongs to another model.
        UnsupportedModelError: it has a writer, and the model is compiled.
    """
    if adapter == "none":
        return None
    if adapter == "auto":
        shipped = shipped_adapter(model)
        return None if shipped is None else Adapter.load(shipped)
    opened = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    opened.check_model(model.identity, model.hidden_size, model.linear_modules)
    return opened


def shipped_adapter(model: LanguageModel) -> Path | None:
    """The file of the adapter that is shipped for this model, if any."""
    return next((path for path in sorted(_SHIPPED.glob("*.safetensors")) if _fits(path, model)), None)


def _fits(path: Path, model: LanguageModel) -> bool:
    try:
        Adapter.load(path).check_model(model.identity, model.hidden_size, model.linear_modules)
    except AdapterError:
        return False
    return True
