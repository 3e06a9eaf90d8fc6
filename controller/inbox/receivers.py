"""Who takes what comes into the inbox: one set of receivers for each project, with the secrets that lead to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.adapters.spool import Spool
from controller.inbox.sigstores import Sigstore
from policies.admin import Places
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed
from reconcilers.ports import Clock

LARGEST_RESULT_BYTES = 64 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """Who takes what comes in, and who knows what is asked for."""

    spool: Spool
    clock: Clock
    wake: Callable[[], None]
    report: Callable[[str, Mapping[str, Any]], None]
    """Takes a line of a job's report."""
    push: Callable[[Mapping[str, str], str], None]
    """Takes samples: labels and exposition text."""
    newest: Callable[[], tuple[DesiredState, Observed] | None]
    """What the last look came to; None before the first."""
    place: Places
    """Where the folders of jobs and servers are."""
    namespace: str
    """The one that jobs are told."""
    branch: str = "main"
    """The branch that is followed."""
    stirred: Callable[[str], None] = lambda what: None
    """Told before a webhook wakes: `push` or `review` says which of the outside has news, however short ago it was asked."""
    result: Callable[[str, Path], Mapping[str, str]] | None = None
    """Takes the tar file that a job brought, already checked against its digest, and makes it safe; returns what was kept.

    A job that got no answer brings the same again, also while this still works on the first. The file is gone afterwards.
    """
    results: Path | None = None
    """Where such files lie while they come in: a folder of its own on a disk with room for them."""
    largest_result_bytes: int = LARGEST_RESULT_BYTES
    sigstore: Callable[[str], Sigstore | None] = lambda url: None
    """What answers for the project's embedded Sigstore, told where this machine reaches the inbox; None: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A project that the inbox takes things for."""

    project: str
    """Its name, or `policies.admin.ANY_PROJECT` where the name is for the receivers to check."""
    receivers: Receivers
    token: str = field(repr=False)
    """What senders of events show."""
    programs: str = field(repr=False)
    """What the addresses of jobs and servers are made from."""
