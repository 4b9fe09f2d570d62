"""Kills processes that build, remove, collect and repair, and looks at what they leave; run by test_kills.py.

What must hold after every kill, before anybody mends anything:

- a packet whose `put` had returned is found by its text and by its key, bit for bit, unless it was to be removed;
- whatever the store hands out is what its key stands for;
- `verify` names nothing but what a dead process leaves: orphans and temporary files.

After that, a repair leaves nothing to verify, and its counts are what had been named.
"""

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from toy_packets import SCOPE, raw, toy_packet, toy_text

from kvrag.matching import fingerprint
from kvrag.store import PacketStore, bytes, disk, format, index

SEEDS = range(40)
EXPECTED = {toy_packet(seed).key: raw(toy_packet(seed)) for seed in SEEDS}
KEYS = {seed: toy_packet(seed).key for seed in SEEDS}
NUMBERS = {key: seed for seed, key in KEYS.items()}
LONGEST = 0.08
"""Seconds until a kill at a random moment."""


def kill_self(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(module: object, name: str, nth: int, *, after: bool = False) -> Callable[[], None]:
    """Kill at the n-th call of a function, before or after it."""

    def arm() -> None:
        call, calls = getattr(module, name), []

        def counted(*arguments, **options):
            calls.append(name)
            if len(calls) == nth and not after:
                kill_self()
            result = call(*arguments, **options)
            if len(calls) == nth:
                kill_self()
            return result

        setattr(module, name, counted)

    return arm


def torn_write(nth: int, part: float) -> Callable[[], None]:
    """Kill after a part of the n-th write."""

    def arm() -> None:
        write, calls = os.write, []

        def torn(fd, data):
            calls.append(fd)
            if len(calls) == nth:
                write(fd, data[: int(part * len(data))])
                kill_self()
            return write(fd, data)

        bytes.os = type("os", (), dict(vars(os)) | {"write": staticmethod(torn)})

    return arm


def points(chance: random.Random) -> dict[str, tuple[str, Callable[[], None]]]:
    """What is under way and where it is killed: between temporary file and row, and at the steps of the others."""
    nth = chance.randint(1, 3)
    return {
        "put: torn write": ("build", torn_write(3 * nth - chance.randint(0, 2), chance.random())),
        "put: before fsync": ("build", at(disk.os, "fsync", 2 * nth - 1)),
        "put: before rename": ("build", at(disk.os, "replace", nth)),
        "put: after rename": ("build", at(disk.os, "replace", nth, after=True)),
        "put: before the folder's fsync": ("build", at(disk.os, "fsync", 2 * nth)),
        "put: before the row": ("build", at(index.Index, "add", nth)),
        "put: in the transaction": ("build", at(index, "_add_texts", nth)),
        "put: after the row": ("build", at(index.Index, "add", nth, after=True)),
        "remove: in the transaction": ("remove", at(index, "_remove", 1, after=True)),
        "remove: before the file": ("remove", at(Path, "unlink", 1)),
        "gc: in the transaction": ("gc", at(index, "_remove", 2)),
        "gc: between rows and files": ("gc", at(index.Index, "remove_if", 1, after=True)),
        "gc: among the files": ("gc", at(Path, "unlink", 2)),
        "repair: before quarantine": ("repair", at(disk.DiskTier, "quarantine", 1)),
        "repair: after quarantine": ("repair", at(disk.DiskTier, "quarantine", 1, after=True)),
        "repair: among adoptions": ("repair", at(index.Index, "add", 2)),
        "repair: a damaged index half set aside": ("repair index", at(disk.os, "replace", 2)),
    }


class Trial:
    """One store, those who work on it, and what it has promised."""

    def __init__(self, root: Path, chance: random.Random):
        self.root, self.chance = root, chance
        self.by_text: set[int] = set()
        self.by_file: set[int] = set()
        self.removed = False  # since the last repair
        self.counts: Counter[str] = Counter()
        self.named: Counter[str] = Counter()

    def run(self, operation: str, arm: Callable[[], None] | None) -> None:
        """Let one process (two for a build at a random moment) do something until it is killed."""
        if operation.startswith("repair"):
            self.damage(index=operation.endswith("index"))
        if operation == "remove" and len(self.by_text) < 4 or operation == "gc" and len(self.by_text) < 8:
            with PacketStore(self.root) as store:
                for seed in SEEDS:
                    store.put(toy_packet(seed), [toy_text(seed)])
            self.by_text, self.by_file = set(SEEDS), set(SEEDS)
        if operation == "gc":
            self.by_file &= self.by_text  # what no text leads to is not in use
        number = 2 if operation == "build" and arm is None else 1
        children = [self.start(operation, arm, seed) for seed in self.chance.choices(range(1000), k=number)]
        time.sleep(0 if arm else self.chance.uniform(0, LONGEST))
        for pid, told in children:
            if arm is None:
                os.kill(pid, signal.SIGKILL)
            self.hear(told)
            _, status = os.waitpid(pid, 0)
            was_killed = os.WIFSIGNALED(status)
            assert was_killed or (arm is None and status == 0), f"{operation} ended with {status} before its kill"
            self.counts["kills"] += was_killed

    def start(self, operation: str, arm: Callable[[], None] | None, seed: int) -> tuple[int, int]:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(read)
                work(self.root, operation, random.Random(seed), write, arm)
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        return pid, read

    def hear(self, told: int) -> None:
        """What a child said before its end: what it was about to remove, and what it had put."""
        with os.fdopen(told, "rb") as file:
            for line in file.read().decode().splitlines():
                word, seed = line.split()
                if word == "put":
                    self.by_text.add(int(seed))
                    self.by_file.add(int(seed))
                elif word == "removing":
                    self.by_text.discard(int(seed))
                    self.by_file.discard(int(seed))

    def damage(self, *, index: bool) -> None:
        """Make work for a repair: lost rows, bad files, a temporary file, and perhaps an index cut in half."""
        with PacketStore(self.root) as store:
            for seed in SEEDS[:12]:
                store.put(toy_packet(seed), [toy_text(seed)])
                self.by_text.add(seed)
                self.by_file.add(seed)
            lost, bad = self.chance.sample(SEEDS[:6], 3), self.chance.sample(SEEDS[6:12], 2)
            for seed in lost:
                store._index.remove(KEYS[seed])
            for seed in bad:
                path = store._disk.path(SCOPE.identity.digest, KEYS[seed])
                data = bytearray(path.read_bytes())
                data[self.chance.randrange(len(data.rstrip()))] ^= 1 << self.chance.randrange(8)
                path.write_bytes(data)
            (path.parent / ".dead.tmp").write_bytes(b"half")
        self.by_text -= {*lost, *bad}
        self.by_file -= {*bad}
        if index:
            file = self.root / "index.sqlite"
            with sqlite3.connect(file) as whole:
                whole.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            whole.close()
            os.truncate(file, file.stat().st_size // 2)
            for suffix in ("-wal", "-shm"):
                Path(f"{file}{suffix}").write_bytes(b"")
            self.by_text.clear()

    def check(self, operation: str) -> None:
        """Everything that the module's docstring says."""
        with PacketStore(self.root) as store:
            for seed in self.by_text:
                found = fingerprint(toy_text(seed))
                assert found
                assert store.find(SCOPE, found.digest) == KEYS[seed], f"the text of packet {seed} leads nowhere"
                packet = store.get(KEYS[seed])
                assert packet, f"packet {seed} was committed and is lost"
            for seed in self.by_file:
                path = store._disk.path(SCOPE.identity.digest, KEYS[seed])
                assert raw(format.read_packet(path, key=KEYS[seed])) == EXPECTED[KEYS[seed]]
            problems = list(store.verify())
            kinds = Counter(problem.kind for problem in problems)
            repairing = operation.startswith("repair")
            self.removed |= operation in ("remove", "gc")
            # taking a packet away, into quarantine too, may end between file and row
            allowed = {"missing", "corrupt", "index"} if repairing else {"missing"} if self.removed else set()
            assert set(kinds) <= {"orphan", "temporary"} | allowed, problems
            if not repairing:
                self.counts["between file and row"] += bool(kinds)
            if not kinds["index"]:
                for row in store.ls():
                    packet = store.get(row.key)
                    assert packet is None or raw(packet) == EXPECTED[row.key], f"wrong answer for {row.key}"
            self.named += kinds
            if repairing or self.chance.random() < 0.5:
                self.repair(store)

    def repair(self, store: PacketStore) -> None:
        before = Counter(problem.kind for problem in store.verify())
        report = store.repair()
        if not before["index"]:
            assert (report.adopted, report.swept) == (before["orphan"], before["temporary"]), (before, report)
            assert report.quarantined == before["corrupt"]
        assert (report.broken_index is not None) == bool(before["index"])
        assert list(store.verify()) == []
        present = {NUMBERS[row.key] for row in store.ls()}
        assert self.by_file <= present
        for seed in present:
            packet = store.get(KEYS[seed])
            assert packet
            assert raw(packet) == EXPECTED[KEYS[seed]]
        self.by_file = present
        self.counts["repairs"] += 1
        self.removed = False


def work(root: Path, operation: str, chance: random.Random, told: int, arm: Callable[[], None] | None) -> None:
    """In the child: work until killed, saying what is about to go and what has been put."""
    write = os.write
    with PacketStore(root) as store:
        if arm:
            arm()
        if operation == "build":
            for seed in chance.sample(SEEDS, 20):
                if arm:  # or there might be nothing to write
                    store.remove(KEYS[seed]) if write(told, f"removing {seed}\n".encode()) else None
                store.put(toy_packet(seed), [toy_text(seed)])
                write(told, f"put {seed}\n".encode())
        elif operation == "remove":
            for row in chance.sample(list(store.ls()), 4):
                write(told, f"removing {NUMBERS[row.key]}\n".encode())
                store.remove(row.key)
        elif operation == "gc":
            kept = chance.sample(SEEDS, 10)
            for seed in {*SEEDS} - {*kept}:
                write(told, f"removing {seed}\n".encode())
            store.gc([*map(toy_text, kept), "x" * 40], grace=0)
        else:
            store.repair()


def main(root: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)  # no thread pool, so that children can be forked
    chance, rounds = random.Random(seed), 0
    trial, reached = Trial(root, chance), set()
    while trial.counts["kills"] < kills:
        here = points(chance)
        name = list(here)[rounds // 2 % len(here)]
        operation, arm = here[name] if rounds % 2 == 0 else (chance.choice(["build", "remove", "gc", "repair"]), None)
        trial.run(operation, arm)
        trial.counts[operation.split()[0]] += 1
        trial.check(operation)
        reached |= {name} if arm else set()
        rounds += 1
    report = {"rounds": rounds, "points": sorted(reached), "named": trial.named} | trial.counts
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
