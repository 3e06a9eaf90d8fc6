"""The one place that asks what time it is."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """This instant, aware, UTC."""
        return datetime.now(UTC)

    def parse(self, text: str) -> datetime:
        """Read an instant as RFC 3339."""
        return datetime.fromisoformat(text)
