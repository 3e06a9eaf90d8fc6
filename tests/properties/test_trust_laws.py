from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.terms.revision import CommitFacts, Pin, Signature, TrustedKey
from policies.trust import TrustState, judge
from policies.writeback import is_own
from tests.properties.strategies import NOW

PEOPLE = ("alice", "bob", "carol")
CONTROLLER, BY_OPENPGP = OWN = ("myelin", "myelin by OpenPGP")
"""The controller, by its SSH key and under its certificate."""
FAULTS = ("unsigned", "unreadable", "changed afterwards", "mallory")
SIGNERS_FILE, RELEASE, SOURCE = "myelin.yaml", "releases/digits/web.yaml", "src/app.py"
Tree = Mapping[str, Any]


def key_of(name: str, **limits: Any) -> TrustedKey:
    """Somebody's key, each of another kind."""
    if name in ("bob", BY_OPENPGP):
        return TrustedKey(
            name=name, kind="openpgp", key=f"openpgp {name.upper()}", certificate=f"certificate of {name}", **limits
        )
    if name == "carol":
        return TrustedKey(name=name, kind="sigstore", key=f"{name}@example.org https://issuer.example", **limits)
    return TrustedKey(name=name, key=f"ssh-ed25519 AAAA{name}", **limits)


def signature_of(name: str, at: datetime, *, valid: bool = True) -> Signature:
    if not name:
        return Signature(key="", fingerprint="", valid=valid)
    key = key_of(name)
    return Signature(
        kind=key.kind,
        # An OpenPGP signature is made by a key of the certificate, not always the primary one.
        key="openpgp SUBKEY" if key.certificate else key.key,
        fingerprint=f"SHA256:{name}",
        valid=valid,
        at=None if key.kind == "ssh" else at,
        certificates=(key.certificate,) if key.certificate and valid else (),
    )


def entry(named: str | TrustedKey) -> TrustedKey:
    return named if isinstance(named, TrustedKey) else key_of(named)


def pin_of(*names: str, unsafe: bool = False, since: str = "") -> Pin:
    own, openpgp = map(key_of, OWN)
    people = tuple(map(key_of, names))
    return Pin(signers=people, controller=own, controller_openpgp=openpgp, unsafe_unsigned=unsafe, since=since)


@dataclass(frozen=True)
class History:
    """Commits as they could be in a repository: each with the files that it leaves, and who put which signature on it."""

    facts: list[CommitFacts] = field(default_factory=list)
    trees: dict[str, Tree] = field(default_factory=dict)
    by: dict[str, str] = field(default_factory=dict)

    def add(self, parents: Sequence[str], tree: Tree, by: str, at: datetime = NOW) -> str:
        name = f"{len(self.facts):040x}"
        before = self.trees[parents[0]] if parents else {}
        changed = tuple(sorted(path for path in {*tree, *before} if tree.get(path) != before.get(path)))
        signer = {"unreadable": "", "changed afterwards": "alice"}.get(by, by)
        signature = signature_of(signer, at, valid=by != "changed afterwards")
        facts = CommitFacts(
            commit=name,
            parents=tuple(parents),
            at=at,
            author="alice <alice@localhost>",
            subject="change",
            message="change\n\nMyelin-Run: x\n",
            signature=None if by == "unsigned" else signature,
            changed_paths=changed,
            signers=tuple(map(entry, tree[SIGNERS_FILE])) if SIGNERS_FILE in changed else None,
        )
        self.facts.append(facts)
        self.trees[name], self.by[name] = tree, by
        return name

    def parents(self, commit: str) -> tuple[str, ...]:
        return self.facts[int(commit, 16)].parents

    def reachable(self, *tips: str) -> set[str]:
        found: set[str] = set()
        waiting = [tip for tip in tips if tip]
        while waiting:
            commit = waiting.pop()
            if commit not in found:
                found.add(commit)
                waiting += self.parents(commit)
        return found

    def first_parents(self, tip: str) -> list[str]:
        """The tip's line, oldest first."""
        line = [tip]
        while self.parents(line[0]):
            line.insert(0, self.parents(line[0])[0])
        return line

    def between(self, since: str, until: str) -> list[CommitFacts]:
        wanted = self.reachable(until) - self.reachable(since)
        return [facts for facts in self.facts if facts.commit in wanted]

    def judge(self, pin: Pin, *tips: str) -> list[TrustState]:
        """The state after each of the tips that the branch had, one after the other."""
        states: list[TrustState] = []
        for tip in tips:
            before = states[-1] if states else None
            states.append(judge(pin, self.between(before.head if before and before.head else pin.since, tip), trusted=before))
        return states


LISTS = (("alice", "bob"), ("alice", "bob"), ("alice",), ("bob",), ("alice", "carol"), ("alice", "bob", "carol"))
MERGED = ((SIGNERS_FILE, RELEASE, SOURCE), (), (SIGNERS_FILE,), (RELEASE, SOURCE))
"""Which files a merge takes from its first parent."""


@st.composite
def histories(draw: st.DrawFn, signers: Sequence[str] = (*PEOPLE, *OWN, *FAULTS), most: int = 7) -> History:
    history = History()
    signing = st.sampled_from(["alice"] * len(signers) + list(signers))
    history.add((), {SIGNERS_FILE: draw(st.sampled_from(LISTS)), RELEASE: 0, SOURCE: 0}, draw(signing))
    for number in range(1, draw(st.integers(1, most))):
        last, before = f"{number - 1:040x}", f"{max(number - 2, 0):040x}"
        shapes = [(last,), (before,), (last, before), (before, last), (before, last)]
        parents = draw(st.sampled_from(shapes if number > 1 else shapes[:1]))
        ours, theirs = history.trees[parents[0]], history.trees[parents[-1]]
        taken = draw(st.sampled_from(MERGED)) if len(parents) > 1 else MERGED[0]
        tree = {path: (ours if path in taken else theirs)[path] for path in ours}
        path = draw(st.sampled_from(["", RELEASE, SOURCE, SIGNERS_FILE]))
        if path:
            tree[path] = draw(st.sampled_from(LISTS)) if path == SIGNERS_FILE else number
        history.add(parents, tree, draw(signing))
    return history


pins = st.builds(pin_of, st.just("alice"), st.sampled_from(["bob", "alice"]), unsafe=st.booleans())


def tip_of(history: History) -> str:
    return history.facts[-1].commit


@settings(max_examples=200)
@given(histories(), pins, st.data())
def test_judging_in_pieces_equals_judging_at_once(history: History, pin: Pin, data: st.DataObject) -> None:
    line = history.first_parents(tip_of(history))
    stops = sorted(data.draw(st.sets(st.integers(0, len(line) - 1))))
    *_, pieces = history.judge(pin, *(line[stop] for stop in stops), line[-1])
    (once,) = history.judge(pin, line[-1])
    assert (pieces.head, pieces.signers, pieces.fault, pieces.unsigned) == (once.head, once.signers, once.fault, once.unsigned)
    assert pieces.signer_of == once.signer_of


@settings(max_examples=200)
@given(histories(signers=("unsigned", "mallory")), pins)
def test_looking_again_changes_nothing(history: History, pin: Pin) -> None:
    first, again, once_more = history.judge(pin, *[tip_of(history)] * 3)
    assert (again.head, again.fault, again.unsigned) == (first.head, first.fault, first.unsigned)
    assert dict(again.signer_of) == dict(first.signer_of)
    assert again == once_more


def test_an_unsigned_commit_beside_the_line_is_counted_once_however_often_it_is_looked_at() -> None:
    history = History()
    root = history.add((), {SIGNERS_FILE: ("alice",), RELEASE: 0, SOURCE: 0}, "alice")
    side = history.add([root], {**history.trees[root], SOURCE: 1}, "unsigned")
    main = history.add([root], {**history.trees[root], SOURCE: 2}, "alice")
    merge = history.add([main, side], history.trees[main], "mallory")
    states = history.judge(pin_of("alice", unsafe=True), *[merge] * 3)
    assert [(state.head, state.unsigned) for state in states] == [(main, 1)] * 3


@given(histories(), pins)
def test_nothing_behind_an_untrusted_commit_is_trusted(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    trusted = set(state.signer_of)
    assert all(set(history.parents(commit)) <= trusted for commit in trusted)
    assert history.reachable(state.head) <= trusted


@given(histories(), pins)
def test_the_head_is_the_newest_trusted_commit_of_the_line_and_else_there_is_a_fault(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    trusted = [commit for commit in history.first_parents(tip_of(history)) if commit in state.signer_of]
    assert state.head == (trusted[-1] if trusted else "")
    assert (state.fault == "") == (state.head == tip_of(history))


@settings(max_examples=300)
@given(histories(signers=("bob", "bob", "carol", "mallory")), st.sampled_from([("alice",), ("alice", "bob")]))
def test_a_trusted_commit_is_signed_by_someone_whom_all_of_its_parents_name(history: History, pinned: tuple[str, ...]) -> None:
    (state,) = history.judge(pin_of(*pinned), tip_of(history))
    for commit, name in state.signer_of.items():
        assert history.by[commit] == name
        named = [history.trees[parent][SIGNERS_FILE] for parent in history.parents(commit)] or [pinned]
        assert name in OWN or all(name in people for people in named)


@given(histories(), pins)
def test_a_bad_signature_is_never_trusted_and_a_missing_one_only_where_that_was_pinned(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    found = {history.by[commit] for commit in state.signer_of}
    assert not found & {"unreadable", "changed afterwards", "mallory"}
    assert pin.unsafe_unsigned or ("unsigned" not in found and state.unsigned == 0)
    assert state.unsigned == sum(history.by[commit] == "unsigned" for commit in state.signer_of)


@given(histories(signers=("alice", "bob")))
def test_a_line_that_named_people_signed_is_trusted_to_its_tip(history: History) -> None:
    for commit, tree in history.trees.items():
        history.trees[commit] = {**tree, SIGNERS_FILE: ("alice", "bob")}
    same = History()
    for facts in history.facts:
        same.add(facts.parents, history.trees[facts.commit], history.by[facts.commit])
    (state,) = same.judge(pin_of("alice", "bob"), tip_of(same))
    assert state.head == tip_of(same)
    assert state.fault == ""
    assert [key.name for key in state.signers] == ["alice", "bob"]


@given(histories(), st.sampled_from([("alice",), ("alice", "bob")]))
def test_who_may_sign_next_is_whom_the_head_names(history: History, pinned: tuple[str, ...]) -> None:
    (state,) = history.judge(pin_of(*pinned), tip_of(history))
    named = history.trees[state.head][SIGNERS_FILE] if state.head else pinned
    assert tuple(key.name for key in state.signers) == named or history.by[state.head] in OWN


@given(histories(most=5), st.sampled_from(FAULTS))
def test_a_faulty_tip_leaves_the_head_where_it_was_and_is_named(history: History, fault: str) -> None:
    before = tip_of(history)
    tip = history.add([before], {**history.trees[before], SOURCE: "new"}, fault)
    first, then = history.judge(pin_of("alice", "bob"), before, tip)
    assert then.head == first.head
    assert then.signers == first.signers
    assert then.fault
    assert first.fault or tip[:6] in then.fault


def touched(history: History, commit: str) -> set[str]:
    """Paths that are other than in one of the parents: a controller has no reason to merge, so it need not be able to."""
    tree = history.trees[commit]
    parents = [history.trees[parent] for parent in history.parents(commit)] or [{}]
    return {path for path in tree for before in parents if before.get(path) != tree[path]}


@settings(max_examples=200)
@given(histories(signers=("bob", *OWN)), pins)
def test_the_controllers_key_has_power_over_the_write_back_paths_only(history: History, pin: Pin) -> None:
    (state,) = history.judge(pin, tip_of(history))
    ours = [commit for commit in state.signer_of if history.by[commit] in OWN]
    assert {path for commit in ours for path in touched(history, commit)} <= {RELEASE}


@given(st.lists(st.sampled_from(OWN), min_size=1, max_size=6), st.sampled_from([(), *((own,) for own in OWN)]))
def test_commits_by_any_pinned_key_of_the_controllers_are_its_own_and_by_others_nobodys(
    by: list[str], left: tuple[str, ...]
) -> None:
    """Whoever changes from SSH to OpenPGP, or back, keeps the history; a key that is not pinned any more has no power."""
    history = History()
    at = history.add((), {SIGNERS_FILE: ("alice",), RELEASE: 0, SOURCE: 0}, "alice")
    for number, who in enumerate(by, 1):
        at = history.add([at], {**history.trees[at], RELEASE: number}, who)
    gone = {"controller" if who == CONTROLLER else "controller_openpgp": None for who in left}
    pin = replace(pin_of("alice"), **gone)
    (state,) = history.judge(pin, at)
    assert (state.head == at) == (state.fault == "") == (not set(by) & set(left))
    assert [is_own(facts, pin.own) for facts in history.facts[1:]] == [who not in left for who in by]


@given(st.sampled_from(OWN), st.sampled_from(["", "another export"]))
def test_a_key_of_the_controllers_that_the_list_revokes_signs_nothing_more(who: str, certificate: str) -> None:
    history = History()
    root = history.add((), {SIGNERS_FILE: ("alice",), RELEASE: 0, SOURCE: 0}, "alice")
    before = history.add([root], {**history.trees[root], RELEASE: 1}, who)
    own = key_of(who, revoked="lost")
    listed = replace(own, certificate=certificate) if own.certificate and certificate else own
    revoked = history.add([before], {**history.trees[before], SIGNERS_FILE: ("alice", listed)}, "alice")
    late = history.add([revoked], {**history.trees[revoked], RELEASE: 2}, who)
    (state,) = history.judge(pin_of("alice"), late)
    assert state.head == revoked
    assert "whose key was revoked" in state.fault


def test_the_controllers_key_cannot_take_the_branch_back_by_a_merge() -> None:
    history = History()
    old = history.add((), {SIGNERS_FILE: ("alice", "bob"), RELEASE: 0, SOURCE: 0}, "alice")
    new = history.add([old], {SIGNERS_FILE: ("alice",), RELEASE: 0, SOURCE: 1}, "alice")
    merge = history.add([old, new], history.trees[old], CONTROLLER)
    *_, state = history.judge(pin_of("alice", "bob"), new, merge)
    assert state.head == new
    assert [key.name for key in state.signers] == ["alice"]


@settings(max_examples=300)
@given(histories(signers=("unsigned", "unsigned", "alice"), most=4))
def test_a_signer_comes_back_by_a_signed_commit_only(history: History) -> None:
    (state,) = history.judge(pin_of("alice", "bob", unsafe=True), tip_of(history))
    for commit in state.signer_of:
        if history.by[commit] == "unsigned" and history.parents(commit):
            after = {key.name for key in state.standing[commit].signers}
            assert all(after <= {key.name for key in state.standing[parent].signers} for parent in history.parents(commit))


def test_an_unsigned_merge_of_an_old_line_does_not_bring_a_signer_back() -> None:
    history = History()
    old = history.add((), {SIGNERS_FILE: ("alice", "bob"), RELEASE: 0, SOURCE: 0}, "alice")
    new = history.add([old], {SIGNERS_FILE: ("alice",), RELEASE: 0, SOURCE: 1}, "alice")
    merge = history.add([old, new], history.trees[old], "unsigned")
    *_, state = history.judge(pin_of("alice", "bob", unsafe=True), new, merge)
    assert [key.name for key in state.signers] == ["alice"]


@given(st.lists(st.sampled_from(["alice", "bob", *OWN]), max_size=5), st.booleans())
def test_a_signer_who_was_taken_out_stays_out(later: list[str], merges: bool) -> None:
    history = History()
    tree = {SIGNERS_FILE: ("alice", "bob"), RELEASE: 0, SOURCE: 0}
    at = history.add((), tree, "alice")
    side = history.add([at], {**tree, SOURCE: "bob's"}, "bob")
    at = history.add([at], {**tree, SIGNERS_FILE: ("alice",)}, "alice")
    bobs = None
    for number, who in enumerate(later):
        parents = [at, side] if merges and number == 1 and who not in OWN else [at]
        at = history.add(parents, {**history.trees[at], RELEASE: number + 1}, who)
        bobs = bobs or (at if who == "bob" else None)
    (state,) = history.judge(pin_of("alice", "bob"), at)
    assert state.head == (history.parents(bobs)[0] if bobs else at)
    assert [key.name for key in state.signers] == ["alice"]


def test_a_signer_who_was_taken_out_cannot_merge_the_own_old_line() -> None:
    history = History()
    old = history.add((), {SIGNERS_FILE: ("alice", "bob"), RELEASE: 0, SOURCE: 0}, "alice")
    new = history.add([old], {SIGNERS_FILE: ("alice",), RELEASE: 0, SOURCE: 1}, "alice")
    for parents in ([old, new], [new, old]):
        merge = history.add(parents, history.trees[parents[0]], "bob")
        *_, state = history.judge(pin_of("alice", "bob"), new, merge)
        assert state.head == new
        assert state.fault


@settings(max_examples=200)
@given(histories(), pins, st.data())
def test_the_head_only_ever_moves_to_descendants(history: History, pin: Pin, data: st.DataObject) -> None:
    everything = [facts.commit for facts in history.facts]
    tips = data.draw(st.lists(st.sampled_from(everything), min_size=1, max_size=5))
    heads = [state.head for state in history.judge(pin, *tips)]
    for before, after in pairwise(heads):
        assert not before or before in history.reachable(after)


@given(histories(signers=("bob", "alice")), st.data())
def test_a_rewritten_branch_is_refused_and_says_so(history: History, data: st.DataObject) -> None:
    tip = tip_of(history)
    line = history.first_parents(tip)
    fork = data.draw(st.sampled_from(line[:-1] or line))
    other = history.add([fork], {**history.trees[fork], SOURCE: "other"}, "alice")
    first, then = history.judge(pin_of("alice", "bob"), tip, other)
    if first.head not in history.reachable(other):
        assert then.head == first.head
        assert then.fault


@given(histories(), st.booleans())
def test_nobody_pinned_trusts_nothing(history: History, unsafe: bool) -> None:
    (state,) = history.judge(pin_of(unsafe=unsafe), tip_of(history))
    assert {history.by[commit] for commit in state.signer_of} <= ({"unsigned", *OWN} if unsafe else set())


@given(histories(signers=PEOPLE), st.data())
def test_what_is_before_the_pin_is_not_looked_at(history: History, data: st.DataObject) -> None:
    line = history.first_parents(tip_of(history))
    since = data.draw(st.sampled_from(line))
    pin = pin_of(*PEOPLE, since=since)
    found = judge(pin, history.between(since, line[-1]), trusted=None)
    assert since in history.reachable(found.head)
    assert set(found.signer_of) <= history.reachable(line[-1]) - history.reachable(since)
