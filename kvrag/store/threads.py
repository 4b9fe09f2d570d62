"""Threads that read files together: one alone is slower than a good disk."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

__all__ = ["SHARE", "THREADS", "share"]

SHARE = 5 << 20  # bytes that are worth a thread
THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

Work = TypeVar("Work")


def share(job: Callable[[Work], object], pieces: Iterable[Work], nbytes: int) -> None:
    """Call `job` with every piece, in this thread and idle ones of a pool; it raises what one of the calls does.

    Args:
        job: releases the GIL for most of its time.
        pieces: in the order in which they are begun.
        nbytes: of all pieces, which decide how many threads are worth it.
    """
    left = iter(pieces)

    def work() -> None:
        for piece in left:  # whoever is free takes the next
            job(piece)

    handed = [work]
    threads = min(THREADS, nbytes // SHARE)
    helpers = [_pool(os.getpid()).submit(lambda: handed[0]()) for _ in range(threads - 1)]
    try:
        work()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
        handed.clear()  # or the pool would hold on to the memory for a moment
    for helper in begun:
        helper.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process, since a fork has none of them; to start some takes as long as to read 1 MiB."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="kvrag-read")
