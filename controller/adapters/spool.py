"""Events that came in by HTTP: on disk before the sender hears yes, until a pass took them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from policies.terms.event import Event


class Spool:
    """Implements `reconcilers.ports.Inbox`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, event: Event) -> None:
        """Keep an event; the same one twice is kept once."""
        value = {
            "id": event.id,
            "kind": event.kind,
            "axon": event.axon,
            "sensor": event.sensor,
            "trigger": event.trigger,
            "at": event.at.isoformat(),
            "data": dict(event.data),
        }
        with tempfile.NamedTemporaryFile("w", dir=self._folder, prefix="new-", delete=False) as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self._place(event.id))

    def received(self) -> tuple[Event, ...]:
        """Events not taken yet, oldest first."""
        found = []
        for path in self._folder.glob("event-*.json"):
            value = json.loads(path.read_bytes())
            found.append(Event(**{**value, "at": datetime.fromisoformat(value["at"])}))
        return tuple(sorted(found, key=lambda event: (event.at, event.id)))

    def taken(self, ids: Sequence[str]) -> None:
        """Forget these."""
        for identity in ids:
            self._place(identity).unlink(missing_ok=True)

    def _place(self, identity: str) -> Path:
        return self._folder / f"event-{identity.removeprefix('sha256:')}.json"
