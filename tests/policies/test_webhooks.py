"""Webhooks, without a server: what proves them, what they tell, and which of them deserve a look."""

import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import Fault
from policies.hooks import (
    KINDS,
    TOLERANCE_SECONDS,
    Reads,
    delivery_of,
    has_proof,
    hook_text,
    is_genuine,
    judge,
    provider_of,
    read_hook,
    reads_of,
)
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.project import Metadata, Project, ProjectSpec
from policies.terms.revision import Revision
from policies.terms.secret import NO_SECRET, Secret
from policies.terms.source import Submodule
from tests.fakes.hooks import EVENT, NOTES, SOURCE, commit, proof, push

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
SECRET = Secret(hook_text(b"0123456789abcdef0123456789abcdef"))
OTHER = Secret(hook_text(b"another, another, another, one.."))
READS = Reads(tops=("axons/digits/training", "releases", "versions"))
bodies = st.binary(max_size=200)
kinds = st.sampled_from([*KINDS, "gitlab signed", "gitea by another name"])


@given(kind=kinds, body=bodies)
def test_who_knows_the_secret_is_genuine(kind: str, body: bytes) -> None:
    headers = proof(kind, SECRET, body, at=NOW)
    assert has_proof(kind.split()[0], headers, now=NOW)
    assert is_genuine(kind.split()[0], headers, body, SECRET, now=NOW)


@given(kind=kinds, body=bodies)
def test_who_knows_another_secret_is_not(kind: str, body: bytes) -> None:
    assert not is_genuine(kind.split()[0], proof(kind, OTHER, body, at=NOW), body, SECRET, now=NOW)


@given(kind=kinds.filter(lambda kind: kind != "gitlab"), body=bodies, other=bodies)
def test_a_signature_is_of_these_bytes_and_no_others(kind: str, body: bytes, other: bytes) -> None:
    assert is_genuine(kind.split()[0], proof(kind, SECRET, body, at=NOW), other, SECRET, now=NOW) == (body == other)


@given(kind=st.sampled_from(KINDS), body=bodies, headers=st.dictionaries(st.text(max_size=20), st.text(max_size=80), max_size=4))
def test_what_is_no_proof_is_none_whatever_it_looks_like(kind: str, body: bytes, headers: dict[str, str]) -> None:
    names = ("x-hub-signature-256", "x-gitlab-token", "x-gitea-signature", "x-hub-signature", "x-myelin-signature")
    given_names = dict(zip((*names, "webhook-signature"), headers.values(), strict=False))
    both = {"webhook-id": "1", "webhook-timestamp": str(int(NOW.timestamp())), **headers, **given_names}
    assert not is_genuine(kind, both, body, SECRET, now=NOW)


@given(kind=kinds, body=bodies)
def test_an_empty_secret_is_known_by_nobody(kind: str, body: bytes) -> None:
    assert not is_genuine(kind.split()[0], proof(kind, NO_SECRET, body, at=NOW), body, NO_SECRET, now=NOW)


@given(kind=st.sampled_from(["generic", "gitlab signed"]), seconds=st.integers(-10_000, 10_000))
def test_a_signed_instant_that_is_not_near_proves_nothing(kind: str, seconds: int) -> None:
    headers = proof(kind, SECRET, b"{}", at=NOW + timedelta(seconds=seconds))
    is_near = abs(seconds) <= TOLERANCE_SECONDS
    assert has_proof(kind.split()[0], headers, now=NOW) == is_near
    assert is_genuine(kind.split()[0], headers, b"{}", SECRET, now=NOW) == is_near


def test_a_gitlab_that_signs_with_a_token_of_its_own_may_still_show_ours() -> None:
    headers = proof("gitlab signed", OTHER, b"{}", at=NOW)
    assert not is_genuine("gitlab", headers, b"{}", SECRET, now=NOW)
    assert is_genuine("gitlab", headers | proof("gitlab", SECRET, b"{}", at=NOW), b"{}", SECRET, now=NOW)


def test_githubs_older_signature_is_not_taken() -> None:
    old = {"x-hub-signature": "sha1=" + hmac.new(SECRET.reveal().encode(), b"{}", hashlib.sha1).hexdigest()}
    assert not has_proof("github", old, now=NOW)
    assert not has_proof("bitbucket", old, now=NOW)


def test_forgejo_is_a_gitea_and_nothing_else_is_known() -> None:
    assert [provider_of(word) for word in ("github", "forgejo", "svn", "", "GitHub")] == ["github", "gitea", "", "", ""]


@pytest.mark.parametrize(
    ("kind", "headers", "name"),
    [
        ("github", {"x-github-delivery": "a"}, "a"),
        ("gitea", {"x-gitea-delivery": "b", "x-github-delivery": "c"}, "b"),
        ("gitlab", {"x-gitlab-event-uuid": "d"}, "d"),
        ("gitlab", {"webhook-id": "e"}, "e"),
        ("bitbucket", {"x-request-uuid": "f"}, "f"),
        ("bitbucket", {"x-request-id": "g"}, "g"),
        ("generic", {"x-myelin-signature": "t=1,v1=h"}, "t=1,v1=h"),
        ("github", {}, ""),
    ],
)
def test_a_delivery_has_the_name_that_its_forge_gave_it(kind: str, headers: dict[str, str], name: str) -> None:
    assert delivery_of(kind, headers) == name


HEARD: dict[str, tuple[str, str, Any, bool]] = {
    "a push that changes a source folder wakes": ("github", "push", push(NOTES, SOURCE), True),
    "a push that changes nothing that is read does not": ("github", "push", push(NOTES), False),
    "a push that adds a manifest wakes": ("github", "push", push(commit(1, added=("new/axon.yaml",))), True),
    "a push that removes a release wakes": ("github", "push", push(commit(1, removed=("releases/a/b.yaml",))), True),
    "a folder whose name only begins like one that is read does not": (
        *("github", "push"),
        *(push(commit(1, modified=("axons/digits/training-old/x.py", "releases.txt"))), False),
    ),
    "a push to another branch does not": ("github", "push", push(SOURCE, ref="refs/heads/dev"), False),
    "a branch with slashes is another branch": ("github", "push", push(SOURCE, ref="refs/heads/a/main"), False),
    "a tag does not": ("github", "push", push(SOURCE, ref="refs/tags/main"), False),
    "a push of as many commits as are listed may have more": ("github", "push", push(*[NOTES] * 20), True),
    "a push of fewer says all": ("github", "push", push(*[NOTES] * 19), False),
    "a commit with very many paths may have more": (
        *("github", "push"),
        *(push(commit(1, added=tuple(f"n{number}.txt" for number in range(1000)))), True),
    ),
    "a forced push may undo what it does not list": ("github", "push", push(NOTES, forced=True), True),
    "a new branch has more than its new commits": ("github", "push", push(NOTES, created=True), True),
    "a branch that was not there before as well": ("gitlab", "Push Hook", push(NOTES) | {"before": "0" * 40}, True),
    "a push without commits may be a reset": ("github", "push", push(), True),
    "a push whose tip is not among its commits": ("github", "push", push(NOTES) | {"after": "c" * 40}, True),
    "a merge whose changes are not listed": ("github", "push", push(commit(1), NOTES), True),
    "commits that list nothing": ("github", "push", push({"id": "b" * 40}), True),
    "commits that are no objects": ("github", "push", push() | {"commits": ["x"]}, True),
    "paths that are no texts": ("github", "push", push(commit(1, modified=(5,))), True),  # type: ignore[arg-type]
    "lists that are no lists": ("github", "push", push({**NOTES, "added": "abc"}), True),
    "a push that says nothing": ("github", "push", {}, True),
    "a ping": ("github", "ping", {"zen": "…"}, False),
    "a star": ("github", "star", {"action": "created"}, False),
    "an event without a name": ("github", "", {}, False),
    "a pull request": ("github", "pull_request", {"pull_request": {"base": {"ref": "main"}}}, True),
    "a pull request of another branch": ("github", "pull_request", {"pull_request": {"base": {"ref": "dev"}}}, False),
    "a review": ("github", "pull_request_review", {"pull_request": {"base": {"ref": "main"}}}, True),
    "a comment": ("github", "issue_comment", {"issue": {}}, True),
    "GitLab: all commits are there": ("gitlab", "Push Hook", push(NOTES, object_kind="push", total_commits_count=1), False),
    "GitLab: more than are listed": ("gitlab", "Push Hook", push(NOTES, object_kind="push", total_commits_count=21), True),
    "GitLab: a tag": ("gitlab", "Tag Push Hook", {"object_kind": "tag_push", "ref": "refs/tags/v1"}, False),
    "GitLab: a system hook": ("gitlab", "System Hook", push(NOTES, event_name="push", total_commits_count=1), False),
    "GitLab: a merge request": (
        *("gitlab", "Merge Request Hook"),
        *({"object_kind": "merge_request", "object_attributes": {"target_branch": "main"}}, True),
    ),
    "GitLab: one of another branch": (
        *("gitlab", "Merge Request Hook"),
        *({"object_kind": "merge_request", "object_attributes": {"target_branch": "dev"}}, False),
    ),
    "GitLab: a note": ("gitlab", "Note Hook", {"object_kind": "note", "merge_request": {"target_branch": "main"}}, True),
    "Gitea: all commits are there": ("gitea", "push", push(NOTES, total_commits=1), False),
    "Gitea: more than are listed": ("gitea", "push", push(NOTES, total_commits=6), True),
    "Gitea: an approval": ("gitea", "pull_request_approved", {"pull_request": {"base": {"ref": "main"}}}, True),
    "Bitbucket: the branch": (
        *("bitbucket", "repo:push"),
        *({"push": {"changes": [{"new": {"type": "branch", "name": "main"}}]}}, True),
    ),
    "Bitbucket: other branches and tags": (
        *("bitbucket", "repo:push"),
        *({"push": {"changes": [{"new": {"type": "branch", "name": "x"}}, {"new": {"type": "tag", "name": "main"}}]}}, False),
    ),
    "Bitbucket: the branch is deleted": (
        *("bitbucket", "repo:push"),
        *({"push": {"changes": [{"new": None, "old": {"type": "branch", "name": "main"}}]}}, True),
    ),
    "Bitbucket: nothing that we understand": ("bitbucket", "repo:push", {"push": {"changes": [5]}}, True),
    "Bitbucket in a data centre": (
        *("bitbucket", "repo:refs_changed"),
        *({"changes": [{"ref": {"id": "refs/heads/main", "displayId": "main", "type": "BRANCH"}}]}, True),
    ),
    "Bitbucket in a data centre: another branch": (
        *("bitbucket", "repo:refs_changed"),
        *({"changes": [{"ref": {"id": "refs/heads/dev", "displayId": "dev", "type": "BRANCH"}}]}, False),
    ),
    "Bitbucket in a data centre: a test": ("bitbucket", "diagnostics:ping", {"test": True}, False),
    "Bitbucket: a pull request": (
        *("bitbucket", "pullrequest:approved"),
        *({"pullrequest": {"destination": {"branch": {"name": "dev"}}}}, False),
    ),
    "Bitbucket in a data centre: a pull request": (
        *("bitbucket", "pr:reviewer:approved"),
        *({"pullRequest": {"toRef": {"displayId": "main"}}}, True),
    ),
    "anything else: nothing said": ("generic", "", {}, True),
    "anything else: another branch": ("generic", "", {"branch": "dev"}, False),
    "anything else: paths": ("generic", "", {"branch": "main", "paths": ["notes.txt"]}, False),
    "anything else: no path at all was changed": ("generic", "", {"paths": []}, False),
    "anything else: a review": ("generic", "review", {"paths": ["notes.txt"]}, True),
    "anything else: a ping": ("generic", "ping", {}, False),
}


@pytest.mark.parametrize("sentence", HEARD)
def test_what_a_webhook_comes_to(sentence: str) -> None:
    kind, event, value, woke = HEARD[sentence]
    hook = read_hook(kind, {EVENT[kind]: event}, json.dumps(value).encode())
    heard = judge(hook, branch="main", reads=READS)
    assert (heard.woke, bool(heard.why)) == (woke, True), heard


@pytest.mark.parametrize("sentence", HEARD)
def test_while_it_is_not_known_what_is_read_no_path_is_passed_over(sentence: str) -> None:
    kind, event, value, woke = HEARD[sentence]
    hook = read_hook(kind, {EVENT[kind]: event}, json.dumps(value).encode())
    is_about_paths = hook.what == "push" and hook.branches in (None, ("main",))
    assert judge(hook, branch="main", reads=None).woke == (woke or is_about_paths)


def test_a_form_is_read_as_its_payload() -> None:
    body = f"payload={quote(json.dumps(push(SOURCE, ref='refs/heads/dev')))}".encode()
    hook = read_hook("github", {"content-type": "application/x-www-form-urlencoded", "x-github-event": "push"}, body)
    assert hook.branches == ("dev",)


@pytest.mark.parametrize("body", [b"[]", b"5", b"{", b"\xff", b'{"branch": 5}', b'{"paths": "notes.txt"}'])
def test_what_is_no_webhook_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_hook("generic", {}, body)


paths = st.lists(st.text("abc/.", min_size=1, max_size=8), min_size=1, max_size=3)


@given(changed=paths, tops=st.lists(st.text("abc/", max_size=4).map(lambda text: text.strip("/")), max_size=3))
def test_a_push_is_passed_over_only_where_nothing_of_it_is_read(changed: list[str], tops: list[str]) -> None:
    reads = Reads(tops=tuple(tops))
    hook = read_hook("github", {"x-github-event": "push"}, json.dumps(push(commit(1, modified=tuple(changed)))).encode())
    under = [path for path in changed for top in tops if (path + "/").startswith(f"{top}/" if top else "")]
    assert judge(hook, branch="main", reads=reads).woke == bool(under)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "ref",
                    "before",
                    "after",
                    "commits",
                    "push",
                    "changes",
                    "new",
                    "type",
                    "id",
                    "added",
                    "removed",
                    "modified",
                    "object_kind",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(kind=st.sampled_from(KINDS), event=st.sampled_from(["push", "repo:push", "pull_request", "note", "x"]), value=json_values)
def test_whatever_a_sender_with_the_secret_says_it_is_read_or_refused(kind: str, event: str, value: Any) -> None:
    try:
        hook = read_hook(kind, {EVENT[kind]: event}, json.dumps(value).encode())
    except ValueError:
        return
    assert judge(hook, branch="main", reads=READS).why


def desired(*, faults: tuple[Fault, ...] = (), trust_fault: str = "", paths: tuple[str, ...] = ()) -> DesiredState:
    document = Axon.model_validate({"apiVersion": "myelin.io/v1alpha1", "kind": "Axon", "metadata": {"name": "a"}, "spec": {}})
    axon = DesiredAxon(name="a", file="a/axon.yaml", document=document, digest="", trees={"src/one": "", "src/two": ""})
    return DesiredState(
        revision=Revision(branch="main", commit="c" * 40, at=NOW),
        tip="c" * 40,
        project=Project(metadata=Metadata(name="p"), spec=ProjectSpec(paths=paths)),
        axons={"a": axon},
        faults=faults,
        trust_fault=trust_fault,
    )


def test_a_project_reads_manifests_source_folders_and_what_it_keeps() -> None:
    reads = reads_of(desired(paths=("./", "/axons/")))
    assert reads is not None
    read = ("myelin.yaml", "x/y.yml", "src/one/a", "src/two", "releases/a/b", "versions/c", "axons/deep/file", ".gitattributes")
    assert [path for path in (*read, "src/three", "README.md", "src") if not reads.has(path)] == ["src/three", "README.md", "src"]


def test_a_submodule_that_a_folder_lies_in_is_read_and_where_it_comes_from() -> None:
    found = desired()
    held = {"src/lib/deep": (Submodule(path="src/lib", url="https://git.test/lib", commit="1" * 40),)}
    axon = replace(found.axons["a"], trees={"src/lib/deep": "1" * 40}, submodules=held)
    reads = reads_of(replace(found, axons={"a": axon}))
    assert reads is not None
    assert [path for path in ("src/lib", ".gitmodules", "src/other") if reads.has(path)] == ["src/lib", ".gitmodules"]


def test_an_axon_built_from_the_root_reads_everything() -> None:
    assert Reads(tops=("", "versions")).has("any/where.txt")


def test_while_something_is_wrong_any_commit_may_mend_it() -> None:
    fault = Fault(file="a", line=1, path="", reason="X", message="m")
    assert reads_of(None) is None
    assert reads_of(desired(faults=(fault,))) is None
    assert reads_of(desired(trust_fault="main@sha1:…: not signed")) is None
