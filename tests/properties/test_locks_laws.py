"""Laws of locks: what their lines mean, which file counts, and what is proposed."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st
from pip._internal.req.req_file import ignore_comments, join_lines

from controller.adapters.build.requirements import taken_out, wanted_of
from controller.adapters.build.standards import platforms_of, rank_of, ranks_of
from policies.lock_files import proposed_lock
from policies.locks import (
    OURS,
    OWN_LOCK,
    PRECEDENCE,
    Lock,
    Target,
    Wanted,
    chosen,
    lines_of,
    merged,
    name_in,
    plain_name,
)
from policies.terms.digest import digest_of

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,6}([._-][a-z0-9]{1,4})?", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}(\.[0-9])?", fullmatch=True)
DIGESTS = st.integers(0, 999).map(lambda number: digest_of(str(number).encode()))
RELEASES = st.dictionaries(NAMES.map(plain_name), st.tuples(VERSIONS, st.sets(DIGESTS, min_size=1, max_size=3)), max_size=8)
TARGETS = st.builds(
    Target,
    python=st.sampled_from(["3.9", "3.11", "3.13"]),
    platform=st.sampled_from(["linux/amd64", "linux/arm64"]),
    glibc=st.integers(17, 45),
    is_musl=st.booleans(),
)
AMD = Target(python="3.11", platform="linux/amd64")
LINES = st.lists(
    st.sampled_from(
        ["a==1", "a==1 \\", "  --hash=sha256:x", "  --hash=sha256:y \\", "# note", "  # note \\", "", "-r b.txt", "b # c"]
    )
)


def lock_text(releases: dict[str, tuple[str, set[str]]]) -> str:
    return "".join(
        f"{name}=={version}" + "".join(f" \\\n    --hash={item}" for item in sorted(found)) + "\n"
        for name, (version, found) in releases.items()
    )


@given(LINES)
def test_lines_are_joined_and_cut_as_pip_does(lines: list[str]) -> None:
    text = "\n".join(lines)
    theirs = list(ignore_comments(join_lines(enumerate(text.splitlines(), start=1))))
    ours = list(lines_of(text))
    assert [line.number for line in ours] == [number for number, _ in theirs]
    for line, (_, whole) in zip(ours, theirs, strict=True):
        assert whole.split()[0].startswith(line.text.split()[0])
        assert line.kind == "option" or len(line.hashes) == whole.count(" --hash=")


@given(RELEASES)
def test_a_lock_asks_for_what_it_says_and_nothing_else(releases: dict[str, tuple[str, set[str]]]) -> None:
    found = wanted_of(lock_text(releases), "requirements.txt", AMD)
    assert {item.name: (item.version, set(item.hashes)) for item in found} == releases
    assert [item.name for item in found] == sorted(releases)


@given(RELEASES, st.randoms())
def test_the_order_of_a_lock_does_not_matter(releases: dict[str, tuple[str, set[str]]], order: object) -> None:
    names = list(releases)
    order.shuffle(names)  # type: ignore[attr-defined]
    turned = lock_text({name: releases[name] for name in names})
    one = wanted_of(lock_text(releases), "r", AMD)
    other = wanted_of(turned, "r", AMD)
    assert [(item.name, item.version, item.hashes) for item in one] == [(item.name, item.version, item.hashes) for item in other]


@given(RELEASES, RELEASES)
def test_a_user_keeps_all_releases_but_ours_and_gets_those_of_the_runtime_that_are_missing(
    own: dict[str, tuple[str, set[str]]], runtime: dict[str, tuple[str, set[str]]]
) -> None:
    mine = wanted_of(lock_text({**own, OURS: ("1.0", {digest_of(b"")})}), "r", AMD)
    found = {item.name: item.version for item in merged(mine, wanted_of(lock_text(runtime), "r", AMD))}
    assert found == {name: version for name, (version, _) in {**runtime, **own}.items() if name != OURS or name in runtime}
    assert list(found) == sorted(found)


@given(RELEASES, st.sets(NAMES.map(plain_name)))
def test_what_is_taken_out_of_a_lock_is_gone_and_the_rest_is_as_it_was(
    releases: dict[str, tuple[str, set[str]]], names: set[str]
) -> None:
    rest, versions = taken_out(lock_text(releases), names)
    assert versions == {name: version for name, (version, _) in releases.items() if name in names}
    assert rest == lock_text({name: each for name, each in releases.items() if name not in names})


@given(st.sets(st.sampled_from([*PRECEDENCE, "app.py", "x/requirements.txt"])))
def test_one_file_counts_and_it_is_the_most_exact(paths: set[str]) -> None:
    name = chosen(paths)
    assert name == next((each for each in PRECEDENCE if each in paths), "")


@given(TARGETS)
def test_platforms_that_run_everywhere_come_first_and_none_is_newer_than_the_target(target: Target) -> None:
    places = [place for place in platforms_of(target) if place.startswith("manylinux_2_")]
    minors = [int(place.split("_")[2]) for place in places]
    assert all(minor <= target.glibc for minor in minors)
    assert (minors == []) == target.is_musl
    usual = [minor for minor in minors if minor <= 28]
    assert usual == sorted(usual, reverse=True)
    assert minors == usual + sorted(minor for minor in minors if minor > 28)


@given(TARGETS, st.integers(0, 20))
def test_a_newer_libc_changes_no_choice_that_an_older_one_had(target: Target, more: int) -> None:
    newer = Target(python=target.python, platform=target.platform, glibc=target.glibc + more, is_musl=target.is_musl)
    machine = "x86_64" if target.platform == "linux/amd64" else "aarch64"
    short = "cp" + target.python.replace(".", "")
    tags = [f"{short}-{short}-manylinux_2_{minor}_{machine}" for minor in range(17, 46)] + ["py3-none-any"]
    files = [f"a-1.0-{tag}.whl" for tag in tags]
    old = sorted((rank, file) for file in files if (rank := rank_of(file, target)) is not None)
    new = sorted((rank, file) for file in files if (rank := rank_of(file, newer)) is not None)
    if target.glibc >= 28 or target.is_musl:
        assert old[0][1] == new[0][1]
    assert set(ranks_of(target)) <= set(ranks_of(newer))


@given(RELEASES, st.sampled_from(["", "axons/digits", "src"]))
def test_a_proposal_is_the_lock_itself_and_wins_where_it_is_merged(
    releases: dict[str, tuple[str, set[str]]], folder: str
) -> None:
    text = "# Resolved\n" + lock_text(releases)
    wheels = wanted_of(text, OWN_LOCK, AMD)
    lock = Lock(text=text, origin=f"{folder}/requirements.txt".lstrip("/"), resolved=True, wheels=wheels)
    made = proposed_lock(folder, lock)
    assert made.content == text.encode()
    assert chosen({PurePosixPath(made.path).name, "requirements.txt"}) == OWN_LOCK
    assert PurePosixPath(made.path).parent == PurePosixPath(folder)
    assert wanted_of(made.content.decode(), OWN_LOCK, AMD) == wheels
    other = proposed_lock(folder, Lock(text=text + "# more\n", origin=lock.origin, resolved=True, wheels=wheels))
    assert other.branch != made.branch
    assert all(f"`{name}==" in made.body for name in releases)


@given(NAMES)
def test_a_requirement_begins_with_its_name(name: str) -> None:
    for text in (f"{name}==1", f"{name}[x]>=2", name, f"{name} ; python_version > '3'", f"{name}~=1.0"):
        assert name_in(text) == plain_name(name)
    assert name_in("==1") == ""


def test_wanted_of_nothing_is_nothing() -> None:
    assert wanted_of("", "r", AMD) == ()
    assert merged((), ()) == ()
    assert Wanted(name="a", version="1", hashes=(), line=0).url == ""
