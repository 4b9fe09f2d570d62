"""Runs of training that are killed, and runs of two processes; started by test_interrupted_runs.py.

Everything heavy is imported once; children are forked before PyTorch has started a thread.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig

from kvrag.model import LanguageModel
from kvrag.training import AdapterTask
from kvrag.training import run as training_run
from kvrag.training.log import RunLog
from tests.conftest import TINY, build_model

from .toy_runs import EVERYTHING, toy_run

STEPS = 9


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_a_step() -> None:
    loss = AdapterTask.loss
    steps = iter(range(99))
    AdapterTask.loss = lambda self, batch: killed() if next(steps) == 3 else loss(self, batch)


def kill_in_a_checkpoint(*, replaced: bool) -> Callable[[], None]:
    def patch() -> None:
        replace = os.replace
        written = iter(range(99))

        def replace_and_die(made: Path, path: Path) -> None:
            last = path.name == "checkpoint.safetensors" and next(written) == 1
            if not last or replaced:
                replace(made, path)
            if last:
                killed()

        os.replace = replace_and_die

    return patch


def kill_in_a_line() -> None:
    add = RunLog.add

    def add_half_and_die(self: RunLog, **fields: object) -> None:
        add(self, **fields)
        if fields["step"] == 2:
            os.truncate(self._path, self._path.stat().st_size - 9)
            killed()

    RunLog.add = add_half_and_die


def child(work: Callable[[], object]) -> int:
    """Start a process that does the work."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> bool:
    """Whether a process came to its end; False when it was killed."""
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0


def together(work: Callable[[], object]) -> None:
    """Do the work in two processes, as accelerate's launcher would start them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def one(rank: int) -> None:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()} | {"OMP_NUM_THREADS": "1"})
        work()

    pids = [child(lambda rank=rank: one(rank)) for rank in range(2)]
    assert [ended(pid) for pid in pids] == [True, True]


def main(folder: Path, tokenizer: Path) -> None:
    training_run.plot_log = lambda *_: None  # drawing takes longer than training
    torch.set_num_threads(1)  # no thread pool, so that children can be forked
    model = LanguageModel(build_model(LlamaConfig(**TINY)), AutoTokenizer.from_pretrained(tokenizer), name="tiny")

    def run(name: str, **changes: object) -> None:
        toy_run(AdapterTask(model, EVERYTHING), folder / name, **{"steps": 3, "contexts": 5, "held_out": 3} | changes)

    def long(name: str) -> None:
        run(name, steps=STEPS, evaluate_every=3, checkpoint_every=1)

    assert ended(child(lambda: long("whole")))
    kills = (kill_in_a_line, kill_in_a_step, kill_in_a_checkpoint(replaced=False), kill_in_a_checkpoint(replaced=True))
    for kill in kills:
        assert not ended(child(lambda kill=kill: (kill(), long("killed"))))
    assert ended(child(lambda: long("killed")))

    assert ended(child(lambda: run("one")))
    together(lambda: run("two"))
    few = {"contexts": 1, "held_out": 1, "steps": 2}
    assert ended(child(lambda: run("one, few", **few)))
    together(lambda: run("two, few", **few))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
