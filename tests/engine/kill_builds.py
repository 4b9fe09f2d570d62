"""Builds packets in child processes and kills them at random moments; run by test_killed_builds.py.

Everything heavy is imported once; children are forked before PyTorch has started a thread.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig

from kvrag import PacketEngine, PacketStore
from kvrag.model import LanguageModel

from ..conftest import CHUNKS, TINY, build_model

TEXTS = [f"Entry {number} of the register. {CHUNKS[number % len(CHUNKS)]}" for number in range(40)]


def build(folder: Path, model: LanguageModel, started: int) -> None:
    """In the child: tell the parent that the engine stands, then build."""
    with (
        PacketStore(folder) as store,
        PacketEngine(model, store=store, strategy="no-recompute", adapter="none") as engine,
    ):
        os.write(started, b"!")
        for first in range(0, len(TEXTS), 4):
            engine.build(TEXTS[first : first + 4])
    os._exit(0)


def child(folder: Path, model: LanguageModel, kill_after: float | None) -> tuple[bool, float]:
    """Whether a build was killed, and its seconds; it is killed after so many unless it is done."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        build(folder, model, write)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    begin = time.perf_counter()
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status), time.perf_counter() - begin


def main(folder: Path, tokenizer: Path, kills: int) -> None:
    torch.set_num_threads(1)  # no thread pool, so that children can be forked
    model = LanguageModel(build_model(LlamaConfig(**TINY)), AutoTokenizer.from_pretrained(tokenizer), name="tiny")
    _, seconds = child(folder / "timing", model, None)
    rng = random.Random(7)
    problems: set[str] = set()
    packets: list[int] = []
    killed = before = 0
    while killed < kills:
        if before > 0.6 * len(TEXTS):  # begin again, so that every kill has something to hit
            with PacketStore(folder / "store") as store:
                for row in list(store.ls()):
                    store.remove(row.key)
            before = 0
        left = 1 - before / len(TEXTS)
        was_killed, _ = child(folder / "store", model, rng.uniform(0, 0.8 * seconds * left))
        killed += was_killed
        with PacketStore(folder / "store") as store:
            problems |= {problem.kind for problem in store.verify()}
            rows = list(store.ls())
            assert all(store.get(row.key) is not None for row in rows), "a committed packet does not load"
            assert len(rows) >= before, "a committed packet was lost"
            before = len(rows)
            packets.append(before)
    child(folder / "store", model, None)
    with PacketStore(folder / "store") as store:
        store.repair()
        left_over = [problem.kind for problem in store.verify()]
        complete = len(list(store.ls()))
    report = {"killed": killed, "problems": sorted(problems), "left": left_over, "complete": complete}
    sys.stdout.write(json.dumps(report | {"packets": packets}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
