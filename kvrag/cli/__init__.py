"""The command `kvrag`."""

import os
import signal
from types import FrameType

from kvrag.cli import ask, build, demo, store
from kvrag.cli.app import app
from kvrag.cli.terminal import silence_third_parties

__all__ = ["app", "ask", "build", "demo", "main", "store"]


def main() -> None:
    """Run the command line of this process."""
    silence_third_parties()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not when started with interrupts ignored
        signal.signal(signal.SIGINT, _interrupt)
    app(prog_name="kvrag")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C ends tidily, the second at once: everything on disk survives a kill."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    raise KeyboardInterrupt
