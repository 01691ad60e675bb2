"""The command line: parse, call one function, print. Each command has its file and is imported when it is used."""

from __future__ import annotations

import atexit
import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from spa_onnx.errors import SpaError

COMMANDS = ("prune", "groups", "explain", "apply", "compare")
STOPPED = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


class StoppedError(KeyboardInterrupt):
    """SIGINT or SIGTERM as an exception, so that temporary files are removed on the way out."""


class Main(click.Group):
    """Finds commands by name, and turns every error that a user can cause into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the file of one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"spa_onnx.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Nothing to parse is wrong usage, which click answers with the help on stdout before 8.2, and on stderr since."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(click.UsageError.exit_code)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user or the system can cause ends here."""
        with _stoppable() as caught:
            try:
                return super().invoke(ctx)
            except BaseException as error:
                if caught:  # whatever became of it: a C extension that is being imported makes an ImportError of it
                    status, what = STOPPED[caught[0]]
                    _fail(f"{what}; no file was left incomplete", status)
                if isinstance(error, SpaError):
                    _fail(str(error), error.exit_code)
                if isinstance(error, OSError):
                    _fail(
                        f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error),
                        SpaError.exit_code,
                    )
                raise

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run and exit."""
        _print_any_name()
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
    """The signals that arrived: the first raises StoppedError. One that the caller has told us to ignore is left alone."""
    caught: list[signal.Signals] = []

    def stop(number: int, _: FrameType | None) -> None:
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
    """When Python is shutting down all is done, and an interrupt could only print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _print_any_name() -> None:
    """Names in models and paths may hold what the terminal's encoding lacks; that must not stop the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, status: int) -> NoReturn:
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(status)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spa-onnx", prog_name="spa-onnx")
def main() -> None:
    """Remove whole channels from ONNX models: smaller, ordinary ONNX files, checked in onnxruntime.

    Exit codes: 0 done; 1 refused, with the reason; 2 wrong usage; 3 validation failed, nothing written; 4 a gate failed.
    """
