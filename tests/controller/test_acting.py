"""Commits by command, on real Git: by the person, signed, on the remote's tip, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from controller import acting
from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import SshKey
from controller.project import Place
from policies.acting import Give, HoldBack
from policies.errors import ConflictError, ControllerError, DesiredStateError, RefusedError, TrustError
from policies.terms.verdict import Verdict
from tests.controller.people import NOW, ONE, RELEASE, TEXT, THREE, TWO, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_hold_is_one_signed_commit_of_the_person_and_touches_nothing_else(world: World) -> None:
    (world.clone / "notes.md").write_text("not committed yet\n")
    (world.clone / "myelin.yaml").write_text("half an edit\n")
    world.git("add", "notes.md")
    before = world.git("status", "--porcelain"), world.git("rev-parse", "HEAD"), (world.clone / ".git/index").read_bytes()
    done = world.run("hold", TWO, "--reason", "looks odd at night")
    facts = world.tip()
    assert done == {
        "commit": facts.commit,
        "branch": "main",
        "changed": [RELEASE],
        "told": f"digits/deployer: hold {TWO}; traffic: {ONE} 80, {TWO} 20; "
        "it still has traffic, which `myelin rollback` takes away",
        "pullRequest": "",
    }
    assert (facts.author, facts.changed_paths) == ("you <you@localhost>", (RELEASE,))
    assert facts.message == f"digits: hold {TWO}\n\nlooks odd at night\nTraffic: {ONE} 80, {TWO} 20\n\nMyelin-Version: {TWO}\n"
    assert [(hold["version"], hold["reason"]) for hold in world.release()["holds"]] == [(TWO, "looks odd at night")]
    assert "# who serves what" in world.file(RELEASE)
    assert "# the good old one" in world.file(RELEASE)
    assert f'"{ONE}"' in world.file(RELEASE)
    after = world.git("status", "--porcelain"), world.git("rev-parse", "HEAD"), (world.clone / ".git/index").read_bytes()
    assert after == before


def test_the_words_of_a_release_one_after_the_other(world: World) -> None:
    world.run("promote", THREE, "--share", "50")
    assert world.shares() == {ONE: 40, TWO: 10, THREE: 50}
    assert world.run("promote", THREE, "--share", "50")["commit"] == ""
    world.run("promote", "v-333")
    assert world.shares() == {THREE: 100}
    world.run("rollback", "digits")
    assert world.shares() == {TWO: 100}
    assert [(hold["version"], hold["reason"]) for hold in world.release()["holds"]] == [(THREE, "taken out by hand")]
    with pytest.raises(DesiredStateError, match=r"is on hold: taken out by hand; say --lift"):
        world.run("promote", THREE)
    with pytest.raises(DesiredStateError, match="is on hold already"):
        world.run("hold", THREE, "--reason", "again")
    world.run("promote", THREE, "--share", "5", "--lift")
    assert world.shares() == {TWO: 95, THREE: 5}
    world.run("hold", ONE, "--reason", "old")
    world.run("lift", ONE)
    assert "holds" not in world.release()
    told = world.run("lift", ONE)
    assert (told["commit"], told["changed"], told["told"]) == ("", [], f"{ONE} is not on hold")


def test_suspending_and_resuming_edit_the_manifest_and_keep_its_text(world: World) -> None:
    before = world.file("axons/digits/axon.yaml")
    done = world.run("suspend", "digits", "--reason", "new disks", "--until", "36h")
    assert done["changed"] == ["axons/digits/axon.yaml"]
    text = world.file("axons/digits/axon.yaml")
    value = YamlDocuments().load(text.encode(), "axon.yaml").value
    assert value["spec"]["suspend"]["reason"] == "new disks"
    assert set(before.splitlines()) <= set(text.splitlines())
    assert world.run("suspend", "digits", "--reason", "new disks")["commit"] != ""  # without an end it is another
    assert world.run("suspend", "digits", "--reason", "new disks")["commit"] == ""
    world.run("resume", "digits")
    assert world.file("axons/digits/axon.yaml") == before
    assert world.run("resume", "digits")["commit"] == ""


def test_a_new_signer_counts_from_the_next_commit_on(world: World, tmp_path: Path) -> None:
    key = SshKey.generate(tmp_path / "ada")
    (tmp_path / "ada.pub").write_text(f"{key.public()} ada@home\n")
    with pytest.raises(DesiredStateError, match=r"got a private one; give .*ada\.pub"):
        world.run("trust", "add", "ada", "--ssh", str(tmp_path / "ada"))
    world.run("trust", "add", "ada", "--ssh", str(tmp_path / "ada.pub"), "--path", "releases/", "--until", "48h")
    signer = YamlDocuments().load(world.file("myelin.yaml").encode(), "m").value["spec"]["trust"]["signers"][-1]
    assert {**signer, "validUntil": ""} == {"name": "ada", "ssh": key.public(), "paths": ["releases/"], "validUntil": ""}
    assert "# Whose commits are acted on." in world.file("myelin.yaml")
    world.git("config", "user.signingKey", str(tmp_path / "ada"))
    world.run("promote", THREE, "--share", "1")
    assert world.shares()[THREE] == 1


def test_a_commit_that_would_not_count_is_not_pushed(world: World, tmp_path: Path) -> None:
    tip = world.tip().commit
    SshKey.generate(tmp_path / "stranger")
    world.git("config", "user.signingKey", str(tmp_path / "stranger"))
    with pytest.raises(TrustError, match=r"the controller would not act on it: .*spec\.trust\.signers"):
        world.run("hold", TWO, "--reason", "x")
    world.git("config", "--unset", "user.signingKey")
    world.git("config", "commit.gpgSign", "false")
    with pytest.raises(RefusedError, match=r"expected a clone that signs commits.*git config user\.signingKey"):
        world.run("hold", TWO, "--reason", "x")
    assert world.tip().commit == tip


def test_an_unsigned_commit_is_made_where_the_trust_file_lets_it_pass(world: World) -> None:
    assert world.place.trust is not None
    trust = YamlDocuments().load(world.place.trust.read_bytes(), "trust").value
    world.place.trust.write_bytes(YamlDocuments().render({**trust, "unsafeUnsignedCommits": True}))
    world.git("config", "--unset", "user.signingKey")
    world.git("config", "commit.gpgSign", "false")
    world.run("hold", TWO, "--reason", "x")
    assert world.tip().signature is None


def test_hooks_of_the_clone_are_not_run(world: World, tmp_path: Path) -> None:
    for name in ("pre-commit", "commit-msg", "post-commit", "pre-push", "reference-transaction", "post-index-change"):
        hook = world.clone / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/ran\nexit 1\n")
        hook.chmod(0o755)
    world.run("hold", TWO, "--reason", "x")
    assert not (tmp_path / "ran").exists()


def racing(deed: acting.Deed, meanwhile: Callable[[], object], times: int = 1) -> acting.Deed:
    """Let somebody be faster, between the plan and the push."""
    left = iter(range(times))

    def slow(tip: acting.Tip) -> acting.Planned | Verdict:
        planned = deed(tip)
        if next(left, None) is not None:
            meanwhile()
        return planned

    return slow


def give(version: str, share: int) -> acting.Deed:
    return acting.on_release(version, lambda name: Give(version=name, share=share), lambda name: f"give {name} {share}")


def test_a_lost_race_is_planned_again_on_what_came_first(world: World) -> None:
    theirs = TEXT.replace("share: 80", "share: 60").replace("share: 20", "share: 40").replace("# who", "# they say who")
    pushed: list[str] = []
    deed = racing(give(THREE, 50), lambda: pushed.append(world.push({RELEASE: theirs.encode()}, "Sixty and forty\n")))
    acting.act(world.place, deed, name="x", now=NOW)
    assert world.shares() == {ONE: 30, TWO: 20, THREE: 50}
    assert "# they say who" in world.file(RELEASE)
    assert world.tip().parents == tuple(pushed)


def test_a_race_that_takes_the_ground_away_is_refused(world: World) -> None:
    deed = racing(give(THREE, 50), lambda: world.push({f"versions/digits/{THREE}.yaml": None}, "Forget it\n"))
    with pytest.raises(DesiredStateError, match="expected a version that is recorded on the branch; there are 2"):
        acting.act(world.place, deed, name="x", now=NOW)


def test_who_loses_every_race_gives_up_and_forces_nothing(world: World) -> None:
    number = iter(range(99))
    deed = racing(give(THREE, 50), lambda: world.push({"n.md": str(next(number)).encode()}, "n\n"), times=99)
    with pytest.raises(ConflictError, match="others were faster 8 times"):
        acting.act(world.place, deed, name="x", now=NOW)
    assert world.file("n.md") == "7"
    assert world.file(RELEASE) == TEXT


def test_a_protected_branch_is_said_and_a_branch_of_its_own_is_offered(world: World) -> None:
    hook = Path(world.place.url) / "hooks/update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\nif [ "$1" = refs/heads/main ]; then echo "main is protected" >&2; exit 1; fi\n')
    hook.chmod(0o755)
    tip = world.git("rev-parse", "main", folder=Path(world.place.url))
    with pytest.raises(RefusedError, match="--pull-request"):
        world.run("hold", TWO, "--reason", "x")
    done = world.run("hold", TWO, "--reason", "x", "--pull-request")
    branch = f"myelin-by-hand/hold-{TWO}"
    assert (done["branch"], done["pullRequest"]) == (branch, "")
    assert world.tip(branch).commit == done["commit"]
    assert [hold["version"] for hold in world.release(branch)["holds"]] == [TWO]
    assert world.git("rev-parse", "main", folder=Path(world.place.url)) == tip
    again = world.run("hold", TWO, "--reason", "y", "--pull-request")
    assert again["branch"].startswith(f"{branch}-")


REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "a version that nobody recorded": (("hold", "v-1111111112", "--reason", "x"), f"the nearest is {ONE}"),
    "a share above a hundred": (("promote", THREE, "--share", "101"), "within 0-100, got 101"),
    "a share below none": (("promote", THREE, "--share", "-1"), "within 0-100, got -1"),
    "an axon that is not there": (("suspend", "digit", "--reason", "x"), "the nearest is digits"),
    "a way back of an axon that is not there": (("rollback", "digit"), "the nearest is digits"),
    "a deployer that is not there": (("rollback", "digits", "--deployer", "deploy"), "the nearest is deployer"),
    "an end in the past": (("suspend", "digits", "--reason", "x", "--until", "2020-01-01T00:00:00Z"), "an instant after now"),
    "an end that is none": (("suspend", "digits", "--reason", "x", "--until", "soon"), "or a duration such as 36h"),
    "a hold without a reason": (("hold", TWO, "--reason", " "), "reason: expected some words"),
    "a signer who is there": (("trust", "add", "you", "--identity", "a@b", "--issuer", "https://c"), "there is one already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_words_and_nothing_is_pushed(world: World, name: str) -> None:
    args, words = REFUSED[name]
    tip = world.tip().commit
    with pytest.raises(ControllerError) as refused:
        world.run(*args)
    assert words in refused.value.message
    assert world.tip().commit == tip


def test_a_bare_repository_is_acted_on_with_the_persons_own_settings(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    signer = world.clone.with_name("p.myelin").resolve() / "signer"
    (home / ".gitconfig").write_text(
        f"[user]\nname = you\nemail = you@localhost\nsigningKey = {signer}\n[gpg]\nformat = ssh\n[safe]\ndirectory = *\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    place = Place(url=world.place.url, state=world.place.state, trust=world.place.trust, work_tree=None)
    deed = acting.on_release(TWO, lambda name: HoldBack(version=name, reason="x"), lambda name: f"hold {name}")
    done = acting.act(place, deed, name="hold", now=NOW)
    assert world.tip().commit == done["commit"]


def test_a_repository_that_is_away_is_said(world: World) -> None:
    Path(world.place.url).rename(world.clone.with_name("away.git"))
    with pytest.raises(ControllerError, match="fetch of main"):
        acting.act(world.place, give(TWO, 1), name="x", now=NOW)
