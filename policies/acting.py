"""What a person asks for by command, planned on what the branch says now: a hold, a lift, a share, a way back; a suspended
axon; one more signer.

Laws: shares sum to 100 or there are none; a version on hold is never given traffic; lifting a hold that was just set
gives the release back as it was; a wish that is granted is not granted twice. It never reads a clock or a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_never

from policies.errors import DesiredStateError
from policies.parsing import nearest
from policies.rollout import roll_back, to_hundred
from policies.terms.document_types import parse_duration
from policies.terms.release import Hold, Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.verdict import Verdict

BY_HAND = "taken out by hand"
"""Why a version is on hold when a person who took it out gave no reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldBack:
    """Do not let a version in."""

    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lift:
    """Let a version that is on hold in again, if it comes to that; it gets no traffic by this."""

    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Give:
    """Give a version a share; the others with traffic keep their proportion in the rest."""

    version: str
    share: int
    """Percent, 0-100."""
    lift: bool = False
    """Whether its hold goes, if it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBack:
    """Take the newest version with traffic out, and put it on hold."""

    reason: str = ""


Wish = HoldBack | Lift | Give | GoBack


def grant(
    release: Release | None, wish: Wish, *, axon: str, deployer: str, versions: Sequence[str], now: datetime
) -> Release | Verdict:
    """What the release says once a person has their way.

    Args:
        release: What it says now; None when there is none.
        wish: What the person asks for; a version it names is one of `versions`.
        axon: The axon's name.
        deployer: The deployer's name.
        versions: All recorded versions of the deployer, newest first.
        now: This instant, UTC.
    Returns:
        The new release; a verdict when it is so already (`allow`), or cannot be (`deny`, `hold`).
    Raises:
        DesiredStateError: A share is not within 0-100.
    """
    given = release or Release(metadata=ReleaseMetadata(name=deployer, axon=axon))
    match wish:
        case HoldBack():
            return _hold(given, wish, now)
        case Lift():
            if not _is_held(given, wish.version):
                return Verdict(answer="allow", reasons=(f"{wish.version} is not on hold",))
            return _with(given, holds=_without(given, wish.version))
        case Give():
            return _give(given, wish)
        case GoBack():
            return _go_back(given, wish, versions, now)
        case _:
            assert_never(wish)


def known(version: str, versions: Iterable[str]) -> str:
    """A version by its name, or by a beginning of it that fits one only.

    Raises:
        DesiredStateError: There is none, or there are several; names the nearest.
    """
    names = sorted(versions)
    fitting = [name for name in names if name == version] or [
        name for name in names if len(version) > 3 and name.startswith(version)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DesiredStateError(
            f"{version}: expected one version, got {', '.join(fitting)}; write more of it", reason="Ambiguous"
        )
    near = nearest(version, names)
    text = f"the nearest is {near}" if near else f"there are {len(names)}" if names else "there is none yet"
    raise DesiredStateError(f"{version}: expected a version that is recorded on the branch; {text}", reason="UnknownVersion")


def instant_of(text: str, now: datetime) -> datetime:
    """An end that a person gives as an instant, `2026-02-01T08:00:00Z`, or as a duration from now, `36h`.

    Raises:
        DesiredStateError: Neither, or in the past.
    """
    try:
        at = now + timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            message = f"end {text!r}: expected an instant such as 2026-02-01T08:00:00Z or a duration such as 36h"
            raise DesiredStateError(message, reason="NoInstant") from None
    at = (at if at.tzinfo else at.replace(tzinfo=now.tzinfo)).astimezone(now.tzinfo).replace(microsecond=0)
    if at <= now:
        raise DesiredStateError(f"end {text}: expected an instant after now, {now:%Y-%m-%dT%H:%M:%SZ}", reason="InThePast")
    return at


def suspended(manifest: Mapping[str, Any], *, reason: str, until: datetime | None) -> dict[str, Any]:
    """An axon's manifest, as plain values, that starts nothing new."""
    value = _copied(manifest)
    suspend = {"reason": reason} | ({"until": f"{until:%Y-%m-%dT%H:%M:%SZ}"} if until else {})
    value["spec"] = {**value["spec"], "suspend": suspend}
    return value


def resumed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """An axon's manifest, as plain values, that starts again what is due."""
    value = _copied(manifest)
    value["spec"].pop("suspend", None)
    return value


def with_signer(project: Mapping[str, Any], signer: Mapping[str, Any]) -> dict[str, Any]:
    """A `myelin.yaml`, as plain values, whose signers are those it had and one more.

    Raises:
        DesiredStateError: There is one of that name, or with that key, already.
    """
    value = _copied(project)
    spec = value.setdefault("spec", {})
    signers = spec.setdefault("trust", {}).setdefault("signers", [])
    for there in signers:
        if there.get("name") == signer["name"]:
            raise DesiredStateError(f"{signer['name']}: expected a new signer's name, there is one already", reason="Duplicate")
        if _key(there) == _key(signer):
            raise DesiredStateError(f"{signer['name']}: this key is there already, as {there.get('name')}", reason="Duplicate")
    signers.append(dict(signer))
    return value


def _hold(release: Release, wish: HoldBack, now: datetime) -> Release | Verdict:
    if hold := next((item for item in release.spec.holds if item.version == wish.version), None):
        return Verdict(answer="deny", reasons=(f"{wish.version} is on hold already: {hold.reason}",))
    hold = Hold(version=wish.version, reason=wish.reason, since=now.replace(microsecond=0))
    return _with(release, holds=(*release.spec.holds, hold))


def _give(release: Release, wish: Give) -> Release | Verdict:
    if not 0 <= wish.share <= 100:
        raise DesiredStateError(f"share: expected a whole number within 0-100, got {wish.share}", reason="OutOfBounds")
    holds = release.spec.holds
    if hold := next((item for item in holds if item.version == wish.version), None):
        if not wish.lift:
            text = f"{wish.version} is on hold: {hold.reason}; say --lift to take the hold away as well"
            return Verdict(answer="hold", reasons=(text,))
        holds = _without(release, wish.version)
    served = {item.version: item.share for item in release.spec.traffic if item.share}
    if served.get(wish.version, 0) == wish.share and holds == release.spec.holds:
        return Verdict(answer="allow", reasons=(f"{wish.version} has {wish.share} percent already",))
    held = {item.version for item in holds}
    others = {name: share for name, share in served.items() if name != wish.version}
    rest = 100 - wish.share
    if held & set(others) and rest > sum(others.values()):
        # Their part may shrink; a version on hold is given none.
        others = {name: share for name, share in others.items() if name not in held}
    if rest and not others:
        text = f"no other version has traffic and no hold, to take the {rest} percent that {wish.version} leaves"
        return Verdict(answer="deny", reasons=(text,))
    order = list(dict.fromkeys((*(item.version for item in release.spec.traffic), wish.version)))
    shares = to_hundred(others, [name for name in order if name in others], whole=rest) if rest else {}
    shares[wish.version] = wish.share
    shadow = "" if shares.get(release.spec.shadow) else release.spec.shadow
    traffic = tuple(Share(version=name, share=shares[name]) for name in order if shares.get(name))
    return _with(release, traffic=traffic, shadow=shadow, holds=holds)


def _go_back(release: Release, wish: GoBack, versions: Sequence[str], now: datetime) -> Release | Verdict:
    served = [item.version for item in release.spec.traffic if item.share]
    version = next((name for name in versions if name in served), "")
    if not version:
        return Verdict(answer="deny", reasons=("nothing that is recorded has traffic: there is nothing to take out",))
    if _is_held(release, version):
        release = _with(release, holds=_without(release, version))
    return roll_back(
        release,
        version=version,
        reason=wish.reason or BY_HAND,
        alert="",
        since=now.replace(microsecond=0),
        earlier=versions[list(versions).index(version) + 1 :],
    )


def _is_held(release: Release, version: str) -> bool:
    return any(hold.version == version for hold in release.spec.holds)


def _without(release: Release, version: str) -> tuple[Hold, ...]:
    return tuple(hold for hold in release.spec.holds if hold.version != version)


def _with(release: Release, **changed: Any) -> Release:
    spec = ReleaseSpec(**{"traffic": release.spec.traffic, "shadow": release.spec.shadow, "holds": release.spec.holds, **changed})
    return release.model_copy(update={"spec": spec})


def _key(signer: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells two signers' keys apart; comments do not."""
    if signer.get("ssh"):
        return ("ssh", *str(signer["ssh"]).split()[:2])
    if signer.get("openpgp"):
        return ("openpgp", "".join(str(signer["openpgp"]).split()))
    return ("sigstore", str(signer.get("identity")), str(signer.get("issuer")))


def _copied(value: Mapping[str, Any]) -> dict[str, Any]:
    return deepcopy(dict(value))
