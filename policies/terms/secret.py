"""A secret: text that never shows itself by accident."""

from __future__ import annotations


class Secret:
    """A password or token whose `repr`, `str` and format are stars; `reveal` is the one way to its text.

    Equal texts are equal secrets. A secret is neither pickled nor copied deeply, so it gets into no file that way.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: for the one who sends it, never for a message or a log."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


NO_SECRET = Secret("")
"""Nothing to hide."""
