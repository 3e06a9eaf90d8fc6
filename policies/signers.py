"""Somebody new in a list of signers: the entry, and the document that names them. It writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from policies.errors import DesiredStateError
from policies.terms.project import Signer, Trust


def entry_of(signer: Signer) -> dict[str, Any]:
    """A signer as documents write one: without what is not said."""
    return signer.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def with_signer(document: Mapping[str, Any], signer: Signer) -> dict[str, Any]:
    """A `kind: Project` document, or a trust file, that names one more signer; the given one stays as it is.

    Args:
        document: What the file says. With a `spec` it is a Project, else a trust file.
        signer: Whom it is to name.

    Raises:
        DesiredStateError: The name or the key is named already, or the list cannot be read.
    """
    made = dict(document)
    holder = made
    if "spec" in document or document.get("kind") == "Project":
        for key in ("spec", "trust"):
            inner = {} if holder.get(key) is None else holder[key]
            if not isinstance(inner, Mapping):
                raise DesiredStateError(f"{key}: expected a mapping, got {type(inner).__name__}", reason="Invalid")
            holder[key] = dict(inner)
            holder = holder[key]
    listed = [] if holder.get("signers") is None else holder["signers"]
    if not isinstance(listed, (list, tuple)):
        raise DesiredStateError(f"signers: expected a list, got {type(listed).__name__}", reason="Invalid")
    holder["signers"] = [*listed, entry_of(signer)]
    try:
        Trust.model_validate({"signers": holder["signers"]})
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        text = what if what.startswith("expected") else f"expected signers, got an entry that is none: {what}"
        raise DesiredStateError(f"signers: {text}", reason="Invalid") from error
    return made
