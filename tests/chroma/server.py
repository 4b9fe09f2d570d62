"""A real `chroma run` on a free port of the loopback interface."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

_RUN = "from chromadb.cli.cli import app; app()"


@contextmanager
def chroma_server(folder: Path) -> Iterator[str]:
    """The URL of a server that keeps its collections in `folder`; it ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", _RUN, *arguments], stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(f"{url}/api/v2/heartbeat", timeout=5):
                return
        except URLError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"expected a Chroma server at {url}, found: {log.read_text()}") from error
            time.sleep(0.05)
