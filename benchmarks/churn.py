"""A day of a store's life in a minute or two: several processes build, read, evict and collect, by a simulated clock.

    python benchmarks/churn.py --out benchmarks/results/churn.json

Every round is an hour. Documents come and go; two builders put the packets of what is new (some of them both), readers
ask for popular documents, compare every bit and build what they miss, one process evicts and one collects what no
document in use leads to. Then the store is verified. Errors are wrong bits, problems that `verify` names, packets of
documents in use that are gone though nobody evicted them, packets of documents that were given up longer ago than the
grace period, and processes that failed.
"""

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvrag.matching import fingerprint
from kvrag.packet import Identity, Packet, Recipe, Scope
from kvrag.store import PacketStore

SCOPE = Scope(Identity(config="c", weights="w", tokenizer="t", rope="r", dtype="float32"), Recipe())
HOUR = 3600.0
GRACE_HOURS = 2
FORK = multiprocessing.get_context("fork")


def text(document: int) -> str:
    return f"This is what document number {document:08d} says, and nothing else."


def packet(document: int) -> Packet:
    ids = np.arange(document, document + 16, dtype=np.int64)
    kv = torch.from_numpy(np.random.default_rng(document).standard_normal((4, 2, 2, 16, 8), dtype=np.float32))
    return Packet(SCOPE.key(ids), SCOPE, ids, kv)


def set_clock(now: float) -> None:
    """The clock of this process, and the times it gives to files."""
    utime = os.utime
    time.time = lambda: now
    time.time_ns = lambda: int(1e9 * now)
    os.utime = lambda path, **times: utime(path, **times or {"times": (now, now)})


def build(store: PacketStore, documents: Sequence[int], chance: random.Random) -> dict[str, Any]:
    for document in documents:
        store.put(packet(document), [text(document)])
    return {"built": len(documents)}


def read(store: PacketStore, documents: Sequence[int], chance: random.Random, reads: int) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for _ in range(reads):
        document = documents[int(len(documents) * chance.random() ** 3)]
        known = fingerprint(text(document))
        assert known
        key = store.find(SCOPE, known.digest)
        found = store.get(key) if key else None
        counts["reads"] += 1
        if found is None:
            counts["misses"] += 1
            store.put(packet(document), [text(document)])
        elif not torch.equal(found.kv, packet(document).kv):
            counts["wrong"] += 1
    return dict(counts)


def evict(store: PacketStore, documents: Sequence[int], chance: random.Random) -> dict[str, Any]:
    return {"evicted": sum(store.remove(packet(document).key) for document in documents)}


def collect(store: PacketStore, documents: Sequence[int], chance: random.Random) -> dict[str, Any]:
    return {"collected": len(store.gc(map(text, documents), grace=GRACE_HOURS * HOUR).removed)}


def start(root: Path, now: float, seed: int, work: Callable[..., dict[str, Any]], *arguments: Any) -> Any:
    receiver, sender = FORK.Pipe(duplex=False)

    def run(answer: Connection) -> None:
        set_clock(now)
        with PacketStore(root, memory_bytes=1 << 20) as store:
            answer.send(work(store, arguments[0], random.Random(seed), *arguments[1:]))

    process = FORK.Process(target=run, args=(sender,))
    process.start()
    sender.close()
    return process, receiver


def hour(root: Path, number: int, state: dict[str, Any], chance: random.Random, options: argparse.Namespace) -> Counter:
    """One round; its counts, errors among them."""
    now = state["begin"] + number * HOUR
    live: list[int] = state["live"]
    new = list(range(state["next"], state["next"] + options.documents))
    state["next"] += len(new)
    gone = set(chance.sample(live, len(live) // 10))
    state["gone"] |= dict.fromkeys(gone, number)
    state["live"] = live = [document for document in live if document not in gone] + new
    evicted = chance.sample(live, len(live) // 20)
    shared = len(new) // 3
    jobs = [
        (build, new[: 2 * shared]),
        (build, new[shared:]),
        *[(read, live, options.reads)] * options.readers,
        (evict, evicted),
        (collect, live),
    ]
    running = [start(root, now, chance.getrandbits(32), *job) for job in jobs]
    counts: Counter[str] = Counter()
    for process, receiver in running:
        try:
            counts.update(receiver.recv())
        except EOFError:
            counts["failed"] += 1
        process.join()
    with PacketStore(root) as store:
        counts["problems"] = sum(1 for _ in store.verify())
        present = {row.key for row in store.ls()}
    keys = state["keys"]
    keys |= {document: packet(document).key for document in new}
    state["evicted"] |= set(evicted)
    counts["lost"] = sum(keys[d] not in present for d in live if d not in state["evicted"])
    late = number - GRACE_HOURS - 1
    counts["left over"] = sum(keys[d] in present for d, since in state["gone"].items() if since <= late)
    counts["packets"] = len(present)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--documents", type=int, default=60, help="new ones an hour")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--reads", type=int, default=300, help="of each reader an hour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # no threads, so that processes can be forked
    chance, begin = random.Random(options.seed), time.perf_counter()
    state = {"begin": time.time(), "next": 0, "live": [], "gone": {}, "evicted": set(), "keys": {}}
    rounds, total = [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.hours):
            counts = hour(Path(folder), number, state, chance, options)
            rounds.append(dict(counts))
            total.update(counts)
    del total["packets"]
    errors = sum(total[name] for name in ("wrong", "problems", "lost", "left over", "failed"))
    told = {name: value for name, value in vars(options).items() if name != "out"}
    seconds = round(time.perf_counter() - begin, 1)
    report = told | {"errors": errors, "seconds": seconds, "date": str(date.today()), "total": total}
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report | {"rounds": rounds}, indent=1) + "\n")
    raise SystemExit(1 if errors else 0)


if __name__ == "__main__":
    main()
