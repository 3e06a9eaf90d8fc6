"""The next share of each version: a candidate comes in, a bad one goes out.

Laws: the shares of a release sum to 100 or there are none; a version on hold is never given traffic; after a rollback
the versions that stay keep their proportion, and those on hold what they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from policies.terms.release import Hold, Release, ReleaseMetadata, ReleaseSpec, Share
from policies.terms.verdict import Verdict


def promote(
    release: Release | None,
    *,
    axon: str,
    deployer: str,
    version: str,
    weights: Mapping[int, int],
    shadow_index: int | None,
    earlier: Sequence[str],
    is_by_hand: bool = False,
    is_shadow_by_hand: bool = False,
) -> Release | Verdict:
    """Let a new version in, with the share that the deployer's rollout gives to the newest.

    Args:
        release: What the release says now; None before the first version.
        axon: The axon's name.
        deployer: The deployer's name.
        version: The new version.
        weights: Index by recency (0 is the new version) -> weight; empty: everything to the new one. Indices that
            no version has are left out, and the rest fills up to 100.
        shadow_index: Index of the version that gets mirrored traffic, None for none.
        earlier: Versions of this deployer before it that may get traffic, newest first.
        is_by_hand: Whether a person divided the traffic as it is: then what the new version leaves stays divided like that,
            and nobody whom the person put in goes out, unless the rule gives everything to the newest.
        is_shadow_by_hand: Whether a person chose who gets mirrored traffic, or that nobody does: that stays,
            where it still can be. Where the rule names none it stays in any case.
    """
    spec = release.spec if release else ReleaseSpec()
    held = {hold.version for hold in spec.holds}
    if version in held:
        return Verdict(answer="hold", reasons=(f"{version} is on hold in the release",))
    served = [name for name in earlier if name not in held and name != version]
    order = [version, *served]
    wanted = {order[index]: weight for index, weight in (weights or {0: 100}).items() if index < len(order) and weight > 0}
    if not wanted:
        wanted = {version: 100}
    if shadow_index is None or is_shadow_by_hand:
        shadow = "" if spec.shadow in held else spec.shadow
    else:
        shadow = order[shadow_index] if shadow_index < len(order) else ""
    shares = to_hundred(wanted, order)
    others = {item.version: item.share for item in spec.traffic if item.share and item.version not in (version, *held)}
    if is_by_hand and others:
        order = list(dict.fromkeys((version, *others)))
        own = shares.get(version, 0)
        shares = {version: own, **to_hundred(others, order, whole=100 - own)} if own < 100 else {version: 100}
        shares = {name: share for name, share in shares.items() if share}
    if shadow in shares:
        shadow = ""
    return _release(axon, deployer, shares, shadow, spec.holds)


def roll_back(
    release: Release,
    *,
    version: str,
    reason: str,
    alert: str,
    since: datetime,
    earlier: Sequence[str],
) -> Release | Verdict:
    """Take a version out of traffic and put it on hold; a hold that it has already stays as it is.

    Its share goes to the versions that stay and are not on hold, in their proportion; where there is none, to the newest
    earlier version that is not on hold. A version that a person serves although it is on hold keeps what it has.

    Args:
        release: What the release says now.
        version: The version to take out.
        reason: The alert's name, value and threshold, for people.
        alert: Event id of the alert.
        since: When it began to fire.
        earlier: Versions of this deployer that are older than it, newest first.
    Returns:
        The new release; a verdict when there is nothing to go back to or nothing to do.
    """
    held = {hold.version for hold in release.spec.holds}
    served = {share.version: share.share for share in release.spec.traffic if share.share > 0}
    if version in held and version not in served:
        return Verdict(answer="hold", reasons=(f"{version} is on hold already",))
    kept = {name: share for name, share in served.items() if name != version and name in held}
    stays = {name: share for name, share in served.items() if name != version and name not in held}
    if not stays:
        candidates = [name for name in earlier if name != version and name not in held]
        if not candidates:
            return Verdict(answer="deny", reasons=(f"{version} is the only version that may serve: there is none to go back to",))
        stays = {candidates[0]: 100}
    shares = {**kept, **to_hundred(stays, list(stays), whole=100 - sum(kept.values()))}
    shares = {name: shares[name] for name in dict.fromkeys((*served, *stays)) if shares.get(name)}
    shadow = "" if release.spec.shadow in (version, *shares) else release.spec.shadow
    hold = Hold(version=version, reason=reason, alert=alert, since=since)
    holds = release.spec.holds if version in held else (*release.spec.holds, hold)
    return _release(release.metadata.axon, release.metadata.name, shares, shadow, holds)


def _release(axon: str, deployer: str, shares: Mapping[str, int], shadow: str, holds: Sequence[Hold]) -> Release:
    return Release(
        metadata=ReleaseMetadata(name=deployer, axon=axon),
        spec=ReleaseSpec(
            traffic=tuple(Share(version=version, share=share) for version, share in shares.items()),
            shadow=shadow,
            holds=tuple(holds),
        ),
    )


def to_hundred(weights: Mapping[str, int], order: Sequence[str], *, whole: int = 100) -> dict[str, int]:
    """Whole shares in the proportion of `weights` that sum to `whole`; what rounding leaves over goes to the largest remainders.

    Args:
        weights: Name -> weight; above 0 in sum.
        order: All names, those first that go before others of an equal remainder.
        whole: What the shares sum to, in percent.
    """
    total = sum(weights.values())
    names = [name for name in order if name in weights]
    exact = {name: weights[name] * whole for name in names}
    shares = {name: exact[name] // total for name in names}
    # The largest remainders take what rounding left over, earlier in order first, so that the sum is 100.
    rest = sorted(names, key=lambda name: (-(exact[name] % total), names.index(name)))
    for name in rest[: whole - sum(shares.values())]:
        shares[name] += 1
    return shares
