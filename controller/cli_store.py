"""Commands about the store: what of it may go, and a model out of it."""

from __future__ import annotations

from pathlib import Path

from controller.printing import Output, show
from controller.project import Place
from policies.errors import RefusedError


def clean(place: Place, *, dry_run: bool, grace_hours: float, output: Output) -> None:
    """Remove what nothing needs any more, or only tell."""
    from controller.answers import in_cluster, keeping

    grace_seconds = grace_hours * 3600
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


def fetch(place: Place, subject: str, folder: Path, output: Output) -> None:
    """Get a model out of the store, with its signature."""
    from controller.answers import keeping

    value = keeping.fetch(place, subject, folder)
    text = f"{len(value['files'])} files in {folder}, signature in {value['signature']}"
    if value["publicKey"]:
        how = f"--signature {value['signature']} --public_key {value['publicKey']} --no-ignore-git-paths"
        text += f"; check it again with\n  model_signing verify key {folder} {how}"
    show(value, output, text)
