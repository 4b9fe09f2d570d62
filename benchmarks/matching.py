"""How long it takes to find the known chunks of a prompt among a million; writes benchmarks/results/matching-cpu.json.

All but the chunks in the prompt are registered as random fingerprints: the matcher cannot tell them from real ones.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from kvrag.matching import HEAD_CHARS, Fingerprint, Match, TextMatcher, fingerprint

LETTERS = np.array(list("etaoinshrdlu etaoinshr \n"))
HEADER = "# Copyright 2026 The Authors. All rights reserved.\n"
RESULTS = Path(__file__).parent / "results" / "matching-cpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--common-head", type=int, default=100_000, help="texts that share one head")
    parser.add_argument("--prompt-chars", type=int, default=100_000)
    parser.add_argument("--chunks", type=int, default=20, help="known chunks in the prompt, every second with the head")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    chunks = [HEADER * (i % 2) + text(rng, 1500).strip() for i in range(args.chunks)]
    known = {mark.digest: i for i, mark in enumerate(map(marked, chunks))}
    columns = fingerprints(rng, chunks, args.texts, args.common_head)
    matcher = TextMatcher()
    add_ms = elapsed(lambda: matcher.add(*columns))
    print(f"add {len(matcher):,} texts at once: {add_ms:.0f} ms")

    heads = args.chunks - args.chunks // 2  # so that the common head stands in the prompt `chunks` times
    filler = args.prompt_chars - sum(map(len, chunks)) - heads * len(HEADER)
    pieces = [HEADER * (i < heads) + text(rng, filler // args.chunks) for i in range(args.chunks)]
    prompt = "".join(piece + chunk for piece, chunk in zip(pieces, chunks, strict=True)).ljust(args.prompt_chars)
    heads_only = HEADER.join(text(rng, args.prompt_chars // args.chunks - len(HEADER)) for _ in chunks)
    strange = text(rng, args.prompt_chars)
    find: Callable[[str], list[Match[int]]] = lambda prompt: matcher.find(prompt, known.get)  # noqa: E731
    assert [match.value for match in find(prompt)] == list(range(args.chunks))
    assert not find(strange)

    cases = {
        "find, known chunks and the common head": lambda: find(prompt),
        "find, the common head without a known chunk": lambda: find(heads_only),
        "find, nothing known": lambda: find(strange),
        "fingerprint of one chunk": lambda: fingerprint(chunks[0]),
        "add one more text": lambda: matcher.add(*fingerprints(rng, [], 1, 0)),
    }
    times = {case: [] for case in cases}
    for _ in range(args.runs):
        for case, action in cases.items():
            times[case].append(elapsed(action))
    rows = [row(case, samples) for case, samples in times.items()]
    rows.append(row("add all texts at once", [add_ms]))
    for entry in rows:
        print(f"{entry['case']:<45} median {entry['median_ms']:9.3f} ms   p90 {entry['p90_ms']:9.3f} ms")
    report = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "texts": args.texts,
        "common_head": args.common_head,
        "prompt_chars": args.prompt_chars,
        "chunks_in_prompt": args.chunks,
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


def text(rng: np.random.Generator, chars: int) -> str:
    return "".join(rng.choice(LETTERS, chars))


def marked(chunk: str) -> Fingerprint:
    mark = fingerprint(chunk)
    assert mark is not None
    return mark


def fingerprints(rng: np.random.Generator, chunks: list[str], texts: int, common: int) -> tuple[np.ndarray, ...]:
    """Heads, hashes and lengths of the chunks and of other texts, `texts` in all, `common` of them with one head."""
    heads, hashes = (rng.integers(0, 2**64, texts, np.uint64) for _ in range(2))
    lengths = rng.integers(200, 4000, texts)
    heads[len(chunks) : len(chunks) + common] = marked(HEADER).head
    for i, mark in enumerate(map(marked, chunks)):
        heads[i], hashes[i], lengths[i] = mark.head, mark.hash, mark.length
    return heads, hashes, lengths


def elapsed(action: Callable[[], object]) -> float:
    """Milliseconds that `action` takes."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def row(case: str, samples: list[float]) -> dict[str, object]:
    median, p90 = np.percentile(samples, [50, 90])
    return {"case": case, "median_ms": round(float(median), 4), "p90_ms": round(float(p90), 4)}


assert len(HEADER) > HEAD_CHARS

if __name__ == "__main__":
    main()
