"""The ledger's part of `verify`, and the `ledger` command: every entry, its proof, and what was done to it and by whom."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from controller.adapters.keys import signed_by
from controller.adapters.ledger import BRANCH, lines_of
from controller.adapters.ledger.branch import raw_lines, split
from controller.adapters.ledger.copy import Copy, Known
from policies.canonical import canonical
from policies.errors import DesiredStateError
from policies.ledger import Chain, ChainFault, Line, decode, read_line, unsigned
from policies.rewrites import rewrites
from policies.segments import FOLDER, in_order, is_ledger_file
from policies.terms.record import Entry
from policies.terms.revision import CommitFacts

if TYPE_CHECKING:
    from controller.adapters.git import GitRepository
    from controller.adapters.git.past import Edit, Past, Step
    from controller.project import Place

AT_ONCE = 1000
"""Signatures that one thread checks in one go."""
MOST_FAULTS = 1000
"""What is kept; who rewrites a million entries is named once for each thousand."""
MOST_TEXTS = 8
_CANONICAL = b'{"at":"'
"""How a line begins that was written by `encode`; in others, what is looked for may be written otherwise."""
SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What checking a ledger came to."""

    entries: int
    commits: int
    faults: tuple[ChainFault, ...]
    """By number of entry, each with the first field that was tampered with."""
    seconds: float

    @property
    def entries_per_second(self) -> float:
        """How fast it was."""
        return self.entries / max(self.seconds, 1e-9)

    @property
    def reason(self) -> str:
        """What is wrong, on one line; empty when nothing is."""
        more = f"; and {len(self.faults) - SHOWN} more" if len(self.faults) > SHOWN else ""
        return "; ".join(map(str, self.faults[:SHOWN])) + more


def check_ledger(
    repository: GitRepository,
    head: str,
    public_keys: Sequence[str],
    *,
    signer: Callable[[CommitFacts], str] | None = None,
    folder: Path | None = None,
) -> Proof:
    """Check every entry, its signature and place, and that each commit of the branch only added entries.

    Args:
        repository: Where the branch was fetched to.
        head: Its tip; empty for a ledger without entries.
        public_keys: Of the controller, `ssh-ed25519 …`; one of them signs each entry. None: nothing is signed.
        signer: The name of who signed a commit.
        folder: The ledger's folder of a controller that runs here, if one does: what it pushed must still be there.
    """
    begun = time.perf_counter()
    if not head:
        return Proof(entries=0, commits=0, faults=(), seconds=0.0)
    known = Copy(folder).known() if folder is not None else Known()
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        entries, chain = _chain(repository, head, signed_by(public_keys), known, threads)
        commits, past = _past(repository, head, signer or _signer)
    return Proof(entries=entries, commits=commits, faults=_together(chain, past), seconds=time.perf_counter() - begun)


def ledger(place: Place, *, since: datetime | None = None, axon: str = "") -> Iterator[bytes]:
    """The ledger's lines as they stand on its branch: each with its digest, the one before, and its signature.

    Args:
        place: The project.
        since: Only what was recorded at this instant or later; aware.
        axon: Only of this axon; empty for all.
    """
    from controller.answers.opened import opened

    with opened(place) as project:
        head = project.repository.fetch(BRANCH)
        for line in _told(project.repository, head, place.state / "ledger", axon):
            if since is None or datetime.fromisoformat(line.at) >= since:
                yield line.raw


def instant(text: str) -> datetime:
    """Read an instant as a person types it; one without a zone is UTC.

    Raises:
        DesiredStateError: It is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise DesiredStateError(f"{text}: expected an instant, such as 2026-01-31 or 2026-01-31T12:00:00Z") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def find(repository: GitRepository, head: str, folder: Path, keys: Collection[str]) -> list[Entry]:
    """The entries of some keys, in order.

    Where a controller that runs here has read the branch up to `head`, its index is asked; else the branch is read.
    """
    copy = Copy(folder)
    if head and copy.known().head == head:
        return copy.find(keys)
    found = _sifted(repository, head, [b'"key":' + canonical(key) for key in keys]) if head else ()
    return [decode(line.raw, where=line.where) for line in found if line.key in keys]


def of_kind(repository: GitRepository, head: str, kind: str) -> Iterator[Entry]:
    """The entries of one kind, in order, as the branch has them."""
    found = _sifted(repository, head, [b'"kind":' + canonical(kind)]) if head else ()
    return (entry for line in found if (entry := decode(line.raw, where=line.where)).statement.kind == kind)


def of_axon(repository: GitRepository, head: str, folder: Path, axon: str) -> Iterator[Entry]:
    """The entries of one axon, in order; by the index where there is one, as with `find`."""
    return (decode(line.raw, where=line.where) for line in _told(repository, head, folder, axon))


def _told(repository: GitRepository, head: str, folder: Path, axon: str) -> Iterator[Line]:
    copy = Copy(folder)
    if axon and head and copy.known().head == head:
        yield from (read_line(line, f"entry {number}") for number, line in copy.of_axon(axon))
    elif axon and head:
        yield from (line for line in _sifted(repository, head, [b'"axon":' + canonical(axon)]) if line.axon == axon)
    elif head:
        yield from lines_of(repository, head)


def _sifted(repository: GitRepository, head: str, parts: Sequence[bytes]) -> Iterator[Line]:
    """Lines that may have one of these parts: of most, no more is looked at."""
    for path, lines in raw_lines(repository, head, [item.path for item in repository.files(head, FOLDER)]):
        for place, raw in lines:
            if not raw.startswith(_CANONICAL) or any(part in raw for part in parts):
                yield read_line(raw, f"{path}:{place}")


def _chain(
    repository: GitRepository,
    head: str,
    is_signed: Callable[[bytes, str], bool],
    known: Known,
    threads: ThreadPoolExecutor,
) -> tuple[int, list[ChainFault]]:
    """Follow the chain at the tip, while signatures are checked beside."""
    chain, count, some = Chain(), 0, list[Line]()
    waiting: deque[Future[list[ChainFault]]] = deque()

    def check(lines: Sequence[Line]) -> list[ChainFault]:
        return [unsigned(line) for line in lines if not is_signed(line.digest.encode(), line.signature)]

    def hand_over(lines: Sequence[Line], *, most: int) -> None:
        if lines:
            waiting.append(threads.submit(check, lines))
        while len(waiting) > most:
            chain.faults.extend(waiting.popleft().result()[: MOST_FAULTS - len(chain.faults)])

    for path, lines in raw_lines(repository, head, [item.path for item in repository.files(head, FOLDER)]):
        for place, raw in lines:
            count += 1
            try:
                line = read_line(raw, f"{path}:{place}")
            except DesiredStateError as error:
                chain.faults.append(ChainFault(number=0, field="line", message=error.message))
                continue
            if len(chain.faults) < MOST_FAULTS:
                chain.take(line)
            if line.number == known.number and line.digest != known.digest:
                text = "is not the one that this controller pushed: the branch was rewritten"
                chain.faults.append(ChainFault(number=line.number, field="digest", message=text, where=line.where))
            some.append(line)
            if len(some) == AT_ONCE:
                hand_over(some, most=8)
                some = []
    hand_over(some, most=0)
    if count < known.number:
        text = f"is missing, and all up to entry {known.number}, which this controller pushed"
        chain.faults.append(ChainFault(number=count + 1, field="number", message=text))
    return count, chain.end()


def _past(repository: GitRepository, head: str, signer: Callable[[CommitFacts], str]) -> tuple[int, list[ChainFault]]:
    """See that each commit of the branch added entries behind those before it, and did nothing else.

    Most do, and are done with by ids: a content that is a beginning of what its file is now has the id of that beginning.
    Only the others are read.
    """
    past, texts = repository.past(), _Texts(repository, head)
    faults: list[ChainFault] = []
    commits, steps = 0, list["Step"]()

    def judge(some: Sequence[Step]) -> None:
        blobs = {blob for step in some for edit in step.edits for blob in (edit.before, edit.after) if blob}
        sizes = past.sizes(sorted(blobs))
        for step in some:
            if len(faults) >= MOST_FAULTS:
                return
            if len(step.parents) > 1:
                text = f"commit {step.commit[:12]} merges two lines of the ledger"
                faults.append(ChainFault(number=0, field="", message=text))
            if not all(texts.only_grew(edit, sizes) for edit in step.edits if is_ledger_file(edit.path)):
                faults.extend(_judged(repository, past, step, signer))

    for step in past.steps(head, FOLDER):
        commits += 1
        steps.append(step)
        if len(steps) == AT_ONCE:
            judge(steps)
            steps = []
    judge(steps)
    return commits, faults


class _Texts:
    """What the files of the tip are, the last few of them; and whether another content is how one of them began."""

    def __init__(self, repository: GitRepository, head: str) -> None:
        self._repository, self._head = repository, head
        self._texts: dict[str, bytes] = {}

    def only_grew(self, edit: Edit, sizes: Mapping[str, int]) -> bool:
        """Whether the content before and the one after are both how the file of today begins, and the first is shorter."""
        if not edit.after or not (text := self._text(edit.path)):
            return False
        longer = sizes.get(edit.after, -1)
        if not edit.before:
            return _is_beginning(text, longer, edit.after)
        shorter = sizes.get(edit.before, -1)
        return shorter < longer and _is_beginning(text, longer, edit.after) and _is_beginning(text, shorter, edit.before)

    def _text(self, path: str) -> bytes:
        if path not in self._texts:
            while len(self._texts) >= MOST_TEXTS:
                del self._texts[next(iter(self._texts))]
            self._texts[path] = self._repository.read_many(self._head, [path]).get(path, b"")
        return self._texts[path]


def _is_beginning(text: bytes, size: int, blob: str) -> bool:
    if not 0 <= size <= len(text):
        return False
    made = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    made.update(memoryview(text)[:size])
    return made.hexdigest() == blob


def _judged(repository: GitRepository, past: Past, step: Step, signer: Callable[[CommitFacts], str]) -> Iterator[ChainFault]:
    """What a commit did to the lines of the files that it touched, and who signed it."""
    before = {edit.path: edit.before for edit in step.edits if edit.before}
    after = {edit.path: edit.after for edit in step.edits if edit.after}
    found = list(rewrites(_texts(past, before), _texts(past, after)))
    if not found:
        return
    facts = repository.facts(since=step.parents[0] if step.parents else "", until=step.commit)
    by = next((signer(item) for item in facts if item.commit == step.commit), "?")
    places = ", ".join(sorted(before))
    for fault in found:
        yield replace(fault, commit=f"commit {step.commit[:12]}, signed by {by}", where=fault.where or places)


def _texts(past: Past, blobs: Mapping[str, str]) -> list[bytes]:
    shards, segments = in_order(blobs)
    return [raw for path in (*shards, *segments) for _, raw in split(past.content(blobs[path]))]


def _together(chain: Sequence[ChainFault], past: Sequence[ChainFault]) -> tuple[ChainFault, ...]:
    """Faults of the chain, told by what the history says where it does: that names field, commit and signer."""
    told = {fault.number for fault in past if fault.number}
    left = [fault for fault in chain if fault.number not in told and not (fault.field == "previous" and fault.number - 1 in told)]
    return tuple(sorted((*past, *left), key=lambda fault: fault.number))


def _signer(facts: CommitFacts) -> str:
    if facts.signature is None or not facts.signature.valid:
        return f"{facts.author} (not signed)"
    return facts.signature.fingerprint
