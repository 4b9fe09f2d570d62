"""The application: its global options, and what becomes of errors.

Exit codes: 0 done, 1 failure, 2 wrong usage, 130 interrupted.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvrag.cli.terminal import complain
from kvrag.errors import KVRagError, SettingsError

__all__ = ["FAILURE", "app", "catch_interrupts"]

_INTERRUPTED = "interrupted; run the same command again to complete what it had begun"
_interrupted = threading.Event()

FAILURE, WRONG_USAGE, INTERRUPTED = 1, 2, 130


class _Commands(TyperGroup):
    """Commands whose errors are one line on standard error; every command registered on the app gets this."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            if not _is_usage(error):
                raise
            context = getattr(error, "ctx", None)
            hint = f" (try '{context.command_path} --help')" if context else ""
            complain(error.format_message() + hint)  # pyright: ignore[reportAttributeAccessIssue]
            code = error.exit_code  # pyright: ignore[reportAttributeAccessIssue]
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain(_INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, SystemExit, BrokenPipeError):
            raise
        except BaseException as error:  # Chroma's panics are no Exceptions
            if _interrupted.is_set():  # somebody took the interrupt for an error of his own: transformers' lazy imports
                complain(_INTERRUPTED)
                raise typer.Exit(INTERRUPTED) from None
            if _is_usage(error) or ctx.params.get("debug"):
                raise
            complain(_explained(error))
            raise typer.Exit(WRONG_USAGE if isinstance(error, SettingsError) else FAILURE) from None


app = typer.Typer(
    cls=_Commands,
    name="kvrag",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Answer questions about your documents without reading the same chunks again for every question.",
)


def catch_interrupts() -> None:
    """Let the first Ctrl-C of this process end it tidily, the second at once: what is on disk survives a kill."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not when started with interrupts ignored
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    _interrupted.set()
    with suppress(OSError):
        os.write(2, b"stopping; Ctrl-C once more ends it at once\n")  # print may be in the middle of something
    raise KeyboardInterrupt


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvrag {version('kvrag')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _kvrag(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _is_usage(error: BaseException) -> bool:
    """Whether the arguments were wrong; the class is click's or, since typer 0.2x, typer's own."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _explained(error: BaseException) -> str:
    if isinstance(error, KVRagError):
        return str(error)
    if isinstance(error, ImportError):
        extra = "train" if getattr(error, "name", "") in ("accelerate", "matplotlib", "peft", "datasets") else "demo"
        return f"{error}; run: pip install 'kvrag[{extra}]', which brings what this command needs"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error}; `kvrag --debug ...` shows where it comes from"
