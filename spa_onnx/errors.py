"""The exceptions that users see. `str(error)` is the complete message, without a traceback."""

from __future__ import annotations

from typing import ClassVar


class SpaError(Exception):
    """Base class of all errors that a user can cause.

    Attributes:
        exit_code: The exit code of the command line.
    """

    exit_code: ClassVar[int] = 1


class RefusedError(SpaError):
    """The model cannot be pruned as requested. The message states the reason and what to do next."""


class UsageError(SpaError):
    """The request is invalid, for example an option, a path or a regular expression."""

    exit_code: ClassVar[int] = 2


class ValidationError(SpaError):
    """The pruned model failed a check, and nothing was written."""

    exit_code: ClassVar[int] = 3


class GateError(SpaError):
    """The pruned model exceeds a limit that the user has set."""

    exit_code: ClassVar[int] = 4


class RuleError(SpaError):
    """A coupling rule contradicts the shapes in the graph: the rule has a bug, or the model is invalid."""
