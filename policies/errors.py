"""The error tree: the class decides what happens next, `reason` is for machines, the message for the person.

A refused promotion is no error: it is a verdict. Waiting is no error: it is an outcome.
"""

from __future__ import annotations

from dataclasses import dataclass


class ControllerError(Exception):
    """Whatever Myelin raises on purpose.

    Args:
        message: `subject: expected (with unit), got; next step`. One line, lower case, no full stop.
        reason: Stable CamelCase word for machines.
    """

    default_reason = "ControllerError"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason

    @property
    def message(self) -> str:
        """The text for the person, on one line."""
        return " ".join(str(self.args[0]).split())


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Fault:
    """One thing that is wrong with a document: where, what was expected, what came."""

    file: str
    line: int
    path: str
    """Where in the document, `spec.tasks[1].train.lossMetric`; empty for the document as a whole."""
    reason: str
    """Stable CamelCase word, for example `UnknownKey`."""
    message: str
    """`expected …, got …`, without file, line and path."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return where + (f"{self.path}: {self.message}" if self.path else self.message)


class DesiredStateError(ControllerError):
    """The commit, or a document in it, cannot be read: stalled until the next commit. Carries all faults at once."""

    default_reason = "DesiredState"

    def __init__(self, message: str, *, reason: str | None = None, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(message, reason=reason)
        self.faults = faults


class TrustError(ControllerError):
    """A proof is missing or wrong: stalled and counted, until another proof comes."""

    default_reason = "Untrusted"


class OutsideError(ControllerError):
    """Git, the engine, a registry or an index failed us."""

    default_reason = "Outside"


class RefusedError(OutsideError):
    """The outside said no: stalled until access changes."""

    default_reason = "Refused"


class ConflictError(OutsideError):
    """Someone wrote first: look again at once."""

    default_reason = "Conflict"


class SilentError(OutsideError):
    """No answer in time: waiting, with growing pauses."""

    default_reason = "Silent"
