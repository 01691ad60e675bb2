"""Every exception a user can meet; `str()` is the whole message and needs no traceback."""

from __future__ import annotations

from typing import ClassVar


class SpaError(Exception):
    """Base of every error a user can cause; `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = 1


class RefusedError(SpaError):
    """The model cannot be pruned as asked; the message says why and what to do next."""


class UsageError(SpaError):
    """The request itself is wrong: an option, a path, a regular expression."""

    exit_code: ClassVar[int] = 2


class ValidationError(SpaError):
    """The pruned model failed a check; nothing was written."""

    exit_code: ClassVar[int] = 3


class GateError(SpaError):
    """A limit given by the user was not met."""

    exit_code: ClassVar[int] = 4


class RuleError(SpaError):
    """A coupling rule contradicts the shapes in the graph: a bug in the rule or an invalid model."""
