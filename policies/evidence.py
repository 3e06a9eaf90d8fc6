"""The evidence of a proposal, as Markdown that GitHub, GitLab and Gitea all render.

Law: it follows from versions, releases and the proposal alone, so two looks at the same state write the same text. What
comes from manifests and programs cannot end a table or mention a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from policies.terms.proposal import Proposal
from policies.terms.release import Release
from policies.terms.version import Version

BARS = "▁▂▃▄▅▆▇█"
LONGEST_LINE = 12
"""How many versions a line of bars shows."""
MARKER = "<!-- myelin evidence -->"


def body_of(
    proposal: Proposal,
    *,
    version: Version | None,
    others: Sequence[Version],
    before: Release | None,
    after: Release,
    commit: str,
    alert: str,
    shown: str,
) -> str:
    """What a person is shown.

    Args:
        proposal: The change.
        version: The record of a version that is to come in; None for a rollback of one that is recorded.
        others: All recorded versions of the axon.
        before: What the release says now; None before the first version.
        after: What it would say.
        commit: The commit that it came from.
        alert: Why the version is to go out; empty for a promotion.
        shown: Digest that approvals are bound to.
    """
    known = {item.metadata.name: item for item in others}
    subject = version or known.get(proposal.version)
    incumbent = _incumbent(proposal, before, known)
    parts = [MARKER, _opening(proposal, commit, alert), _traffic(before, after)]
    if subject is not None:
        history = sorted(others, key=lambda item: (item.spec.created_at, item.metadata.name))
        history = [item for item in history if item.metadata.name != subject.metadata.name]
        parts += [_metrics(subject, incumbent, history), _parameters(subject, incumbent), _provenance(subject, incumbent)]
    parts.append(_ending(proposal, shown))
    return "\n\n".join(part for part in parts if part) + "\n"


def sparkline(values: Sequence[float | None]) -> str:
    """Values as bars of eight heights, the lowest and the highest of them at the ends; `·` where there is none.

    Equal values are all half high.
    """
    known = [value for value in values if value is not None and isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    # Halves first: the difference of two large numbers may be none.
    width = high / 2 - low / 2
    return "".join(
        "·"
        if value is None or not isfinite(value)
        else BARS[len(BARS) // 2 - 1]
        if not width
        else BARS[min(int((value / 2 - low / 2) / width * len(BARS)), len(BARS) - 1)]
        for value in values
    )


def _incumbent(proposal: Proposal, before: Release | None, known: Mapping[str, Version]) -> Version | None:
    """The version that has most of the traffic now, besides the one that it is about."""
    shares = sorted(before.spec.traffic, key=lambda item: -item.share) if before else []
    return next((known[item.version] for item in shares if item.version in known and item.version != proposal.version), None)


def _opening(proposal: Proposal, commit: str, alert: str) -> str:
    if proposal.kind == "rollback":
        text = f"**{proposal.version}** of `{_plain(proposal.axon)}` is to be taken out of traffic and held: {_plain(alert)}"
        return f"{text}\n\nIt has no traffic already; closing this request without a merge gives it back."
    return f"**{proposal.version}** of `{_plain(proposal.axon)}`, made from {commit}, is ready to serve."


def _traffic(before: Release | None, after: Release) -> str:
    old = {item.version: item.share for item in before.spec.traffic} if before else {}
    new = {item.version: item.share for item in after.spec.traffic}
    rows = [
        [name, f"{old.get(name, 0)} %", f"{new.get(name, 0)} %"]
        for name in dict.fromkeys((*new, *old))
        if old.get(name) or new.get(name)
    ]
    lines = [_table(["Traffic", "now", "after"], rows)]
    shadow = before.spec.shadow if before else ""
    if after.spec.shadow and after.spec.shadow != shadow:
        lines.append(f"{after.spec.shadow} gets mirrored traffic.")
    elif shadow and not after.spec.shadow:
        lines.append(f"{shadow} gets no mirrored traffic any more.")
    return "\n\n".join(lines)


def _metrics(subject: Version, incumbent: Version | None, history: Sequence[Version]) -> str:
    names = sorted(subject.spec.metrics)
    if not names:
        return ""
    there = incumbent.spec.metrics if incumbent else {}
    head = ["Metric", subject.metadata.name, incumbent.metadata.name if incumbent else "incumbent", "difference", "versions"]
    rows = []
    for name in names:
        value, other = subject.spec.metrics[name], there.get(name)
        line = [item.spec.metrics.get(name) for item in history[-(LONGEST_LINE - 1) :]]
        difference = f"{value - other:+.4g}" if other is not None else "–"
        rows.append(
            [_plain(name), f"{value:.6g}", "–" if other is None else f"{other:.6g}", difference, sparkline([*line, value])]
        )
    return _table(head, rows)


def _parameters(subject: Version, incumbent: Version | None) -> str:
    there = incumbent.spec.parameters if incumbent else {}
    names = sorted({*subject.spec.parameters, *there})
    if not names:
        return ""
    rows = [[_plain(name), _value(subject.spec.parameters.get(name)), _value(there.get(name))] for name in names]
    return _table(["Parameter", subject.metadata.name, incumbent.metadata.name if incumbent else "incumbent"], rows)


def _provenance(subject: Version, incumbent: Version | None) -> str:
    spec = subject.spec
    there = set(incumbent.spec.data) if incumbent else set()
    lines = [f"- commit `{spec.commit}`, run `{_plain(spec.run)}`"]
    lines += [f"- event `{_plain(event)}`" for event in spec.events]
    for digest in spec.data:
        note = "" if incumbent is None else " (the incumbent's too)" if digest in there else " (new)"
        lines.append(f"- data `{digest}`{note}")
    for backend in spec.backends:
        lines.append(f"- image of {_plain(backend.backend)} `{backend.image}`")
        if backend.artifact:
            trial = f", trial {_plain(backend.trial)}" if backend.trial else ""
            lines.append(f"- model of {_plain(backend.backend)} `{backend.artifact}`{trial}")
    if spec.parent:
        lines.append(f"- parent {spec.parent}")
    return "Made of:\n\n" + "\n".join(lines)


def _ending(proposal: Proposal, shown: str) -> str:
    return (
        f"Evidence `{shown}`; an approval counts for it alone. Merging makes it so; closing without a merge is a no that is "
        "kept.\n"
        f"`myelin why {proposal.version}` tells the rest once it is merged."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return _plain(f"{value:.6g}" if isinstance(value, float) else str(value))


def _plain(text: str) -> str:
    """Text that stays text: on one line, without markup, links, mentions and references."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return "".join(f"&#{ord(letter)};" if letter in "|<>&`*_[]@#!~\\" else letter for letter in line)[:500]
