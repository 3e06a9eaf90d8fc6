"""One line of what `verify` answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One thing, and whether it fits."""

    kind: str
    subject: str
    ok: bool | None
    """None: it could not be checked here."""
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What is said of it by those who signed it, or what came of building it again."""

    def value(self) -> dict[str, Any]:
        """As the contract has it."""
        said = {"subject": self.subject, "kind": self.kind, "ok": self.ok, "reason": self.reason}
        return said | ({"details": dict(self.details)} if self.details else {})
