"""The command `kvrag`."""

from kvrag.cli import ask, bench, build, calibrate, demo, eval, gc, methods, store, train
from kvrag.cli.app import app, catch_interrupts
from kvrag.cli.terminal import silence_third_parties

__all__ = ["app", "ask", "bench", "build", "calibrate", "demo", "eval", "gc", "main", "methods", "store", "train"]


def main() -> None:
    """Run the command line of this process."""
    silence_third_parties()
    catch_interrupts()
    app(prog_name="kvrag")
