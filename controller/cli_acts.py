"""The commands that make a commit by the person who types them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from controller.printing import Form, Output, Repo, State, Trust, hint, show
from policies.errors import DesiredStateError, RefusedError

if TYPE_CHECKING:
    from controller.acting import Deed
    from controller.project import Place

Reason = Annotated[str, typer.Option("--reason", help="Why: it is written into the commit and the document.")]
Ask = Annotated[
    bool,
    typer.Option("--pull-request", help="Push to a branch of its own, and ask for it to be merged where there is a forge."),
]
Version = Annotated[str, typer.Argument(help="A version, or a beginning of its name that fits one only.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(hold)
    app.command()(lift)
    app.command()(promote)
    app.command()(rollback)
    app.command()(suspend)
    app.command()(resume)
    app.add_typer(trust_app, name="trust")


def hold(
    version: Version,
    reason: Reason,
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    ask: Ask = False,
    output: Form = Output.text,
) -> None:
    """Keep a version from being let in, by a commit, until a commit lifts it. Traffic that it has stays."""
    from controller import acting
    from policies.acting import HoldBack

    deed = acting.on_release(version, lambda name: HoldBack(version=name, reason=_said(reason)), lambda name: f"hold {name}")
    _act(lambda: deed, f"hold-{version}", repo, state, trust, ask, output)


def lift(
    version: Version, repo: Repo = ".", state: State = "", trust: Trust = "", ask: Ask = False, output: Form = Output.text
) -> None:
    """Take a version's hold away, by a commit. It gets no traffic by that."""
    from controller import acting
    from policies.acting import Lift

    deed = acting.on_release(version, lambda name: Lift(version=name), lambda name: f"lift the hold of {name}")
    _act(lambda: deed, f"lift-{version}", repo, state, trust, ask, output)


def promote(
    version: Version,
    share: Annotated[int, typer.Option("--share", help="Percent of the traffic, 0-100; the others keep their proportion.")] = 100,
    lifts: Annotated[bool, typer.Option("--lift", help="Take its hold away as well.")] = False,
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    ask: Ask = False,
    output: Form = Output.text,
) -> None:
    """Give a version a share of the traffic, by a commit."""
    from controller import acting
    from policies.acting import Give

    deed = acting.on_release(
        version, lambda name: Give(version=name, share=share, lift=lifts), lambda name: f"give {name} {share} percent"
    )
    _act(lambda: deed, f"promote-{version}-{share}", repo, state, trust, ask, output)


def rollback(
    axon: str,
    deployer: Annotated[str, typer.Option(help="Which, where the axon has several.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why: it is written into the hold.")] = "",
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    ask: Ask = False,
    output: Form = Output.text,
) -> None:
    """Take the newest version with traffic out and put it on hold, by a commit; what was good before it serves."""
    from controller import acting

    _act(lambda: acting.go_back(axon, deployer, reason), f"rollback-{axon}", repo, state, trust, ask, output)


def suspend(
    axon: str,
    reason: Reason,
    until: Annotated[str, typer.Option(help="Its end: 2026-02-01T08:00:00Z, or 36h from now.")] = "",
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    ask: Ask = False,
    output: Form = Output.text,
) -> None:
    """Let an axon start nothing new, by a commit. What serves goes on serving."""
    from controller import acting

    _act(lambda: acting.suspend(axon, _said(reason), until), f"suspend-{axon}", repo, state, trust, ask, output)


def resume(
    axon: str, repo: Repo = ".", state: State = "", trust: Trust = "", ask: Ask = False, output: Form = Output.text
) -> None:
    """Let a suspended axon start again what is due, by a commit."""
    from controller import acting

    _act(lambda: acting.resume(axon), f"resume-{axon}", repo, state, trust, ask, output)


trust_app = typer.Typer(no_args_is_help=True, help="Who may change the repository.")


@trust_app.command("add")
def trust_add(
    name: str,
    ssh: Annotated[Path | None, typer.Option(help="File with an SSH public key.")] = None,
    openpgp: Annotated[Path | None, typer.Option(help="File with an armored OpenPGP certificate.")] = None,
    identity: Annotated[str, typer.Option(help="A Sigstore identity, with --issuer.")] = "",
    issuer: Annotated[str, typer.Option(help="Who vouches for it, https://…")] = "",
    path: Annotated[list[str] | None, typer.Option("--path", help="What the signer may change; all when not given.")] = None,
    until: Annotated[str, typer.Option(help="Until when: 2026-02-01T08:00:00Z, or 36h from now.")] = "",
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    ask: Ask = False,
    output: Form = Output.text,
) -> None:
    """Name one more signer in spec.trust.signers of myelin.yaml, by a commit."""
    from controller import acting
    from controller.adapters.clock import SystemClock
    from policies.acting import instant_of

    if [bool(ssh), bool(openpgp), bool(identity)].count(True) != 1 or bool(identity) != bool(issuer):
        raise typer.BadParameter("expected exactly one of --ssh FILE, --openpgp FILE, and --identity with --issuer")
    signer: dict[str, Any] = {"name": name}
    signer |= {"ssh": acting.public_key(ssh)} if ssh else {}
    signer |= {"openpgp": acting.certificate(openpgp)} if openpgp else {}
    signer |= {"identity": identity, "issuer": issuer} if identity else {}
    signer |= {"paths": path} if path else {}
    signer |= {"validUntil": f"{instant_of(until, SystemClock().now()):%Y-%m-%dT%H:%M:%SZ}"} if until else {}
    _act(lambda: acting.trust(signer), f"trust-{name}", repo, state, trust, ask, output)


def plan_against(
    place: Place, revision: str, events: Path | None, markdown: bool, comment: int | None, output: Output
) -> NoReturn:
    """Write what differs from the plan at a revision, and exit: 1 when anything does."""
    from controller import acting
    from controller.answers import against

    value, base = against.against(place, revision, events)
    text = against.markdown(value)
    if comment is not None:
        # By the base's word: what is proposed must not say where the token goes.
        forge = acting.forge_for(base, place.url)
        if forge is None:
            message = f"comment: expected spec.writeBack.forge at {revision}, on the repository's host, and {acting.TOKEN}"
            raise RefusedError(message, reason="NoForge")
        forge.comment(comment, marker=against.MARKER, body=text)
        hint(f"said on pull request {comment}")
    show(value, output, text.rstrip() if markdown else "\n".join(against.told(value)))
    raise typer.Exit(1 if value["differs"] else 0)


def _act(deed: Callable[[], Deed], name: str, repo: str, state: str, trust: str, ask: bool, output: Output) -> None:
    from controller import acting, project
    from controller.adapters.clock import SystemClock

    place = project.find(repo, state=state, trust=trust)
    done = acting.act(place, deed(), name=name, now=SystemClock().now(), pull_request=ask)
    if not done["commit"]:
        text = f"nothing to change: {done['told']}"
    else:
        where = done["pullRequest"] or done["branch"]
        text = f"{done['told']}\n{done['commit'][:12]} on {where}"
        if ask and not done["pullRequest"]:
            hint(f"make a pull request from {done['branch']}; nobody was asked, for want of a forge or of {acting.TOKEN}")
    show(done, output, text)


def _said(reason: str) -> str:
    if not reason.strip():
        raise DesiredStateError("reason: expected some words, got none")
    return " ".join(reason.split())
