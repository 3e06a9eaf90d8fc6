"""How commands take what they are about, and how they write what they answer."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer


class Output(StrEnum):
    """How an answer is written."""

    text = "text"
    json = "json"
    yaml = "yaml"


Repo = Annotated[str, typer.Option("--repo", help="Path or URL of the repository.")]
State = Annotated[str, typer.Option("--state", help="Folder of the controller's state.")]
Trust = Annotated[str, typer.Option("--trust", help="File that pins whose commits are trusted.")]
Form = Annotated[Output, typer.Option("-o", "--output", help="text, json or yaml.")]


def show(value: Any, form: Output, text: str) -> None:
    """Write an answer: one document on standard output."""
    if form is Output.json:
        typer.echo(json.dumps(value, indent=2))
    elif form is Output.yaml:
        from controller.adapters.documents import YamlDocuments

        typer.echo(YamlDocuments().render(value if isinstance(value, dict) else {"items": value}).decode(), nl=False)
    else:
        typer.echo(text)


def flat(value: Any) -> str:
    """A value on one line, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(flat(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def since(item: dict[str, Any], at: str) -> str:
    """Since when an outcome has not been done, for people: the day is said where it is another than that of `at`."""
    begun = str(item.get("since") or "")
    if not begun:
        return ""
    day, _, clock = begun.partition("T")
    return f", since {clock[:5]} UTC" if day == at.partition("T")[0] else f", since {day} {clock[:5]} UTC"


def hint(text: str) -> None:
    """Progress and hints go to standard error."""
    typer.echo(text, err=True)
