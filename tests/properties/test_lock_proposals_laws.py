"""Laws of proposed locks: which are asked about, once each, and what the followed branch answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import records
from policies.errors import Fault
from policies.jobs import Surroundings
from policies.lock_files import beside, lock_branch, lock_evidence, lock_fate, lock_path, proposed_lock
from policies.lock_proposals import lock_steps
from policies.locks import OWN_LOCK, PRECEDENCE, PYLOCK, REQUIREMENTS, Lock
from policies.retention import in_use
from policies.terms.desired import DesiredState
from policies.terms.digest import Digest, digest_of
from policies.terms.observed import Observed, Recorded
from policies.terms.plan import EndProposal, ProposeLock
from policies.terms.project import Project
from policies.terms.proposal import Proposal
from policies.terms.record import Statement
from policies.terms.revision import Revision, TrustedKey
from policies.terms.source import Submodule
from tests.properties.strategies import NOW, axon_of, chain

FORGE = {"type": "gitea", "url": "https://forge.localhost", "repository": "a/b"}
TREES = ("1" * 40, "2" * 40, "3" * 40)
FOLDERS = ("", "src", "axons/digits/training")
TEXTS = ("a==1\n", "a==2\n", "b==1\n")
files = st.dictionaries(st.sampled_from(PRECEDENCE), st.sampled_from([b"", b"a==1\n", b"a>1\n"]))


def image(folder: str, tree: str, text: str, axon: str = "digits", **more: str) -> Statement:
    """That an image was built, by requirements that were resolved; without a text, by a lock of theirs."""
    made = {"folder": folder, "tree": tree, **({"lock": digest_of(text.encode())} if text else {}), **more}
    return records.image_statement(axon, digest_of(f"{folder} {tree} {text} {axon}".encode()), made)


def desired(
    trees: Mapping[str, str], *, forge: bool = True, asks: bool = True, axons: Sequence[str] = ("digits",)
) -> DesiredState:
    spec = {"writeBack": {"forge": FORGE} if forge else {}, "builder": {"proposeLocks": asks}}
    project = Project.model_validate({"metadata": {"name": "p"}, "spec": spec})
    made = {name: replace(axon_of(name, sensors=[]), trees=dict(trees)) for name in axons}
    revision = Revision(branch="main", commit="c" * 40, at=NOW, signer="you")
    return DesiredState(revision=revision, tip="c" * 40, project=project, axons=made)


def steps(state: DesiredState, said: Sequence[Statement]) -> list[ProposeLock | EndProposal]:
    return list(lock_steps(state, Observed(recorded=folded(said)), NOW))


def folded(said: Sequence[Statement]) -> Recorded:
    return records.fold(chain(said, at=NOW))


built = st.builds(image, st.sampled_from(FOLDERS), st.sampled_from(TREES), st.sampled_from(("", *TEXTS)))
happenings = st.lists(st.one_of(built, st.sampled_from(["merged", "declined", "overtaken"])), max_size=12)
places = st.dictionaries(st.sampled_from(FOLDERS), st.sampled_from(("", *TREES)))


@given(happenings, st.lists(places, min_size=1, max_size=12), st.booleans())
def test_a_text_is_asked_about_once_and_ends_once(
    happened: list[Statement | str], looks: list[dict[str, str]], forge: bool
) -> None:
    said: list[Statement] = []
    begun: list[str] = []
    for number, what in enumerate(happened):
        state = desired(looks[number % len(looks)], forge=forge)
        recorded = folded(said)
        if isinstance(what, Statement):
            said.append(what)
        elif alive := [item for item in recorded.proposals.values() if not item.ended]:
            said.append(records.proposal_ended_statement(alive[0], what, "so"))
        due = steps(state, said)
        assert due == steps(state, said)
        assert due == list(lock_steps(state, Observed(recorded=replace(folded(said), slices=None)), NOW))
        new = [step.asking.proposal for step in due if isinstance(step, ProposeLock) and not step.asking.is_recorded]
        assert not new or forge
        for proposal in new:
            assert state.axons["digits"].trees[lock_folder(proposal)] in TREES
        begun += [proposal.evidence for proposal in new]
        # One step at a time for each text, and one for each that is open.
        names = [step.asking.proposal.evidence if isinstance(step, ProposeLock) else step.proposal.evidence for step in due]
        assert len(set(names)) == len(names)
        assert {item.evidence for item in folded(said).proposals.values() if not item.ended} <= set(names)
        said += [records.proposal_statement(proposal) for proposal in new]
        said += [
            records.proposal_ended_statement(step.proposal, step.how, step.reason)
            for step in due
            if isinstance(step, EndProposal)
        ]
        open_paths = [item.path for item in folded(said).proposals.values() if not item.ended]
        assert len(set(open_paths)) == len(open_paths)
    assert len(set(begun)) == len(begun)


def lock_folder(proposal: Proposal) -> str:
    return proposal.path.removesuffix(OWN_LOCK).rstrip("/")


@given(st.sampled_from(FOLDERS), st.sampled_from(TREES), st.sampled_from(TREES))
def test_only_a_lock_of_the_folder_as_it_is_now_is_asked_about(folder: str, then: str, now: str) -> None:
    assert bool(steps(desired({folder: now}), [image(folder, then, TEXTS[0])])) == (then == now)


@given(st.permutations(TEXTS))
def test_of_several_locks_of_one_folder_the_last_recorded_counts(texts: list[str]) -> None:
    said = [image("src", TREES[0], text, axon) for text, axon in zip(texts, ["a", "b", "c"], strict=True)]
    (step,) = steps(desired({"src": TREES[0]}, axons=["a", "b", "c"]), said)
    assert isinstance(step, ProposeLock)
    assert step.asking.proposal.evidence == lock_evidence("src/requirements.lock", digest_of(texts[-1].encode()))
    assert (step.axon, step.asking.proposal.axon) == ("c", "c")


SAID = [image("src", TREES[0], TEXTS[0])]
HERE = desired({"src": TREES[0]})
NOT_ASKED: dict[str, tuple[DesiredState, list[Statement]]] = {
    "there is no forge": (desired({"src": TREES[0]}, forge=False), SAID),
    "the project says no": (desired({"src": TREES[0]}, asks=False), SAID),
    "the axon is gone": (desired({"src": TREES[0]}, axons=["other"]), SAID),
    "its source is another repository's": (HERE, [image("src", TREES[0], TEXTS[0], repo="https://elsewhere.localhost/x")]),
    "its requirements are locked": (HERE, [image("src", TREES[0], "")]),
    "the record is not one of ours": (HERE, [image("src", TREES[0], TEXTS[0], lock=3)]),  # type: ignore[arg-type]
    "the folder lies in a submodule": (
        replace(
            HERE,
            axons={
                "digits": replace(
                    HERE.axons["digits"],
                    submodules={"src": (Submodule(path="src", url="https://x.localhost/y", commit="5" * 40),)},
                )
            },
        ),
        SAID,
    ),
}


@pytest.mark.parametrize("case", NOT_ASKED)
def test_nobody_is_asked_where(case: str) -> None:
    state, said = NOT_ASKED[case]
    assert steps(state, said) == []


def opened() -> tuple[Proposal, list[Statement]]:
    (step,) = steps(HERE, SAID)
    assert isinstance(step, ProposeLock)
    proposal = replace(step.asking.proposal, beside="sha256:0")
    return proposal, [*SAID, records.proposal_statement(proposal)]


OVER: dict[str, tuple[DesiredState, list[Statement], str]] = {
    "another text was resolved": (
        desired({"src": TREES[1]}),
        [image("src", TREES[1], TEXTS[1])],
        "another lock was resolved since then",
    ),
    "the folder is gone": (desired({"src": ""}), [], "nothing is built of src any more"),
    "the forge is gone": (desired({"src": TREES[0]}, forge=False), [], "locks are not proposed any more"),
    "the project says no": (desired({"src": TREES[0]}, asks=False), [], "locks are not proposed any more"),
    "the source is another and its image is not there yet": (desired({"src": TREES[1]}), [], ""),
    "the source is another, and its lock the same": (desired({"src": TREES[1]}), [image("src", TREES[1], TEXTS[0])], ""),
    "the folder is gone from a tip that is not trusted": (replace(desired({"src": ""}), trust_fault="no"), [], ""),
}


@pytest.mark.parametrize("case", OVER)
def test_what_was_proposed_is_over_or_goes_on(case: str) -> None:
    state, more, why = OVER[case]
    proposal, said = opened()
    first, *others = steps(state, [*said, *more])
    if why:
        assert isinstance(first, EndProposal)
        assert (first.proposal, first.how, first.reason) == (proposal, "overtaken", why)
    else:
        assert isinstance(first, ProposeLock)
        assert (first.asking.proposal, first.asking.is_recorded, others) == (proposal, True, [])


def test_it_reads_back_as_it_was_and_keeps_its_image() -> None:
    proposal, said = opened()
    recorded = folded(said)
    assert recorded.proposals == {proposal.evidence: proposal}
    assert recorded.of("digits").locks == recorded.locks != {}
    later = NOW + timedelta(days=400)
    used = in_use(HERE, Observed(recorded=recorded), around=Surroundings(), now=later)
    assert used[proposal.image] == "people are asked about digits/src/requirements.lock"
    ended = folded([*said, records.proposal_ended_statement(proposal, "merged", "so")])
    assert proposal.image not in in_use(HERE, Observed(recorded=ended), around=Surroundings(), now=later)


def test_proposals_of_before_read_as_they_did() -> None:
    body = {
        "taskRun": "t", "run": "r", "proposalKind": "promotion", "version": "v-1", "branch": "b", "evidence": "e",
        "at": NOW.isoformat(),
    }  # fmt: skip
    (read,) = folded([Statement(kind="proposal", key="proposal/t", axon="digits", body=body)]).proposals.values()
    assert read == Proposal(
        task_run="t", run="r", axon="digits", kind="promotion", version="v-1", branch="b", evidence="e", at=NOW
    )
    assert records.proposal_statement(read).body == body
    assert read.subject == "digits/v-1"


@given(files, files, st.sampled_from(FOLDERS), st.sampled_from(TEXTS))
def test_the_branch_answers_by_what_its_folder_says(
    then: dict[str, bytes], now: dict[str, bytes], folder: str, text: str
) -> None:
    evidence = lock_evidence(lock_path(folder), digest_of(text.encode()))
    how, why = lock_fate(evidence, folder, beside(then), now)
    if now.get(OWN_LOCK) == text.encode():
        assert how == "merged"
    else:
        assert how == ("" if then == now else "overtaken")
    assert bool(why) == bool(how)


def test_why_it_is_over_is_said_in_words() -> None:
    evidence = lock_evidence("src/requirements.lock", digest_of(b"a==1\n"))
    loose = {REQUIREMENTS: b"a\n"}
    was = beside(loose)
    assert lock_fate(evidence, "src", was, {REQUIREMENTS: b"b\n"})[1] == "the requirements of src are others now"
    assert lock_fate(evidence, "src", was, {**loose, PYLOCK: b""})[1] == "the requirements of src are locked by pylock.toml now"
    assert lock_fate(evidence, "", was, {})[1] == "the root has no requirements any more"


@given(st.text(max_size=80), st.sampled_from(TEXTS), st.sampled_from(TEXTS))
def test_a_branch_is_named_by_text_and_place_and_is_a_name_that_git_takes(folder: str, one: str, other: str) -> None:
    path = lock_path(folder)
    names = [lock_branch(folder, lock_evidence(path, digest_of(text.encode()))) for text in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    place, _, last = names[0].removeprefix("myelin/lock/").partition("/")
    assert place.replace("-", "").isalnum()
    assert place.isascii()
    assert not place.startswith("-")
    assert (len(place) <= 60, len(last)) == (True, 12)


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=30), max_size=4))
def test_no_text_gets_out_of_what_the_request_shows(folder: str, names: list[str]) -> None:
    text = "".join(f"{name}\n" for name in names)
    body = proposed_lock(folder, Lock(text=text, origin=f"{folder}/x", resolved=True, wheels=()), bounded=["a`@b"]).body
    assert "`a@b`" in body
    for line in body.splitlines():
        if line.startswith("- `"):
            assert line.count("`") == 2


def test_a_long_lock_is_cut_and_says_so() -> None:
    text = "".join(f"a{number}==1\n" for number in range(400))
    body = proposed_lock("src", Lock(text=text, origin="src/requirements.txt", resolved=True, wheels=())).body
    assert "400 packages:" in body
    assert body.endswith("- and 100 more\n")


def test_signers_who_may_not_change_it_are_named() -> None:
    keys = (
        TrustedKey(name="forge", key="ssh-ed25519 A", paths=("versions/",)),
        TrustedKey(name="other", key="ssh-ed25519 B", paths=("src/requirements.lock",)),
        TrustedKey(name="you", key="ssh-ed25519 C"),
    )
    (step,) = steps(replace(HERE, signers=keys), SAID)
    assert isinstance(step, ProposeLock)
    assert step.bounded == ("forge",)


def test_an_axon_that_cannot_be_read_ends_nothing() -> None:
    _, said = opened()
    fault = Fault(file="axons/digits/axon.yaml", line=1, path="spec", reason="Invalid", message="x")
    (step,) = steps(replace(HERE, axons={}, faults=(fault,)), said)
    assert isinstance(step, ProposeLock)


def test_the_image_that_holds_the_text_is_named() -> None:
    (step,) = steps(HERE, SAID)
    assert isinstance(step, ProposeLock)
    assert Digest(step.asking.proposal.image) == SAID[0].body["digest"]
