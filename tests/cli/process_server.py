"""Runs the command line in processes of its own.

They are forked from one process that has imported everything, since the imports take longer than all these tests. What
a child may be told besides its arguments: to send itself a signal at the n-th call of a function.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, default_int_handler, signal
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

PRELOADED = (
    "chromadb",
    "kvrag.cli.answering",
    "kvrag.cli.web_page",
    "llama_index.readers.file",
    "llama_index.vector_stores.chroma",
    "nltk",
    "pypdf",
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
)


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    server: "ProcessServer"
    pid: int
    stdout: Path
    stderr: Path

    def wait(self) -> Ended:
        return Ended(self.server.ask("wait", self.pid), self.stdout.read_text(), self.stderr.read_text())


class ProcessServer:
    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        self.process = Popen(
            [sys.executable, "-m", "tests.cli.process_server"],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=PIPE,
            stdout=PIPE,
        )

    def start(self, arguments: Sequence[object], folder: Path, at: tuple[str, int, int] | None = None) -> Running:
        """Begin `kvrag ARGUMENTS` in `folder`; `at` is a function's module:name, the number of a call, and a signal."""
        outputs = [folder / f"{time.time_ns()}.{name}" for name in ("stdout", "stderr")]
        job = {
            "arguments": [str(a) for a in arguments],
            "folder": str(folder),
            "at": at,
            "outputs": [*map(str, outputs)],
        }
        return Running(self, self.ask("start", job), *outputs)

    def run(self, arguments: Sequence[object], folder: Path, at: tuple[str, int, int] | None = None) -> Ended:
        return self.start(arguments, folder, at).wait()

    def ask(self, *request: Any) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    from kvrag.cli.terminal import silence_third_parties

    silence_third_parties()
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("kvrag.cli.nodes").make_splitter(64, str.split)  # imports a good deal more
    for line in sys.stdin:
        action, what = json.loads(line)
        if action == "start":
            answer = os.fork()
            if not answer:
                run_command(what)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(what, 0)[1])
        print(answer, flush=True)  # noqa: T201


def run_command(job: dict[str, Any]) -> None:
    from kvrag.cli import main
    from kvrag.demo import retrieval

    code = 1
    for target, path in zip((0, 1, 2), (os.devnull, *job["outputs"]), strict=True):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), target)
    signal(SIGINT, default_int_handler)  # which is ignored where tests run in the background of a shell
    try:
        os.chdir(job["folder"])
        retrieval.sentence_embedding = embed_or_fail
        if job["at"]:
            interrupt(*job["at"])
        sys.argv = ["kvrag", *job["arguments"]]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def swallow() -> None:
    """What a lazy import makes of an interrupt."""


def embed_or_fail() -> Any:
    try:
        importlib.import_module("tests.cli.process_server").swallow()
    except KeyboardInterrupt:
        raise ImportError("Could not import module") from None
    return importlib.import_module("tests.cli.word_embedding").WordEmbedding()


def interrupt(place: str, call: int, signal: int) -> None:
    module, _, name = place.partition(":")
    *owners, name = name.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal)
        return original(*arguments, **options)

    setattr(owner, name, counted)


if __name__ == "__main__":
    serve()
