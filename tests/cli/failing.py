"""Commands that are expected to fail."""

from __future__ import annotations

from pathlib import Path

from command import listing, spa

REFUSED, USAGE, INVALID, GATE = 1, 2, 3, 4


def fails(folder: Path, code: int, *args: object) -> str:
    """The one line on stderr of a command that fails with this exit code and leaves the folder as it was."""
    before = listing(folder)
    result = spa(*args)
    assert (result.exit_code, result.stdout) == (code, ""), (result.exit_code, result.output, result.exception)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert listing(folder) == before
    return result.stderr
