"""`verify` of the ledger on real repositories: each table row is a deed, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.adapters.git import GitRepository, init_bare
from controller.adapters.keys import SshKey
from controller.adapters.ledger import BRANCH, GitLedger
from controller.adapters.ledger.copy import Copy
from controller.answers.proof import Proof, check_ledger, find, instant, of_axon
from controller.cli import app
from policies.errors import DesiredStateError
from policies.ledger import encode, entry_of
from policies.segments import MOST_ENTRIES
from policies.terms.record import Entry, Statement
from tests.fakes.wiring import CONTROLLER, STRANGER

AT = datetime(2026, 1, 30, 12, tzinfo=UTC)
FIRST = "ledger/2026-01/000000000001.jsonl"
SECOND = "ledger/2026-02/000000000004.jsonl"
Files = Mapping[str, bytes]


class Calendar:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = AT

    def now(self) -> datetime:
        return self.at


class Branch:
    """A ledger of six entries in two months, in three commits, and who may spoil it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        init_bare(folder / "origin.git")
        self._opened: list[GitRepository] = []
        self.repository = self.open("own", CONTROLLER)
        calendar = Calendar()
        self.ledger = GitLedger(self.repository, folder / "ledger", CONTROLLER, calendar)
        for number in range(1, 7):
            calendar.at = AT if number < 4 else AT + timedelta(days=2)
            self.ledger.record([Statement(kind="event", key=f"event/{number}", axon=f"a{number % 2}", body={"id": f"{number}"})])
            if number % 2 == 0:
                self.ledger.push()

    def open(self, name: str, key: SshKey | None) -> GitRepository:
        self._opened.append(GitRepository(str(self.folder / "origin.git"), self.folder / name, key))
        return self._opened[-1]

    def files(self) -> dict[str, bytes]:
        head = self.repository.fetch(BRANCH)
        return dict(self.repository.read_many(head, [item.path for item in self.repository.files(head)]))

    def commit(self, files: Files, key: SshKey = STRANGER) -> None:
        """Make the branch's files these."""
        other = self.open(f"other-{len(self._opened)}", key)
        changes: dict[str, bytes | None] = {**dict.fromkeys(self.files()), **files}
        other.push(branch=BRANCH, parent=other.fetch(BRANCH), changes=changes, message="A deed\n", at=AT)

    def verify(self, *, folder: Path | None = None) -> Proof:
        reader = self.open(f"reader-{len(self._opened)}", None)
        return check_ledger(reader, reader.fetch(BRANCH), [CONTROLLER.public()], signer=lambda _: "a stranger", folder=folder)

    def close(self) -> None:
        self.ledger.close()
        for repository in self._opened:
            repository.close()


@pytest.fixture
def branch(tmp_path: Path) -> Iterator[Branch]:
    made = Branch(tmp_path)
    yield made
    made.close()


def lines(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


def appended(files: Files, entry: Entry) -> Files:
    return {**files, SECOND: files[SECOND] + encode(entry)}


def forged(number: int) -> Entry:
    statement = Statement(kind="event", key="event/forged", axon="a1", body={"id": "forged"})
    return entry_of(statement, number=number, at=AT, previous=None, sign=STRANGER.sign)


def swapped(text: bytes) -> bytes:
    one, two, *rest = lines(text)
    return b"".join([two, one, *rest])


BY = "signed by a stranger"
ALIEN = f"signature: is not of a key of the project ({SECOND}:4)"
DEEDS: dict[str, tuple[Callable[[Files], Files], list[str]]] = {
    "nothing": (lambda files: files, []),
    "a body is changed": (
        lambda files: {**files, FIRST: files[FIRST].replace(b'"id":"2"', b'"id":"9"')},
        [f"entry 2: body.id: was 2, is 9 ({FIRST}; commit X, {BY})"],
    ),
    "a key is changed": (
        lambda files: {**files, FIRST: files[FIRST].replace(b"event/2", b"event/9")},
        [f"entry 2: key: was event/2, is event/9 ({FIRST}; commit X, {BY})"],
    ),
    "an instant is changed in the newest file": (
        lambda files: {**files, SECOND: files[SECOND].replace(b"2026-02-01", b"2026-02-07", 1)},
        [f"entry 4: at: was 2026-02-01T12:00:00+00:00, is 2026-02-07T12:00:00+00:00 ({SECOND}; commit X, {BY})"],
    ),
    "the last entry is removed": (
        lambda files: {**files, SECOND: b"".join(lines(files[SECOND])[:-1])},
        [f"entry 6: number: was removed ({SECOND}; commit X, {BY})"],
    ),
    "two in the middle are removed": (
        lambda files: {FIRST: b"".join(lines(files[FIRST])[:2]), SECOND: b"".join(lines(files[SECOND])[1:])},
        [f"entry 3: number: was removed, and all up to entry 4 ({FIRST}, {SECOND}; commit X, {BY})"],
    ),
    "a whole file is removed": (
        lambda files: {SECOND: files[SECOND]},
        [f"entry 1: number: was removed, and all up to entry 3 ({FIRST}; commit X, {BY})"],
    ),
    "two entries are swapped": (
        lambda files: {**files, FIRST: swapped(files[FIRST])},
        [
            f"entry 2: number: was moved to where entry 1 stood ({FIRST}; commit X, {BY})",
            f"entry 1: number: stands behind entry 2 ({FIRST}:2)",
        ],
    ),
    "the chain is forked": (
        lambda files: appended(files, forged(5)),
        [f"entry 5: number: is there twice: the chain forks ({SECOND}:4)", f"entry 5: {ALIEN}"],
    ),
    "an entry is added that nobody may sign": (
        lambda files: appended(files, forged(7)),
        [f"entry 7: previous: names another entry as the one before ({SECOND}:4)", f"entry 7: {ALIEN}"],
    ),
    "a number is passed over": (
        lambda files: appended(files, forged(9)),
        ["entry 7: number: is missing, and all up to entry 8", f"entry 9: {ALIEN}"],
    ),
    "something is added that is no entry": (
        lambda files: {**files, SECOND: files[SECOND] + b"{}\n"},
        [f"{SECOND}:4: expected a ledger entry, got b'{{}}'"],
    ),
    "all is packed into one file": (lambda files: {FIRST: files[FIRST] + files[SECOND]}, []),
    "all is packed, and one is lost": (
        lambda files: {FIRST: b"".join(lines(files[FIRST] + files[SECOND])[1:])},
        [f"entry 1: number: was removed ({FIRST}, {SECOND}; commit X, {BY})"],
    ),
    "the branch has other files": (lambda files: {**files, "README.md": b"hello\n"}, []),
}  # fmt: skip


@pytest.mark.parametrize("deed", DEEDS)
def test_a_deed_is_named_with_entry_field_place_commit_and_signer(deed: str, branch: Branch) -> None:
    change, expected = DEEDS[deed]
    files = branch.files()
    assert sorted(files) == [FIRST, SECOND]
    branch.commit(change(files))
    proof = branch.verify()
    head = branch.repository.fetch(BRANCH)
    assert sorted(str(fault).replace(head[:12], "X") for fault in proof.faults) == sorted(expected)
    assert (proof.commits, bool(proof.reason)) == (4, bool(expected))


def test_what_is_put_back_is_still_named(branch: Branch) -> None:
    files = branch.files()
    branch.commit({**files, FIRST: files[FIRST].replace(b'"id":"2"', b'"id":"9"')})
    branch.commit(files)
    found = [str(fault) for fault in branch.verify().faults]
    assert len(found) == 2
    assert all("body.id" in text and BY in text for text in found)


def test_a_cut_and_another_end_is_named_although_its_chain_is_whole(branch: Branch) -> None:
    """The key's holder goes on from an entry that was not the last: the tip alone tells nothing."""
    files = branch.files()
    cut = {**files, SECOND: b"".join(lines(files[SECOND])[:-1])}
    branch.commit(cut)
    ledger = GitLedger(branch.open("two", CONTROLLER), branch.folder / "two-ledger", CONTROLLER, Calendar())
    ledger.record([Statement(kind="event", key="event/other", axon="a1", body={"id": "other"})])
    assert ledger.push() == 1
    ledger.close()
    [fault] = branch.verify().faults
    assert (fault.number, fault.message) == (6, "was removed")


def test_a_branch_that_was_forced_is_told_by_what_this_machine_pushed(branch: Branch) -> None:
    head = branch.repository.fetch(BRANCH)
    facts = branch.repository.facts(since="", until=head)
    (branch.folder / "origin.git/refs/heads" / BRANCH).write_text(facts[1].commit + "\n")
    assert branch.verify().faults == ()
    [fault] = branch.verify(folder=branch.folder / "ledger").faults
    assert str(fault) == "entry 5: number: is missing, and all up to entry 6, which this controller pushed"


def test_without_a_key_nothing_is_signed(branch: Branch) -> None:
    reader = branch.open("reader", None)
    proof = check_ledger(reader, reader.fetch(BRANCH), [])
    assert [(fault.number, fault.field) for fault in proof.faults] == [(number, "signature") for number in range(1, 7)]
    assert proof.reason.endswith("; and 1 more")
    assert check_ledger(reader, "", []).faults == ()


def test_entries_of_an_axon_and_of_keys_are_found_with_and_without_a_copy(branch: Branch) -> None:
    reader = branch.open("reader", None)
    head = reader.fetch(BRANCH)
    for folder in (branch.folder / "ledger", branch.folder / "none"):
        assert [entry.number for entry in of_axon(reader, head, folder, "a1")] == [1, 3, 5]
        assert [entry.number for entry in find(reader, head, folder, ["event/4", "event/2", "event/x"])] == [2, 4]
        assert find(reader, "", folder, ["event/1"]) == []
    assert not (branch.folder / "none").exists()


def test_a_ledger_that_began_in_the_first_form_goes_on_in_segments_and_verifies(tmp_path: Path) -> None:
    init_bare(tmp_path / "origin.git")
    repository = GitRepository(str(tmp_path / "origin.git"), tmp_path / "git", CONTROLLER)
    old: list[Entry] = []
    for number, day in enumerate((AT, AT + timedelta(days=3), AT + timedelta(days=1), AT + timedelta(days=4)), start=1):
        said = Statement(kind="event", key=f"event/{number}", axon="a", body={"id": f"{number}"})
        previous = old[-1].digest if old else None
        old.append(entry_of(said, number=number, at=day, previous=previous, sign=CONTROLLER.sign))
    head = ""
    for upto in range(1, 5):
        # As the first form wrote them: a file a month, written as a whole. The clock was set back over the border once.
        shards: dict[str, bytes | None] = {}
        for entry in old[:upto]:
            path = f"ledger/{entry.at:%Y-%m}.jsonl"
            shards[path] = (shards.get(path) or b"") + encode(entry)
        head = repository.push(branch=BRANCH, parent=head, changes=shards, message="old\n", at=AT)
    ledger = GitLedger(repository, tmp_path / "ledger", CONTROLLER, Calendar())
    assert ledger.entries() == tuple(old)
    for number in range(5, MOST_ENTRIES + 9):
        ledger.record([Statement(kind="event", key=f"event/{number}", axon="a", body={"id": f"{number}"})])
        if number % 100 == 0:
            ledger.push()
    assert ledger.push() > 0
    everything = ledger.entries()
    ledger.close()
    head = repository.fetch(BRANCH)
    paths = [item.path for item in repository.files(head)]
    assert "ledger/2026-01.jsonl" in paths
    assert "ledger/2026-01/000000000005.jsonl" in paths
    proof = check_ledger(repository, head, [CONTROLLER.public()])
    assert (proof.entries, proof.faults) == (MOST_ENTRIES + 8, ())
    again = GitLedger(repository, tmp_path / "elsewhere", CONTROLLER, Calendar())
    assert again.entries() == everything
    again.close()
    repository.close()


def test_a_copy_that_is_lost_or_damaged_is_made_anew_while_the_controller_runs(branch: Branch) -> None:
    before = branch.ledger.entries()
    copy = branch.folder / "ledger" / "pushed.sqlite"
    copy.unlink()
    assert branch.ledger.entries() == before
    branch.ledger.record([Statement(kind="event", key="event/7", axon="a1", body={"id": "7"})])
    copy.unlink()
    assert branch.ledger.push() == 1
    assert [entry.number for entry in branch.ledger.entries()] == [*range(1, 8)]
    branch.ledger.close()
    copy.write_bytes(b"no database" * 1000)
    assert Copy(copy.parent).known().number == 0
    ledger = GitLedger(branch.repository, copy.parent, CONTROLLER, Calendar())
    assert [entry.number for entry in ledger.entries()] == [*range(1, 8)]
    ledger.close()


def test_the_command_prints_lines_as_they_stand(branch: Branch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    trust = branch.folder / "trust.yaml"
    trust.write_text("{}\n")

    def printed(*options: str) -> list[bytes]:
        args = ["ledger", "--repo", str(branch.folder / "origin.git"), "--state", str(branch.folder), "--trust", str(trust)]
        with pytest.raises(SystemExit) as ended:
            app([*args, *options])
        assert ended.value.code == 0
        return capfdbinary.readouterr().out.splitlines(keepends=True)

    everything = lines(b"".join(text for _, text in sorted(branch.files().items())))
    assert printed() == everything
    assert printed("--axon", "a1") == everything[::2]
    assert printed("--since", "2026-02-01") == everything[3:]
    assert printed("--since", "2026-02-01T13:00:00+01:00", "--axon", "a1") == [everything[4]]
    assert printed("--since", "2026-02-01T12:00:01Z") == []


def test_an_instant_is_read_as_utc_unless_it_says_otherwise() -> None:
    assert instant("2026-01-30T12:00") == instant("2026-01-30T13:00:00+01:00") == AT
    with pytest.raises(DesiredStateError, match="yesterday: expected an instant"):
        instant("yesterday")
