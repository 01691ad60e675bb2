"""The command line. Each command has its own module, which is imported when the command is used."""

from __future__ import annotations

import atexit
import io
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from spa_onnx.errors import SpaError

COMMANDS = ("prune", "groups", "explain", "apply", "compare")
STOPPED: Mapping[signal.Signals, tuple[int, str]] = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated"),
}
"""Signal -> (exit code, word for the message)."""


class StoppedError(KeyboardInterrupt):
    """SIGINT or SIGTERM as an exception, so that temporary files are removed."""


class Main(click.Group):
    """Finds commands by name, and turns every error that a user can cause into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of use."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"spa_onnx.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Without arguments, print the help on stderr and exit with the code for wrong usage.

        click does the same since 8.2; before, it printed the help on stdout.
        """
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(click.UsageError.exit_code)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Errors that the user or the system can cause end the process with one line."""
        with _stoppable() as caught:
            try:
                return super().invoke(ctx)
            except BaseException as error:
                if caught:  # any error type: importing a C extension can turn the exception into an ImportError
                    status, word = STOPPED[caught[0]]
                    _fail(f"{word}; no file was left incomplete", status)
                if isinstance(error, SpaError):
                    _fail(str(error), error.exit_code)
                if isinstance(error, OSError):
                    _fail(
                        f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error),
                        SpaError.exit_code,
                    )
                raise

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit."""
        _escape_unencodable()
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted", STOPPED[signal.SIGINT][0])
        sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _stoppable() -> Iterator[list[signal.Signals]]:
    """Yield a list of the signals that have arrived. The first raises StoppedError; ignored signals stay ignored."""
    caught: list[signal.Signals] = []

    def stop(number: int, _: FrameType | None) -> None:
        """Record a signal and raise StoppedError."""
        caught.append(signal.Signals(number))
        raise StoppedError

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        atexit.register(_ignore_signals)
        before = {
            number: signal.getsignal(number)
            for number in STOPPED
            if signal.getsignal(number) not in {signal.SIG_IGN, None}
        }
    try:
        for number in before:
            signal.signal(number, stop)
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """Ignore signals while Python shuts down: an interrupt could only print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _escape_unencodable() -> None:
    """Escape characters of names and paths that the encoding of the terminal does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, status: int) -> NoReturn:
    """Print an error in one line and exit."""
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(status)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spa-onnx", prog_name="spa-onnx")
def main() -> None:
    """Remove whole channels from ONNX models: smaller, ordinary ONNX files, checked in onnxruntime.

    Exit codes: 0 done; 1 refused, with the reason; 2 wrong usage; 3 validation failed, nothing written; 4 a gate
    failed.
    """
