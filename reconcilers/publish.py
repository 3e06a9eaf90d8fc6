"""Stage 6: what is to last -> one commit on main, and the ledger's branch. On conflict, look again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from policies.errors import ConflictError, ControllerError, OutsideError, RefusedError
from policies.records import event_statement
from policies.rest import says_the_same
from policies.terms.desired import DesiredState
from policies.terms.outcome import Change, Outcome, Result
from policies.writeback import author_of, check_changes, message
from reconcilers.ports import Ports

RACES = 8
"""How often in a row a commit may come too late before a whole pass is made again."""


def push(
    desired: DesiredState, results: Sequence[Result], ports: Ports, *, now: datetime, look: Callable[[], DesiredState]
) -> list[Outcome]:
    """Commit the changes of a pass, then record what became true by that, then push the ledger.

    Nothing is committed on top of a tip that is not trusted. A lost race changes nothing: the next pass plans again, or
    this one goes on at once where the newer commits say the same about everything that was planned from. Entries made
    close together share one commit of the ledger: while there is more to do at once, they wait in the write-ahead log,
    where they are safe.

    Returns:
        What could not be pushed, as outcomes.
    """
    outcomes = []
    changes = _apart([result.change for result in results if result.change is not None])
    if changes and not desired.is_trusted:
        outcomes.append(_waits(desired, "the branch's tip is not trusted: nothing is committed on top of it", "Untrusted"))
    elif changes:
        try:
            _commit_soon(desired, changes, ports, now, look)
        except ConflictError as error:
            outcomes.append(Outcome(state="waiting", subject="main", reason=error.reason, message=error.message, look_again=True))
        except RefusedError as error:
            # Not at once again: it says no until somebody changes the server's rules or this project's mode.
            outcomes.append(_waits(desired, error.message, error.reason, is_patient=True))
        except OutsideError as error:
            outcomes.append(_waits(desired, error.message, error.reason))
    if not changes and any(result.outcome.look_again for result in results):
        return outcomes
    try:
        ports.ledger.push()
        if ports.ledger.pending() == 0:
            _let_go(ports)
    except OutsideError as error:
        outcomes.append(Outcome(state="waiting", subject="ledger", reason=error.reason, message=error.message))
    return outcomes


def _let_go(ports: Ports) -> None:
    """Forget events that came in by HTTP once their record has left this machine: until then the inbox keeps them too."""
    if received := {event_statement(event).key: event.id for event in ports.inbox.received()}:
        known = ports.ledger.knows(list(received))
        ports.inbox.taken([identity for key, identity in received.items() if key in known])


def _apart(changes: Sequence[Change]) -> list[Change]:
    """Changes that touch no file of an earlier one; the others are planned again on what the earlier ones made."""
    kept: list[Change] = []
    for change in changes:
        if not any(path in earlier.files for earlier in kept for path in change.files):
            kept.append(change)
    return kept


def _commit_soon(
    desired: DesiredState, changes: Sequence[Change], ports: Ports, now: datetime, look: Callable[[], DesiredState]
) -> None:
    for _ in range(RACES):
        try:
            _commit(desired, changes, ports, now)
            return
        except ConflictError as lost:
            try:
                newer = look()
            except ControllerError:
                raise lost from None  # the next pass says what is wrong with it
            if newer.tip == desired.tip or not newer.is_trusted or not says_the_same(desired, newer):
                raise
            desired = newer
    raise ConflictError(f"push to {desired.revision.branch}: others were first {RACES} times in a row; looking again")


def _commit(desired: DesiredState, changes: Sequence[Change], ports: Ports, now: datetime) -> None:
    files = {path: content for change in changes for path, content in change.files.items()}
    check_changes(files, desired.project.spec.write_back.paths)
    trailers: dict[str, list[str]] = {}
    for change in changes:
        for key, values in change.trailers.items():
            known = trailers.setdefault(key, [])
            known += [value for value in values if value not in known]
    subject = changes[0].subject if len(changes) == 1 else f"{changes[0].subject}, and {len(changes) - 1} more"
    body = "\n\n".join(change.body if len(changes) == 1 else f"{change.subject}\n{change.body}" for change in changes)
    ports.repository.push(
        branch=desired.revision.branch,
        parent=desired.tip,
        changes=files,
        message=message(subject, body, trailers),
        at=now,
        author=author_of(desired.project),
    )
    ports.ledger.record([statement for change in changes for statement in change.statements])


def _waits(desired: DesiredState, text: str, reason: str, *, is_patient: bool = False) -> Outcome:
    return Outcome(state="waiting", subject=desired.revision.branch, reason=reason, message=text, is_patient=is_patient)
