"""An application in a process of its own: `python -m tests.chroma.application '{"model": ..., "own": [...], ...}'`."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvrag.engine import PacketEngine
from tests.chroma.conftest import cached, documents, open_chroma, tokens

COLLECTION = "register"
PATIENCE = 120.0


def entry(number: int) -> str:
    return f"Entry {number}: the boat numbered {number * 7919 % 1000} left the harbour in fog, as written."


def open_engine(model: str | Path, store: str | Path) -> PacketEngine:
    """Keeps no computed states: what is cached comes from packets."""
    options: dict[str, Any] = {"adapter": "none", "strategy": "no-recompute", "computed_bytes": 0}
    return PacketEngine.from_pretrained(model, store=store, **options)


def work(engine: PacketEngine, collection: Any, own: Sequence[int], everything: int) -> dict[str, Any]:
    """Write this application's own entries, five at a time, and ask about everybody's as they appear.

    Packets are built before their texts are stored.

    Returns:
        `built`: packets built here; `answers`: of every text, what was cached and what its packet has.
    """
    built, answers = 0, dict[str, tuple[int, int]]()
    deadline = time.monotonic() + PATIENCE
    shares = iter([own[first : first + 5] for first in range(0, len(own), 5)])
    while len(answers) < everything and time.monotonic() < deadline:
        if share := next(shares, ()):
            built += engine.build(map(entry, share), progress=False).built
            collection.upsert(
                ids=[str(number) for number in share],
                documents=[entry(number) for number in share],
                embeddings=[[0.0, 1.0]] * len(share),
            )
        for text in documents(collection):
            if text not in answers:
                answers[text] = cached(engine, text), tokens(engine, text)
        time.sleep(0.02)
    return {"built": built, "answers": answers}


def main(told: dict[str, Any]) -> None:
    with open_engine(told["model"], told["store"]) as engine:
        collection = open_chroma(told["chroma"]).get_collection(COLLECTION, embedding_function=None)
        print("ready", flush=True)  # noqa: T201
        result = work(engine, collection, told["own"], told["everything"])
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
