"""Desired and observed state -> the objects that mirror them in a cluster: Axon, Release, Version, and their status.

Law: a mirror says what Git says; nothing in it is read back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.identity import object_name
from policies.serving import proxy_name, server_name
from policies.terms.desired import DesiredState
from policies.terms.observed import Observed
from policies.terms.outcome import Outcome
from policies.terms.release import Release
from policies.terms.version import Version

LONGEST_OUTCOMES = 50
MirrorKind = Literal["Axon", "Release", "Version"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """One object as it should be in the cluster."""

    kind: MirrorKind
    name: str
    axon: str
    file: str
    """Where in the repository a person changes it."""
    content: Mapping[str, Any]
    """All but `apiVersion`, `kind`, `metadata` and `status`."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """Without conditions."""
    outcomes: tuple[Outcome, ...] = ()
    """What its conditions are made of."""


def mirrors(desired: DesiredState, observed: Observed, outcomes: Sequence[Outcome]) -> Iterator[Mirror]:
    """All objects of a project but itself, sorted by kind and name."""
    about = _by_axon(outcomes)
    yield from _axons(desired, observed, about)
    yield from _releases(desired, observed, about)
    yield from _versions(desired, observed, about)


def _axons(desired: DesiredState, observed: Observed, about: Mapping[str, Sequence[Outcome]]) -> Iterator[Mirror]:
    for name, axon in sorted(desired.axons.items()):
        best = _most(desired, name)
        yield Mirror(
            kind="Axon",
            name=name,
            axon=name,
            file=axon.file,
            content={"spec": axon.document.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)},
            status={
                "axon": name,
                "revision": str(desired.revision),
                "outcomes": shown(about.get(name, ())),
                **({"version": best[0], "share": best[1], "url": _url(observed, name, best[2])} if best else {}),
            },
            outcomes=tuple(about.get(name, ())),
        )


def _releases(desired: DesiredState, observed: Observed, about: Mapping[str, Sequence[Outcome]]) -> Iterator[Mirror]:
    for (axon, deployer), release in sorted(desired.releases.items()):
        shares = sorted(release.spec.traffic, key=lambda share: (-share.share, share.version))
        serving = [share.version for share in shares if share.share]
        subjects = {axon, *(f"{axon}/{name}" for name in (deployer, *serving))}
        ours = [item for item in about.get(axon, ()) if item.subject in subjects]
        if not any(item.state != "done" for item in ours) and (why := _why_not_up(desired, observed, axon, deployer, serving)):
            ours.append(_waits(f"{axon}/{deployer}", why))
        yield Mirror(
            kind="Release",
            name=object_name(axon, deployer),
            axon=axon,
            file=desired.release_files.get((axon, deployer), (f"releases/{axon}/{deployer}.yaml", b""))[0],
            content={"spec": release.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)},
            status={
                "axon": axon,
                "revision": str(desired.revision),
                "traffic": ", ".join(f"{share.version} {share.share}" for share in shares if share.share),
                "url": _url(observed, axon, deployer),
                **({"version": shares[0].version, "share": shares[0].share} if shares else {}),
            },
            outcomes=tuple(ours),
        )


def _versions(desired: DesiredState, observed: Observed, about: Mapping[str, Sequence[Outcome]]) -> Iterator[Mirror]:
    for name, version in sorted(desired.versions.items()):
        axon, deployer = version.metadata.axon, version.spec.deployer
        share = _share(desired.releases.get((axon, deployer)), name)
        is_there = any(server_name(version, backend) in observed.servers for backend in version.spec.backends)
        url = _url(observed, axon, deployer) if is_there else ""
        ours = [item for item in about.get(axon, ()) if item.subject == f"{axon}/{name}"]
        if share and not _is_up(version, observed) and not any(item.state != "done" for item in ours):
            ours.append(_waits(f"{axon}/{name}", "its servers do not answer yet"))
        yield Mirror(
            kind="Version",
            name=name,
            axon=axon,
            file=f"versions/{axon}/{name}.yaml",
            content={
                "spec": version.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True),
                "signature": version.signature,
            },
            status={
                "axon": axon,
                "version": name,
                "share": share,
                "revision": f"{desired.revision.branch}@sha1:{version.spec.commit}",
                "url": f"{url}versions/{name}/" if url else "",
            },
            outcomes=tuple(ours),
        )


def shown(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Outcomes as a status lists them, what does not go well first."""
    order = {"stalled": 0, "waiting": 1, "done": 2}
    told = sorted((item for item in outcomes if not item.is_quiet), key=lambda item: order[item.state])
    return [
        {"state": item.state, "subject": item.subject, "reason": item.reason, "message": item.message[:1024]}
        for item in told[:LONGEST_OUTCOMES]
    ]


def _by_axon(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for item in outcomes:
        if not item.is_quiet:
            found.setdefault(item.subject.split("/", 1)[0], []).append(item)
    return found


def _most(desired: DesiredState, axon: str) -> tuple[str, int, str] | None:
    """The version of an axon with the greatest share, that share, and its deployer."""
    found = [
        (share.share, share.version, deployer)
        for (of, deployer), release in desired.releases.items()
        if of == axon
        for share in release.spec.traffic
    ]
    share, version, deployer = max(found, default=(0, "", ""))
    return (version, share, deployer) if version else None


def _why_not_up(desired: DesiredState, observed: Observed, axon: str, deployer: str, serving: Sequence[str]) -> str:
    """What a release waits for; empty when it serves as it says. One of which no version is recorded has nothing to serve."""
    known = {
        name: version
        for name, version in desired.versions.items()
        if (version.metadata.axon, version.spec.deployer) == (axon, deployer)
    }
    proxy = observed.servers.get(proxy_name(axon, deployer))
    if known and (proxy is None or proxy.phase != "ready"):
        return (proxy.message or "its proxy does not answer yet") if proxy else "its proxy is not there yet"
    down = [name for name in serving if name in known and not _is_up(known[name], observed)]
    return f"the servers of {', '.join(down)} do not answer yet" if down else ""


def _is_up(version: Version, observed: Observed) -> bool:
    servers = [observed.servers.get(server_name(version, backend)) for backend in version.spec.backends]
    return all(server is not None and server.phase == "ready" for server in servers)


def _share(release: Release | None, version: str) -> int:
    return next((item.share for item in release.spec.traffic if item.version == version), 0) if release is not None else 0


def _url(observed: Observed, axon: str, deployer: str) -> str:
    proxy = observed.servers.get(proxy_name(axon, deployer))
    return f"http://{proxy.address}/{axon}/" if proxy is not None else ""


def _waits(subject: str, message: str) -> Outcome:
    return Outcome(state="waiting", subject=subject, reason="NotServing", message=message)
