"""Commits that a person makes by command: one commit by the person, on the remote's tip, and nothing else in it.

It is planned again on what is there whenever somebody was faster, and never forced. What a person's own Git settings
sign with signs it; the controller has no part in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.adapters.clone import Clone, cloned
from controller.adapters.documents import YamlDocuments
from controller.adapters.git.commits import facts_of
from controller.adapters.git.urls import name_of
from controller.answers import in_cluster
from controller.answers.signed import judge_alone
from controller.keyring import public_keys
from controller.project import Place
from controller.trustfile import TrustFile, pin_of, read_trust, signature_reader
from policies import acting
from policies.errors import ConflictError, ControllerError, DesiredStateError, RefusedError, TrustError
from policies.parsing import nearest, parse_document
from policies.terms.axon import Axon
from policies.terms.project import Project
from policies.terms.release import Release
from policies.terms.secret import Secret
from policies.terms.verdict import Verdict
from policies.terms.version import Version
from policies.writeback import message
from reconcilers.deploy import release_text
from reconcilers.ports import Forge

TRIES = 8
"""How often somebody else may be faster before we give up."""
PROJECT_FILE = "myelin.yaml"
BRANCHES = "myelin-by-hand/"
"""Where changes wait that a person wants to be asked about; below `myelin/` is the controller's."""
TOKEN = "MYELIN_FORGE_TOKEN"
"""Environment variable with the person's own token of the forge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A commit to make."""

    changes: Mapping[str, bytes]
    subject: str
    body: str = ""
    trailers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    told: str = ""
    """What it comes to, for the person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """What the branch says now."""

    clone: Clone
    commit: str
    now: datetime

    def document(self, path: str) -> Project | Axon | Release | Version | None:
        """A document; None when there is no such file.

        Raises:
            DesiredStateError: It cannot be read.
        """
        text = self.clone.read(self.commit, path)
        return None if text is None else parse_document(YamlDocuments().load(text, path))


Deed = Callable[[Tip], Planned | Verdict]


def act(place: Place, deed: Deed, *, name: str, now: datetime, pull_request: bool = False) -> dict[str, Any]:
    """Do something to the branch, by a commit of the person who asks.

    Args:
        place: The project.
        deed: What to change, planned on a tip; a verdict says why nothing is to be changed.
        name: Of the branch below `myelin-by-hand/`.
        now: This instant, UTC.
        pull_request: Whether to push to a branch of its own, and to ask for it to be merged where there is a forge.
    Returns:
        `commit` (empty when there was nothing to change), `branch`, `changed`, `told`, and `pullRequest`, its URL or empty.
    Raises:
        DesiredStateError: It cannot be done; says why.
        RefusedError: The clone does not sign, or the server refuses.
        TrustError: The signature would not count.
        ConflictError: Others were faster again and again.
    """
    if in_cluster.is_here(place):
        raise RefusedError("expected a clone of one's own: a person's commits are not made in the controller's pod")
    trust = read_trust(place.trust)
    with cloned(place.work_tree, place.url) as clone:
        for _ in range(TRIES):
            commit = clone.fetch(place.branch)
            if not commit:
                raise DesiredStateError(
                    f"branch {place.branch}: expected at least one commit, got none; push one", reason="Empty"
                )
            planned = deed(Tip(clone=clone, commit=commit, now=now))
            if isinstance(planned, Verdict):
                if planned.answer != "allow":
                    raise DesiredStateError("; ".join(planned.reasons), reason="NotGranted")
                return _answer("", place.branch, (), "; ".join(planned.reasons))
            text = message(planned.subject, planned.body, planned.trailers)
            made = clone.commit(commit, planned.changes, text, may_be_unsigned=trust.unsafe_unsigned_commits)
            _check_trusted(clone, commit, made, planned.changes, place, trust)
            changed = tuple(sorted(planned.changes))
            if pull_request:
                branch = _push_apart(clone, made, name)
                url = _ask(place, clone, commit, branch, planned)
                return _answer(made, branch, changed, planned.told, url)
            try:
                clone.push(place.branch, made, expected=commit)
            except ConflictError:
                continue
            except RefusedError as error:
                again = "the same command with --pull-request pushes to a branch of its own instead"
                raise RefusedError(f"{error.message}; {again}", reason=error.reason) from error
            return _answer(made, place.branch, changed, planned.told)
    raise ConflictError(f"push to {place.branch}: others were faster {TRIES} times; try again")


def on_release(version: str, wish: Callable[[str], acting.Wish], told: Callable[[str], str]) -> Deed:
    """A deed on the release that a version belongs to.

    Args:
        version: Its name, or a beginning of it.
        wish: Its whole name -> what the person asks for.
        told: The same -> the commit's subject behind the axon's name.
    """

    def deed(tip: Tip) -> Planned | Verdict:
        files = {Path(path).stem: path for path in tip.clone.paths(tip.commit, "versions") if path.endswith(".yaml")}
        whole = acting.known(version, files)
        record = tip.document(files[whole])
        if not isinstance(record, Version):
            raise DesiredStateError(f"{files[whole]}: expected a version's record, got another document", reason="UnknownVersion")
        axon, deployer = record.metadata.axon, record.spec.deployer
        return _on_release(tip, axon, deployer, wish(whole), whole, told(whole))

    return deed


def go_back(axon: str, deployer: str, reason: str) -> Deed:
    """The deed that takes an axon's newest version with traffic out and puts it on hold.

    Args:
        axon: The axon.
        deployer: Its deployer; empty where it has one only.
        reason: Why, for the hold; empty for none.
    """

    def deed(tip: Tip) -> Planned | Verdict:
        found = {item.metadata.name: item for item in _releases(tip, axon).values()}
        if not found:
            known = sorted({path.split("/")[1] for path in tip.clone.paths(tip.commit, "releases") if path.count("/") > 1})
            raise DesiredStateError(f"{axon}: expected an axon with a release; {_nearest(axon, known)}", reason="UnknownAxon")
        if not deployer and len(found) > 1:
            raise DesiredStateError(f"{axon}: expected --deployer with one of {', '.join(sorted(found))}", reason="Ambiguous")
        if deployer and deployer not in found:
            text = f"{axon}: expected a deployer with a release, got {deployer}; {_nearest(deployer, sorted(found))}"
            raise DesiredStateError(text, reason="UnknownDeployer")
        return _on_release(tip, axon, deployer or next(iter(found)), acting.GoBack(reason=reason), "", "")

    return deed


def suspend(axon: str, reason: str, until: str) -> Deed:
    """The deed that lets an axon start nothing new.

    Args:
        axon: The axon.
        reason: Why.
        until: Its end, an instant or a duration; empty for none.
    """

    def deed(tip: Tip) -> Planned | Verdict:
        end = acting.instant_of(until, tip.now) if until else None
        words = f"{axon}: suspend" + (f" until {end:%Y-%m-%d %H:%M} UTC" if end else "")
        return _on_axon(tip, axon, lambda value: acting.suspended(value, reason=reason, until=end), words, reason)

    return deed


def resume(axon: str) -> Deed:
    """The deed that lets an axon start again what is due."""
    return lambda tip: _on_axon(tip, axon, acting.resumed, f"{axon}: resume", "")


def trust(signer: Mapping[str, Any]) -> Deed:
    """The deed that names one more signer in `myelin.yaml`; it counts from the next commit on."""

    def deed(tip: Tip) -> Planned | Verdict:
        text = tip.clone.read(tip.commit, PROJECT_FILE)
        if text is None:
            raise DesiredStateError(f"{PROJECT_FILE}: expected a file of kind Project on the branch, there is none")
        value = YamlDocuments().load(text, PROJECT_FILE).value
        if not isinstance(value, dict) or not isinstance(tip.document(PROJECT_FILE), Project):
            raise DesiredStateError(f"{PROJECT_FILE}: expected a document of kind Project, got another")
        edited = YamlDocuments().edit(text, acting.with_signer(value, signer))
        parse_document(YamlDocuments().load(edited, PROJECT_FILE))
        told = f"{signer['name']} may sign what comes after this commit"
        return Planned(changes={PROJECT_FILE: edited}, subject=f"Trust {signer['name']}", told=told)

    return deed


def public_key(path: Path) -> str:
    """An SSH public key from a file, without its comment.

    Raises:
        DesiredStateError: It is none.
    """
    text = _text_of(path)
    if "PRIVATE KEY" in text:
        raise DesiredStateError(f"{path}: expected a public key, got a private one; give {path}.pub")
    line = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if not re.match(r"(ssh-|ecdsa-|sk-)\S+ AAAA\S+", line):
        raise DesiredStateError(f"{path}: expected a line such as `ssh-ed25519 AAAA…`, got {line[:40]!r}")
    return " ".join(line.split()[:2])


def certificate(path: Path) -> str:
    """An armored OpenPGP certificate from a file.

    Raises:
        DesiredStateError: It is none.
    """
    text = _text_of(path)
    if "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in text:
        raise DesiredStateError(f"{path}: expected an armored OpenPGP certificate; `gpg --armor --export NAME` writes one")
    return text.strip() + "\n"


def _on_release(tip: Tip, axon: str, deployer: str, wish: acting.Wish, version: str, told: str) -> Planned | Verdict:
    found = _releases(tip, axon)
    path = next((path for path, item in found.items() if item.metadata.name == deployer), f"releases/{axon}/{deployer}.yaml")
    before = found.get(path)
    names = _newest_first(tip, axon, deployer) if isinstance(wish, acting.GoBack) else [version]
    after = acting.grant(before, wish, axon=axon, deployer=deployer, versions=names, now=tip.now)
    if isinstance(after, Verdict):
        return after
    if isinstance(wish, acting.GoBack):
        held = {hold.version for hold in before.spec.holds} if before else set()
        served = {share.version for share in before.spec.traffic} if before else set()
        version = next(hold.version for hold in after.spec.holds if hold.version not in held or hold.version in served)
        told = f"roll back {version}"
    text = release_text(after, (tip.clone.read(tip.commit, path) or b"") if before else b"", YamlDocuments())
    parse_document(YamlDocuments().load(text, path))
    shares = ", ".join(f"{item.version} {item.share}" for item in after.spec.traffic) or "none"
    reason = next((hold.reason for hold in after.spec.holds if hold.version == version), "")
    is_served = any(item.version == version and item.share for item in after.spec.traffic)
    more = "; it still has traffic, which `myelin rollback` takes away" if isinstance(wish, acting.HoldBack) and is_served else ""
    return Planned(
        changes={path: text},
        subject=f"{axon}: {told}",
        body="\n".join(part for part in (reason, f"Traffic: {shares}") if part),
        trailers={"Myelin-Version": (version,)},
        told=f"{axon}/{deployer}: {told}; traffic: {shares}{more}",
    )


def _on_axon(
    tip: Tip, axon: str, edit: Callable[[Mapping[str, Any]], dict[str, Any]], subject: str, body: str
) -> Planned | Verdict:
    path = _manifest(tip, axon)
    text = tip.clone.read(tip.commit, path) or b""
    before = YamlDocuments().load(text, path).value
    after = edit(before)
    if after == before:
        return Verdict(answer="allow", reasons=(f"{axon}: {path} says so already",))
    edited = YamlDocuments().edit(text, after)
    parse_document(YamlDocuments().load(edited, path))
    return Planned(changes={path: edited}, subject=subject, body=body, told=subject)


def _manifest(tip: Tip, axon: str) -> str:
    """The file of an axon's manifest, as the controller would find it."""
    project = tip.document(PROJECT_FILE) if tip.clone.read(tip.commit, PROJECT_FILE) is not None else None
    tops = [path.strip("/") for path in project.spec.paths if path.strip("./")] if isinstance(project, Project) else []
    files = [
        path
        for path in tip.clone.search(tip.commit, r"^['\"]?kind['\"]?: *['\"]?Axon", ("*.yaml", "*.yml"))
        if not tops or any(path == top or path.startswith(f"{top}/") for top in tops)
    ]
    likely = {*tip.clone.search(tip.commit, rf"name['\"]?: *['\"]?{re.escape(axon)}\b", files)} if files else set()
    for path in files:
        if path in likely:
            document = tip.document(path)
            if isinstance(document, Axon) and document.metadata.name == axon:
                return path
    names = []
    for path in files:
        try:
            document = tip.document(path)
        except DesiredStateError:
            continue
        names += [document.metadata.name] if isinstance(document, Axon) else []
    raise DesiredStateError(
        f"{axon}: expected an axon on the branch, there is none; {_nearest(axon, names)}", reason="UnknownAxon"
    )


def _releases(tip: Tip, axon: str) -> dict[str, Release]:
    """Path -> release, of an axon."""
    found = {}
    for path in tip.clone.paths(tip.commit, f"releases/{axon}"):
        document = tip.document(path) if path.endswith((".yaml", ".yml")) else None
        if isinstance(document, Release) and document.metadata.axon == axon:
            found[path] = document
    return found


def _newest_first(tip: Tip, axon: str, deployer: str) -> list[str]:
    """Recorded versions of a deployer, newest first."""
    found = []
    for path in tip.clone.paths(tip.commit, f"versions/{axon}"):
        document = tip.document(path) if path.endswith((".yaml", ".yml")) else None
        if isinstance(document, Version) and document.spec.deployer == deployer:
            found.append((document.spec.created_at, document.metadata.name))
    return [name for _, name in sorted(found, reverse=True)]


def _check_trusted(clone: Clone, parent: str, commit: str, changes: Mapping[str, bytes], place: Place, trust: TrustFile) -> None:
    """See before a push that the commit would count: one that does not would stop everything that comes after it."""
    pin = pin_of(trust, public_keys(place.state)[0])
    if not pin.signers and not pin.unsafe_unsigned:
        return  # nobody is pinned here, so nobody here can say
    reader = signature_reader(trust)
    named = reader.signers_of(clone.read(parent, PROJECT_FILE) or b"")
    changed = facts_of(
        commit,
        clone.raw(commit),
        paths=tuple(sorted(changes)),
        project=changes.get(PROJECT_FILE),
        signers_of=reader.signers_of,
        read_signature=reader.read,
    )
    people = replace(pin, controller=None, controller_openpgp=None, controller_sigstore=None)
    if fault := judge_alone(people, changed, named or pin.signers, branch=place.branch):
        raise TrustError(f"not pushed, because the controller would not act on it: {fault}")


def _push_apart(clone: Clone, commit: str, name: str) -> str:
    """Push a commit to a branch of its own, and return the branch."""
    plain = BRANCHES + re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    for branch in (plain, f"{plain}-{commit[:7]}"):
        try:
            clone.push(branch, commit, expected="")
        except ConflictError:
            continue  # an earlier one of that name waits there
        return branch
    raise ConflictError(f"push to {plain}: somebody else has this branch; try again")


def _ask(place: Place, clone: Clone, tip: str, branch: str, planned: Planned) -> str:
    """Ask for a branch to be merged, where the project has a forge and we a token; the URL of the pull request, else empty.

    Raises:
        OutsideError: The forge refuses or is silent; says that the branch is there.
    """
    document = parse_document(YamlDocuments().load(clone.read(tip, PROJECT_FILE) or b"kind: Project", PROJECT_FILE))
    forge = forge_for(document, place.url) if isinstance(document, Project) else None
    if forge is None or not isinstance(document, Project):
        return ""
    review = document.spec.write_back.review
    try:
        asked = forge.open(
            head=branch,
            base=place.branch,
            title=planned.subject,
            body=planned.body,
            labels=review.labels,
            reviewers=review.reviewers,
        )
    except ControllerError as error:
        raise type(error)(f"{branch} is pushed, but nobody was asked: {error.message}", reason=error.reason) from error
    return asked.url


def forge_for(project: Project, url: str) -> Forge | None:
    """The project's forge, with the person's own token; None without a token, or where the forge lies on another host.

    `myelin.yaml` names the forge, and who may change that must not be sent the token.
    """
    settings, text = project.spec.write_back.forge, os.environ.get(TOKEN, "")
    if settings is None or not text:
        return None
    if name_of(settings.url or url) != name_of(url):
        return None
    from controller.adapters.forge import forge_of

    return forge_of(settings, url, Secret(text))


def _answer(commit: str, branch: str, changed: tuple[str, ...], told: str, url: str = "") -> dict[str, Any]:
    return {"commit": commit, "branch": branch, "changed": list(changed), "told": told, "pullRequest": url}


def _nearest(word: str, names: list[str]) -> str:
    near = nearest(word, names)
    return f"the nearest is {near}" if near else f"there are {len(names)}" if names else "there is none yet"


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise DesiredStateError(f"{path}: expected text, got bytes; `gpg --armor` writes text") from error
