"""The command line: verbs first, the words of the glossary; each command is a few lines."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from controller import cli_acts
from controller.printing import Form, Output, Repo, State, Trust, flat, hint, show, since
from policies.errors import ControllerError, DesiredStateError, RefusedError, TrustError

# Plain help: the rich one takes 0.13 s to import.
app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="GitOps for machine learning.",
)


def main() -> None:
    """Run a command; an error is one line and an exit status, never a traceback."""
    try:
        app(standalone_mode=True)
    except DesiredStateError as error:
        for fault in error.faults:
            typer.echo(str(fault), err=True)
        if not error.faults:
            typer.echo(f"myelin: {error.message}", err=True)
        sys.exit(1)
    except (TrustError, RefusedError) as error:
        typer.echo(f"myelin: {error.message}", err=True)
        sys.exit(3)
    except ControllerError as error:
        typer.echo(f"myelin: {error.message}", err=True)
        sys.exit(4)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"myelin: {where}{error.strerror or error}", err=True)
        sys.exit(4)
    except Exception as error:  # a person is told in one line; whoever mends it asks for more
        if os.environ.get("MYELIN_TRACEBACK"):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        typer.echo(f"myelin: a fault in Myelin itself: {text}; MYELIN_TRACEBACK=1 shows where", err=True)
        sys.exit(4)


@app.command()
def init(folder: Path, output: Form = Output.text) -> None:
    """Make a new project repository from the example, signed with a key made on the spot."""
    from controller import project
    from controller.adapters.clock import SystemClock

    place = project.make(folder, now=SystemClock().now())
    value = {"folder": str(folder), "repository": place.url, "state": str(place.state), "trust": str(place.trust)}
    show(value, output, f"{folder} is ready: cd {folder} && myelin run")


@app.command()
def run(
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    once: Annotated[bool, typer.Option(help="One pass.")] = False,
    until_idle: Annotated[bool, typer.Option(help="Until nothing is due or running.")] = False,
    branch: Annotated[str, typer.Option(help="The branch that is the truth.")] = "main",
    git_access: Annotated[str, typer.Option(help="Folder with the files of a login to the Git server.")] = "",
    port: Annotated[int | None, typer.Option(help="Port of the first deployer's proxy.")] = None,
    inbox_port: Annotated[int | None, typer.Option(help="Port of the inbox.")] = None,
    isolation: Annotated[str | None, typer.Option(help="bubblewrap or none.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the servers that an earlier run left, and exit.")] = False,
) -> None:
    """Follow the repository and make it so, until stopped. Jobs and servers outlive it; the next run takes them up."""
    from controller import follow, project
    from controller.stopping import stop_servers

    place = project.find(repo, state=state, trust=trust, git_access=git_access)
    if stop:
        hint(f"{stop_servers(place.state)} servers ended")
        return
    settings = project.settings_of(place, branch=branch, proxy_port=port, inbox_port=inbox_port, isolation=isolation)
    report = follow.follow(settings, tell=hint, once=once, until_idle=until_idle)
    if report is not None and report.observed is not None and report.observed.servers:
        hint(f"{len(report.observed.servers)} servers go on; `myelin run --stop` ends them, `myelin run` takes them up again")
    if report is not None and any(item.state == "stalled" for item in report.outcomes) and (once or until_idle):
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option("--dir", help="Folder of the demo; a fresh one when not given.")] = None,
    keep: Annotated[bool, typer.Option(help="Go on serving at the end.")] = False,
) -> None:
    """Tell the whole story on this machine: push, build, tune, serve, alert, rollback commit."""
    from controller import demo as story

    raise typer.Exit(story.tell(folder, keep=keep))


@app.command()
def lint(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders; this folder when not given.")] = None,
    output: Form = Output.text,
) -> None:
    """Every fault of every manifest at once, with file, line and the nearest valid key."""
    from controller import answers

    faults, warnings = answers.lint(paths or [Path()])
    value = [
        {"file": item.file, "line": item.line, "path": item.path, "reason": item.reason, "message": item.message}
        for item in (*faults, *warnings)
    ]
    lines = [str(item) for item in faults] + [f"{item} (warning)" for item in warnings]
    show({"faults": value}, output, "\n".join(lines) or "no faults")
    raise typer.Exit(1 if faults else 0)


@app.command()
def plan(
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    events: Annotated[Path | None, typer.Option(help="JSON file with events that are taken to have happened.")] = None,
    against: Annotated[str, typer.Option(help="A branch, tag or commit: only what differs from the plan there.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="With --against: as Markdown.")] = False,
    comment: Annotated[int | None, typer.Option(help="With --against: as a comment on the pull request of that number.")] = None,
    output: Form = Output.text,
) -> None:
    """What would be built, run, deployed and committed, and why; nothing is done. Any folder with manifests will do."""
    from controller import answers, project

    if against:
        from controller import cli_acts

        cli_acts.plan_against(project.find(repo, state=state, trust=trust), against, events, markdown, comment, output)
    value = answers.plan(project.find(repo, state=state, trust=trust, bare_folder=True), events)
    lines = [f"{value['revision']}", *(f"fault    {item}" for item in value["faults"])]
    lines += [f"refused  {value['trust']}"] if value["trust"] else []
    lines += [f"remote   {item}: not resolved, sources from elsewhere are not built yet" for item in value["unresolved"]]
    for step in value["steps"]:
        what = " ".join(part for part in (step["axon"], step["task"]) if part)
        lines.append(f"{step['kind']:<12} {what}: {step['reason']}")
        shown = {key: item for key, item in step["inputs"].items() if key in _PLANNED and item}
        lines += [f"{'':<12}   {key} {flat(item)}" for key, item in shown.items()]
    show(value, output, "\n".join(lines if value["steps"] else [*lines, "nothing is due"]))
    raise typer.Exit(1 if value["faults"] else 0)


_PLANNED = ("repository", "folder", "tree", "trials", "brackets", "modelFromResult", "version", "traffic", "commits", "server")
"""What of a step's inputs is shown to a person."""


@app.command()
def status(axon: Annotated[str, typer.Argument()] = "", repo: Repo = ".", state: State = "", output: Form = Output.text) -> None:
    """What is desired, what runs, what waits and for what."""
    from controller import answers, project

    value = answers.status(project.find(repo, state=state), axon)
    by = f" signed by {value['signer']}" if value["signer"] else ""
    lines = [f"{value['revision'] or 'nothing read yet'}{by}, looked at {value['at']}, jobs run with {value['isolation']}"]
    if not value["running"]:
        lines.append("the controller that saw this does not run any more; start `myelin run`")
    if value.get("unsigned"):
        lines.append(f"UNSAFE: {value['unsigned']} unsigned commits were accepted, because the trust file allows it")
    lines += [
        f"{item['state']:<8} {item['subject']}: {item['reason']}: {item['message']}{since(item, value['at'])}"
        for item in value["outcomes"]
    ]
    lines += [f"{item['phase']:<8} {item['name']} at {item['address']} {item['message']}" for item in value["servers"]]
    if not value["outcomes"] and value["running"]:
        lines.append("everything is as it should be")
    show(value, output, "\n".join(lines))


@app.command()
def history(axon: str, repo: Repo = ".", state: State = "", trust: Trust = "", output: Form = Output.text) -> None:
    """Versions, promotions, rollbacks and holds, by whom and why, newest first."""
    from controller import answers, project

    value = answers.history(project.find(repo, state=state, trust=trust), axon)
    lines = [
        f"{item['at']}  {item['version']:<13} {item['what']:<9} by {item['by']}"
        f"{' (NOT TRUSTED)' if item['trusted'] is False else ''}  {item['commit'][:12]}  {item['why']}"
        for item in value
    ]
    show(value, output, "\n".join(lines) or f"nothing happened to {axon} yet")


@app.command()
def why(
    subject: Annotated[str, typer.Argument(help="A version, URL, image, model or commit.")],
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    output: Form = Output.text,
) -> None:
    """From an answer back to commit, events, images, data, parameters, metrics, parent and signers."""
    from controller import answers, project

    value = answers.why(project.find(repo, state=state, trust=trust), subject)
    show(value, output, "\n".join(f"{key:<12} {flat(item)}" for key, item in value.items()))


@app.command()
def verify(
    subject: Annotated[
        str, typer.Argument(help="A version, a model, or an image: digest, tag or host/path@sha256:…; everything when not given.")
    ] = "",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build images again from their provenance, and compare.")] = False,
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    output: Form = Output.text,
) -> None:
    """Signatures, record chain and digests of everything."""
    from controller import cli_store, project

    cli_store.verify(project.find(repo, state=state, trust=trust), subject, rebuild=rebuild, output=output)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A version, or a URL, image, model or commit of one.")],
    after: Annotated[str, typer.Argument(help="Another.")],
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    output: Form = Output.text,
) -> None:
    """What differs between two versions: code, manifest, data, parameters, metrics, environment, routes, images."""
    from controller import answers, project
    from controller.answers import differing

    value = answers.diff(project.find(repo, state=state, trust=trust), before, after)
    show(value, output, "\n".join(differing.told(value)))


@app.command()
def ledger(
    begin: Annotated[str, typer.Option("--since", help="Only what was recorded at this instant or later, RFC 3339.")] = "",
    axon: Annotated[str, typer.Option(help="Only what concerns this axon.")] = "",
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
) -> None:
    """The ledger as JSON lines: each entry with its digest, the one before, and its signature."""
    from controller import project
    from controller.answers import proof

    place = project.find(repo, state=state, trust=trust)
    for line in proof.ledger(place, since=proof.instant(begin) if begin else None, axon=axon):
        sys.stdout.buffer.write(line + b"\n")


@app.command()
def clean(
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    grace: Annotated[float | None, typer.Option(help="Hours: what was used this lately stays; at least one.", min=1.0)] = None,
    output: Form = Output.text,
) -> None:
    """Remove images, models and data that nothing needs any more. A controller that runs does so once a day."""
    from controller import cli_store, project

    cli_store.clean(project.find(repo, state=state, trust=trust), dry_run=dry_run, grace_hours=grace, output=output)


@app.command()
def fetch(
    subject: Annotated[str, typer.Argument(help="The digest of a model, or a version.")],
    folder: Annotated[Path, typer.Argument(help="Where to; nothing may be there yet.")],
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    output: Form = Output.text,
) -> None:
    """Get a model out of the store, with its signature beside it, checked."""
    from controller import cli_store, project

    cli_store.fetch(project.find(repo, state=state, trust=trust), subject, folder, output)


@app.command()
def lock(
    repo: Repo = ".",
    state: State = "",
    trust: Trust = "",
    into: Annotated[Path | None, typer.Option(help="A work tree to write them into.")] = None,
    output: Form = Output.text,
) -> None:
    """Show what was installed where requirements are not locked, as the files that lock it."""
    from controller import cli_store, project

    cli_store.lock(project.find(repo, state=state, trust=trust), into, output)


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="AXON/TASK, AXON/TASK/TRIAL, a version, run, job or server.")],
    repo: Repo = ".",
    state: State = "",
    output: Form = Output.text,
) -> None:
    """What jobs and servers printed."""
    from controller import answers, project

    found = answers.logs(project.find(repo, state=state), name)
    value = [{"name": job, "text": text} for job, text in found]
    show(value, output, "\n".join(f"==> {job} <==\n{text.rstrip()}" for job, text in found))


@app.command()
def endpoint(axon: str, repo: Repo = ".", state: State = "", output: Form = Output.text) -> None:
    """Public, per-version and per-backend URLs."""
    from controller import answers, project

    value = answers.endpoint(project.find(repo, state=state), axon)
    lines = [entry["modelStable"]["publicUrl"] for entry in value]
    lines += [backend["url"] for entry in value for model in entry["models"] for backend in model["backends"]]
    show(value, output, "\n".join(lines) or f"{axon} serves nothing yet")


@app.command()
def fire(
    target: Annotated[str, typer.Argument(help="AXON/SENSOR or AXON/SENSOR/TRIGGER")],
    data: Annotated[Path | None, typer.Option(help="JSON file with the event's content.")] = None,
    repo: Repo = ".",
    state: State = "",
    output: Form = Output.text,
) -> None:
    """Send a REST trigger's event, as any HTTP client could."""
    from controller import inbox, project

    place = project.find(repo, state=state)
    identity = inbox.fire(place.state / "inbox", target, data.read_bytes() if data else b"")
    show({"id": identity}, output, identity)


@app.command()
def hooks(
    base: Annotated[str, typer.Option(help="What forges reach the inbox by, https://….")] = "",
    repo: Repo = ".",
    state: State = "",
    output: Form = Output.text,
) -> None:
    """Addresses and secret of the webhooks that wake the controller, and where to enter them. It prints a secret."""
    from controller import inbox, project

    value = inbox.webhooks(project.find(repo, state=state).state / "inbox", base=base)
    lines = [f"{'secret':<10} {value['secret']}", *(f"{kind:<10} {url}" for kind, url in value["urls"].items())]
    show(value, output, "\n".join([*lines, "", *inbox.HOW_TO_ENTER]))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="project, axon, release or version; all four when not given.")] = "",
    crd: Annotated[bool, typer.Option("--crd", help="As CustomResourceDefinition, for `kubectl apply -f -`.")] = False,
    output: Form = Output.text,
) -> None:
    """JSON Schema of the documents, for editors, or their CustomResourceDefinitions, for Kubernetes."""
    from policies import crds

    kinds = [name for name in crds.DEFINITIONS if kind.lower() in ("", name.lower())]
    if not kinds:
        raise typer.BadParameter(f"expected one of {', '.join(crds.DEFINITIONS).lower()}, got {kind}")
    made = [crds.custom_resource_definition(name) if crd else crds.json_schema(name) for name in kinds]
    value = made[0] if kind else made
    if crd and output is not Output.json:
        # Documents, and not one list, because kubectl reads them.
        typer.echo("".join(f"---\n{crds.as_yaml(item)}" for item in made), nl=False)
    else:
        show(value, output, json.dumps(value, indent=2))


@app.command()
def operate() -> None:
    """The controller of a cluster, in its pod: follow the Projects of the namespaces that the chart names."""
    from controller import operate as cluster

    cluster.operate(cluster.settings_from(), tell=hint)


_ED25519 = "An Ed25519 image key in place of P-256; OpenSSF model-signing, and so our models, takes P-256 only."
Owner = Annotated[
    str, typer.Option("--project", help="NAMESPACE/NAME of the project in a cluster, which an embedded Sigstore names.")
]
keys_app = typer.Typer(no_args_is_help=True, help="Keys of a project: the controller's own, and the one that signs images.")
app.add_typer(keys_app, name="keys")


@keys_app.command("new")
def keys_new(
    folder: Path,
    openpgp: Annotated[
        bool, typer.Option("--openpgp", help="Also `controller.asc`, which then signs commits; beside keys that are there.")
    ] = False,
    user_id: Annotated[
        str, typer.Option("--user-id", help="Whom the OpenPGP key names, `Name <address>`.")
    ] = "Myelin <myelin@localhost>",
    ed25519: Annotated[bool, typer.Option("--ed25519", help=_ED25519)] = False,
    sigstore: Annotated[
        bool,
        typer.Option(
            "--sigstore", help="Also `sigstore.seed`: images are signed as an identity as well; beside keys that are there."
        ),
    ] = False,
    owner: Owner = "",
    output: Form = Output.text,
) -> None:
    """Make `controller` and `image.pem` in a folder, for a Secret of the cluster."""
    from controller import keyring
    from controller.adapters.clock import SystemClock

    made = keyring.make(
        folder,
        openpgp=user_id if openpgp else "",
        kind="ed25519" if ed25519 else "p256",
        seed_at=SystemClock().now() if sigstore else None,
        owner=keyring.owner_of(owner),
    )
    show_keys(made, output)


@keys_app.command("show")
def keys_show(
    folder: Path,
    trusted_root: Annotated[
        Path | None, typer.Option("--trusted-root", help="Write the identity's trusted root there, for `cosign verify`.")
    ] = None,
    owner: Owner = "",
    output: Form = Output.text,
) -> None:
    """The public keys of a folder: for `git log --show-signature`, for `cosign verify`, and for forges where there is OpenPGP.

    Where images are signed as an identity, that and who vouches for it as well.
    """
    from controller import keyring

    value = keyring.shown(folder, keyring.owner_of(owner))
    if trusted_root is not None:
        keyring.write_root(value, trusted_root)
    show_keys(value, output)


@keys_app.command("rotate")
def keys_rotate(
    folder: Path,
    ed25519: Annotated[bool, typer.Option("--ed25519", help=_ED25519)] = False,
    output: Form = Output.text,
) -> None:
    """Make a new `image.pem`, and keep the public key of the old one, so that what it signed goes on loading."""
    from controller import image_keys, keyring

    kept = image_keys.rotate(folder, "ed25519" if ed25519 else "p256")
    show_keys({**keyring.shown(folder), "kept": kept}, output)
    hint(f"the old one's public key is {kept}; start the controller again, and pin the new one as `images` where there is a pin")


@keys_app.command("retire")
def keys_retire(
    folder: Path,
    name: Annotated[str, typer.Argument(help="Its file, `image-….pub.pem`, or the part in the middle.")],
    output: Form = Output.text,
) -> None:
    """Take a former image key away: what it alone signed loads nowhere any more, and is built again."""
    from controller import image_keys, keyring

    gone = image_keys.retire(folder, name)
    show_keys({**keyring.shown(folder), "retired": gone}, output)
    hint("start the controller again, and take that key out of `images` where there is a pin")


def show_keys(value: dict[str, Any], form: Output) -> None:
    """Write public keys."""
    lines = [f"{value['controller']} myelin", value["image"].rstrip(), *(pem.rstrip() for pem in value.get("formerImages", ()))]
    lines += [value.get("openpgp", ""), value.get("sigstore", "")]
    show(value, form, "\n".join(line for line in lines if line))


cli_acts.register(app)
