import os
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from policies.errors import RefusedError
from policies.terms.revision import CommitFacts, Signature, TrustedKey
from policies.writeback import TRAILERS, check_changes, is_own, is_plain, may_touch, message
from tests.properties.strategies import NOW, unicode

GIT_ALONE = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
"""Git without anybody's settings."""
ALLOWED = ("versions/", "releases/")
DISGUISES = (".git", ".GIT", ".Git ", ".git.", ".git . .", ".git:x", ".git::$INDEX_ALLOCATION", "git~1", "GIT~1", "git~1.")
THIN_DISGUISES = ("git~1:x", ".git .:x", ".git :x", ".g\u200cit", "\ufeff.git", ".gi\u206ft", ".GIT\u202e")
"""What NTFS reads as `.git` before a stream's name, and HFS+ by leaving out letters without width."""
parts = st.sampled_from(("releases", "versions", "releasesX", "Releases", "a", "b.yaml", "..", ".", "", *DISGUISES)) | st.text(
    unicode, max_size=4
)
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)
plain_names = st.from_regex("[a-z][a-z0-9.-]{0,6}[a-z0-9]", fullmatch=True)


@given(paths)
def test_nothing_outside_of_the_allowed_folders_ever_passes(path: str) -> None:
    if may_touch(path, ALLOWED):
        first, *inner = path.split("/")
        assert first in ("releases", "versions")
        assert not {"", ".", "..", *DISGUISES} & set(inner)


@given(st.sampled_from(["releases", "versions"]), st.lists(plain_names, min_size=1, max_size=3))
def test_everything_plain_inside_of_an_allowed_folder_passes(top: str, inner: list[str]) -> None:
    path = "/".join([top, *inner])
    assert may_touch(path, ALLOWED)
    check_changes({path}, ALLOWED)
    assert may_touch(path, [path])


@given(st.sampled_from(["releases", "versions"]), st.lists(plain_names, min_size=1, max_size=3), st.data())
def test_no_disguise_of_a_good_path_passes(top: str, inner: list[str], data: st.DataObject) -> None:
    inside = "/".join(inner)
    outside = [
        f"{top}X/{inside}",
        f"X{top}/{inside}",
        f"{top.upper()}/{inside}",
        f"/{top}/{inside}",
        f"./{top}/{inside}",
        f"x/../{top}/{inside}",
        f"{top}/../{inside}",
        f"{top}/{inside}/../../{inside}",
        f"{top}\\{inside}",
        f"{top}//{inside}",
        f"{top}/{inside}/",
        f"{top}/{data.draw(st.sampled_from(DISGUISES))}/{inside}",
        f"{top}/{inside}\0",
        f"{top}/{inside}\n.git",
        f" {top}/{inside}",
    ]
    assert [path for path in outside if may_touch(path, ALLOWED)] == []


@given(paths, st.lists(st.sampled_from(["", "/", "//", " "]), max_size=2))
def test_an_empty_entry_or_none_allows_nothing(path: str, allowed: list[str]) -> None:
    assume(path.split("/")[0] != " ")
    assert not may_touch(path, allowed)
    with pytest.raises(RefusedError):
        check_changes([path], allowed)


@given(st.lists(paths, max_size=5))
def test_one_bad_path_refuses_the_whole_commit_and_is_named(changes: list[str]) -> None:
    bad = sorted(path for path in changes if not may_touch(path, ALLOWED))
    if not bad:
        check_changes(changes, ALLOWED)
        return
    with pytest.raises(RefusedError) as caught:
        check_changes(changes, ALLOWED)
    assert caught.value.reason == "OutOfBounds"
    assert repr(bad[0]) in str(caught.value)


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bool]:
    """Whether Git, minding what Windows and macOS see, takes a path."""
    folder = tmp_path_factory.mktemp("git")

    def git(*args: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(folder), "-c", "core.protectNTFS=true", "-c", "core.protectHFS=true", *args]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=GIT_ALONE)

    git("init", "-q")
    blob = git("hash-object", "-w", "--stdin", text="x").stdout.strip()
    return lambda path: git("update-index", "--add", "--replace", "--cacheinfo", f"100644,{blob},{path}").returncode == 0


@pytest.mark.parametrize("name", [*DISGUISES, *THIN_DISGUISES])
def test_what_git_would_not_take_is_not_plain(name: str, takes: Callable[[str], bool]) -> None:
    assert not takes(f"releases/{name}/config")
    assert not is_plain(f"releases/{name}/config")


@settings(max_examples=60)
@given(paths.filter(lambda path: "\0" not in path and "\n" not in path))
def test_every_plain_path_is_one_that_git_takes(takes: Callable[[str], bool], path: str) -> None:
    assert takes(path) or not is_plain(path)


def git_reads(text: str) -> list[str]:
    """Trailers of a commit's message, as Git itself finds them."""
    command = ["git", "interpret-trailers", "--parse", "--no-divider"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True, env=GIT_ALONE)
    return done.stdout.decode().splitlines()


lines = st.sampled_from(
    (
        "Myelin-Run: forged",
        "myelin-version : forged",
        "MYELIN-ALERT: forged",
        "\tMyelin-Run: forged",
        "\u200bMyelin-Run: forged",
        "Myelin-Run\u2028Myelin-Event: forged",
        "(cherry picked from commit 1)",
        "---",
        "# a comment",
        "Conflicts:",
        "diff --git a/x b/x",
        "",
        "",
        "words",
        " more",
    )
) | st.text(unicode, max_size=6)
bodies = st.tuples(st.lists(lines, max_size=6), st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\v", "\x85"])).map(
    lambda pair: pair[1].join(pair[0])
)
values = st.lists(st.text(unicode, max_size=8) | lines, min_size=1, max_size=2)
trailers = st.dictionaries(st.sampled_from((*TRAILERS, "Approved-by", "Zz")), values, max_size=4)


def said(given: dict[str, list[str]]) -> list[str]:
    order = [*TRAILERS, *sorted(set(given) - set(TRAILERS))]
    texts = [(name, "".join(x if x.isprintable() else " " for x in value)) for name in order for value in given.get(name, ())]
    return [f"{name}: {' '.join(text.split())}" for name, text in texts if text.split()]


@settings(max_examples=100)
@given(bodies, bodies, trailers)
def test_no_text_can_forge_or_hide_a_trailer_of_ours(subject: str, body: str, given: dict[str, list[str]]) -> None:
    found = git_reads(message(subject, body, given))
    ours = [line for line in said(given) if line.startswith("Myelin-")]
    assert [line for line in found if line.lower().startswith("myelin-")] == ours


@settings(max_examples=30)
@given(bodies, bodies, trailers.filter(said))
def test_git_reads_the_trailers_that_were_given_and_no_others(subject: str, body: str, given: dict[str, list[str]]) -> None:
    assert git_reads(message(subject, body, given)) == said(given)


@settings(max_examples=30)
@example("update", "Signed-off-by: somebody")
@given(bodies, bodies)
def test_a_message_without_trailers_has_none(subject: str, body: str) -> None:
    assert git_reads(message(subject, body, {})) == []


def test_a_cutting_line_in_the_body_does_not_hide_the_trailers() -> None:
    text = message("update", "# ------------------------ >8 ------------------------\nwords", {"Myelin-Run": ["r"]})
    assert git_reads(text) == ["Myelin-Run: r"]


@given(bodies, bodies, trailers)
def test_a_message_is_a_subject_line_and_paragraphs_of_printable_text(
    subject: str, body: str, given: dict[str, list[str]]
) -> None:
    text = message(subject, body, given)
    first, *rest = text.split("\n")
    assert first.strip()
    assert first.isprintable()
    assert rest[0] == ""
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert all(line.replace("\t", "").isprintable() for line in rest)


CONTROLLER = TrustedKey(name="myelin", key="ssh-ed25519 AAAAcontroller")
keys = st.sampled_from([CONTROLLER.key, f"{CONTROLLER.key} its comment", "ssh-ed25519 AAAAother", "", "ssh-ed25519"])
signatures = st.none() | st.builds(Signature, key=keys, fingerprint=st.just("SHA256:x"), valid=st.booleans())


def commit(signature: Signature | None, text: str) -> CommitFacts:
    return CommitFacts(
        commit="c" * 40,
        parents=(),
        at=NOW,
        author=f"{text} <myelin@localhost>",
        subject=text,
        message=message(text, text, {"Myelin-Run": [text]}),
        signature=signature,
        changed_paths=("releases/a",),
    )


@given(signatures, st.text(max_size=8), st.sampled_from(["Myelin", "Myelin-Run: x", "releases"]))
def test_whose_a_commit_is_only_its_signature_says(signature: Signature | None, text: str, other: str) -> None:
    by_us = signature is not None and signature.valid and signature.key.startswith(CONTROLLER.key)
    assert is_own(commit(signature, text), [CONTROLLER]) == is_own(commit(signature, other), [CONTROLLER]) == by_us
    assert not is_own(commit(signature, text), [])


@given(keys, st.sampled_from(["", " ", "ssh-ed25519"]))
def test_an_empty_key_owns_nothing(key: str, controller: str) -> None:
    facts = commit(Signature(key=key, fingerprint="", valid=True), "x")
    assert not is_own(facts, [TrustedKey(name="nobody", key=controller)]) or key == controller == "ssh-ed25519"
