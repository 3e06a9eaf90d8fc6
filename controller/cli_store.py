"""Commands about the store: is all of it as it should be, what of it may go, and a model out of it."""

from __future__ import annotations

from pathlib import Path

import typer

from controller.printing import Output, hint, show
from controller.project import Place
from policies.errors import RefusedError


def verify(place: Place, subject: str, *, rebuild: bool, output: Output) -> None:
    """Check everything, or what belongs to one thing; exit status 1 where the answer is no."""
    from controller import answers
    from controller.answers import contents

    value = answers.verify(place, subject, rebuild=rebuild, tell=hint)
    words, lines = {True: "ok", False: "WRONG", None: "?"}, []
    for item in value["checked"]:
        lines.append(f"{words[item['ok']]:<6} {item['kind']:<8} {item['subject']} {item['reason']}".rstrip())
        if item["kind"] in ("image", "model") and "details" in item:
            lines += [f"{'':<16}{line}" for line in contents.lines_of(item["details"])]
    unknown = sum(item["ok"] is None for item in value["checked"])
    end = "everything fits" if value["ok"] else "something does not fit"
    if not value["ok"] and all(item["ok"] is not False for item in value["checked"]):
        end = "nothing was found wrong, and not everything could be built again"
    end += f", as far as it could be checked here: {unknown} could not" if unknown else ""
    show(value, output, "\n".join([*lines, end]))
    raise typer.Exit(0 if value["ok"] else 1)


def clean(place: Place, *, dry_run: bool, grace_hours: float | None, output: Output) -> None:
    """Remove what nothing needs any more, or only tell."""
    from controller.answers import in_cluster, keeping

    grace_seconds = grace_hours * 3600 if grace_hours is not None else None
    if dry_run:
        value = keeping.removable(place, grace_seconds=grace_seconds)
    elif in_cluster.is_here(place):
        text = "expected a project that no controller follows, this pod's does, and cleans its store once a day"
        raise RefusedError(f"{place.state}: {text}; --dry-run tells what would go")
    else:
        from controller import caretaking, project
        from controller.wiring import wire

        with wire(project.settings_of(place)) as wired:
            done = caretaking.clean(wired.caretaker.store, wired.following, wired.ports, grace_seconds=grace_seconds)
        value = done.value()
    lines = [f"{item['sizeBytes']:>12}  {item['name'] or item['digest']}: {item['why']}" for item in value["removed"]]
    end = f"{value['freedBytes']} bytes {'would be ' if dry_run else ''}freed, {value['kept']} blobs stay"
    lines += [f"not all of it: {value['refused']}"] if value["refused"] else []
    show(value, output, "\n".join([*lines, end]))


def lock(place: Place, into: Path | None, output: Output) -> None:
    """Show the locks of images whose requirements are not locked, or write them into a work tree."""
    from controller.answers import locking

    value = locking.locks(place, into)
    lines = [f"{item['path']}: {'written' if item['written'] else item['title']}" for item in value["locks"]]
    if lines and into is None:
        lines.append("write them into a work tree with --into DIR, and commit them: the images stay the same")
    show(value, output, "\n".join(lines) or "all requirements are locked")


def fetch(place: Place, subject: str, folder: Path, output: Output) -> None:
    """Get a model out of the store, with its signature."""
    from controller.answers import keeping

    value = keeping.fetch(place, subject, folder)
    text = f"{len(value['files'])} files in {folder}, signature in {value['signature']}"
    if value["publicKey"]:
        how = f"--signature {value['signature']} --public_key {value['publicKey']} --no-ignore-git-paths"
        text += f"; check it again with\n  model_signing verify key {folder} {how}"
    show(value, output, text)
