import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection

import pytest
from s3 import S3, fresh_bucket, s3_server

from kvrag.store import PacketStore


@pytest.fixture
def store(tmp_path) -> Iterator[PacketStore]:
    with PacketStore(tmp_path / "store") as store:
        yield store


@pytest.fixture(scope="session")
def child():
    """Runs a function of `toy_packets` in a process of its own, which is killed (-9) when the block ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "toy_packets"])
    with pytest.MonkeyPatch.context() as patch:  # the server does not take over sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()

    @contextmanager
    def run(function: Callable, *arguments) -> Iterator[Connection]:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=function, args=(*arguments, sender))
        process.start()
        sender.close()
        try:
            yield receiver
        finally:
            process.kill()
            process.join()
            process.close()

    return run


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def s3(s3_port) -> Iterator[S3]:
    with fresh_bucket(s3_port) as bucket:
        yield bucket
