"""The door to ruamel.yaml: text <-> plain values with lines; edits keep comments, order and quoting."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import isfinite
from typing import Any

from policies.errors import DesiredStateError, Fault
from policies.terms.document import LoadedDocument

LARGEST_BYTES = 1 << 20
MOST_NODES = 50_000
"""A document that says more than this through its aliases is refused: it would fill the memory."""
DEEPEST = 100
LARGEST_INTEGER = 2**53 - 1
"""What JSON carries exactly on any machine; a digest of more would not be the same everywhere."""
_DASH_AFTER_KEY = re.compile(rb"^( *)(?:- )?[^\s#-][^\n]*:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE)


class YamlDocuments:
    """Implements `reconcilers.ports.Documents`."""

    def load(self, text: bytes, file: str) -> LoadedDocument:
        """Read a document with its line numbers.

        Raises:
            DesiredStateError: Not YAML, too large, or a key twice; with file and line.
        """
        if len(text) > LARGEST_BYTES:
            raise _fault(file, 1, f"expected at most {LARGEST_BYTES} bytes, got {len(text)}", "TooLarge")
        with _translated(file, text):
            node = _composer().compose(io.StringIO(text.decode("utf-8-sig")))
        lines: dict[tuple[str | int, ...], int] = {(): 1}
        faults: list[Fault] = []
        value = None if node is None else _Reader(file, lines, faults).read(node, ())
        if faults:
            raise DesiredStateError(str(faults[0]), reason=faults[0].reason, faults=tuple(faults))
        return LoadedDocument(file=file, value=value, lines=lines)

    def render(self, value: Mapping[str, Any]) -> bytes:
        """A new document."""
        out = io.BytesIO()
        _round_trip().dump(_plain(value), out)
        return out.getvalue()

    def edit(self, text: bytes, value: Mapping[str, Any]) -> bytes:
        """The document with `value` as content; what did not change keeps comments, order, quoting and indentation.

        Raises:
            DesiredStateError: The text is no YAML document.
        """
        before, after = self.load(text, "the document").value, _plain(value)
        if not isinstance(before, dict):
            return self.render(value)
        if _same(before, after):
            return text
        ends_in_cr = b"\r\n" in text
        text = text.replace(b"\r\n", b"\n")
        yaml = _round_trip()
        # Lists directly below their key are as common as indented ones: keep what the author does.
        if dash := _DASH_AFTER_KEY.search(text):
            offset = len(dash[2]) - len(dash[1])
            if 0 <= offset <= 8:
                yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
        yaml.explicit_start = text.startswith(b"---")
        document = yaml.load(io.BytesIO(text))
        _merge(document, before, after)
        out = io.BytesIO()
        yaml.dump(document, out)
        edited = out.getvalue()
        # A change inside of an aliased part would show everywhere: what is said goes before how it looks.
        if not _same(self.load(edited, "the document").value, after):
            edited = self.render(value)
        return edited.replace(b"\n", b"\r\n") if ends_in_cr else edited


class _Reader:
    """Turns composed nodes into plain values, noting lines and what is wrong."""

    def __init__(self, file: str, lines: dict[tuple[str | int, ...], int], faults: list[Fault]) -> None:
        self._file, self._lines, self._faults = file, lines, faults
        self._nodes = 0
        self._constructor: Any = None

    def read(self, node: Any, path: tuple[str | int, ...]) -> Any:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        self._nodes += 1
        if self._nodes > MOST_NODES or len(path) > DEEPEST:
            message = f"expected at most {MOST_NODES} values, {DEEPEST} deep; aliases make it more"
            raise _fault(self._file, node.start_mark.line + 1, message, "TooLarge")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self._lines[*path, index] = item.start_mark.line + 1
                items.append(self.read(item, (*path, index)))
            return items
        return self._scalar(node, path)

    def _mapping(self, node: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node.value, str):
                self._note(line, path, "NotAKey", "expected a key of text, got a list or mapping")
                continue
            if str(key_node.tag).endswith(":merge"):
                merged.append(item)
                continue
            key = key_node.value
            if key in found:
                message = f"expected each key once, line {self._lines[*path, key]} has it already"
                self._note(line, (*path, key), "DuplicateKey", message)
                continue
            self._lines[*path, key] = line
            found[key] = self.read(item, (*path, key))
        for item in merged:
            for key, value in self._merged(item, path).items():
                found.setdefault(key, value)
        return found

    def _merged(self, node: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
        """What `<<` brings in: a mapping, or a list of mappings of which earlier ones win; own keys win over all."""
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        found: dict[str, Any] = {}
        for part in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(part, MappingNode):
                self._note(part.start_mark.line + 1, (*path, "<<"), "NotAMapping", "expected a mapping to merge")
                continue
            # Keys that are there already keep their lines.
            lines, self._lines = self._lines, {}
            try:
                value = self.read(part, path)
            finally:
                own, self._lines = self._lines, lines
            for place, line in own.items():
                lines.setdefault(place, line)
            for key, entry in value.items():
                found.setdefault(key, entry)
        return found

    def _note(self, line: int, path: tuple[str | int, ...], reason: str, message: str) -> None:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        self._faults.append(Fault(file=self._file, line=line, path=place, reason=reason, message=message))

    def _scalar(self, node: Any, path: tuple[str | int, ...]) -> Any:
        tag = str(node.tag).rsplit(":", 1)[-1]
        text = node.value
        if node.style in ("'", '"', "|", ">"):
            return text
        match tag:
            case "null":
                return None
            case "bool":
                return text.lower() in ("true", "yes", "on")
            case "int":
                number = _integer(text)
                if number is None or abs(number) > LARGEST_INTEGER:
                    shown = text if len(text) <= 24 else f"{text[:20]}… of {len(text)} digits"
                    message = f"expected a whole number of at most {LARGEST_INTEGER} either way, got {shown}; quote it to keep it"
                    self._note(node.start_mark.line + 1, path, "NotExact", message)
                    return 0
                return number
            case "float":
                lowered = text.lower().lstrip("+")
                special = {".inf": "inf", "-.inf": "-inf", ".nan": "nan"}.get(lowered)
                value = float(special or text.replace("_", ""))
                if not isfinite(value):
                    self._note(node.start_mark.line + 1, path, "NotFinite", f"expected a finite number, got {text}")
                    return 0.0
                return value
            case _:
                return text


def _integer(text: str) -> int | None:
    """A whole number as YAML 1.2 writes it; None when it is too long to be meant."""
    digits = text.replace("_", "")
    if len(digits) > 40:
        return None
    try:
        return int(digits, 0)
    except ValueError:
        # Leading zeros: decimal in YAML 1.2.
        return int(digits)


@cache
def _composers() -> Any:
    from ruamel.yaml.composer import Composer

    class ShallowComposer(Composer):
        """Stops at a depth that no document needs, before the recursion limit and before scanning gets slow."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.depth > DEEPEST:
                raise _TooDeepError(self.parser.peek_event().start_mark.line + 1)
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    return ShallowComposer


class _TooDeepError(Exception):
    """Nested deeper than `DEEPEST`."""


def _composer() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _composers()
    return yaml


@contextmanager
def _translated(file: str, text: bytes) -> Iterator[None]:
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        yield
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise _fault(file, line, f"expected UTF-8, got byte 0x{text[error.start]:02x} at {error.start}", "NotYaml") from error
    except _TooDeepError as error:
        raise _fault(file, int(error.args[0]), f"expected values at most {DEEPEST} deep", "TooLarge") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join((error.problem or error.context or "something else").split())
        raise _fault(file, mark.line + 1 if mark else 1, f"expected YAML, got: {words}", "NotYaml") from error
    except YAMLError as error:
        words = " ".join(str(error).split())[:200]
        position = getattr(error, "position", None)
        line = text.decode(errors="replace").count("\n", 0, position) + 1 if isinstance(position, int) else 1
        raise _fault(file, line, f"expected one YAML document, got: {words}", "NotYaml") from error


def _round_trip() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _merge(document: Any, before: Any, after: Any) -> None:
    """Bring a round-trip mapping that says `before` to say `after`, touching only what differs."""
    for key in [key for key in before if key not in after]:
        # What a merge key brought in cannot be taken out here.
        if key in document:
            del document[key]
    for key, item in after.items():
        if key in before and isinstance(before[key], dict) and isinstance(item, dict):
            _merge(document[key], before[key], item)
        elif key in before and isinstance(before[key], list) and isinstance(item, list):
            _merge_list(document[key], before[key], item)
        elif key not in before or not _same(before[key], item):
            document[key] = _laid_out(item)


def _merge_list(document: Any, before: list[Any], after: list[Any]) -> None:
    # What is known by a name goes with its own comments, and not with those of whoever takes its place.
    kept = {named for item in after if (named := _named(item)) is not None}
    gone = [index for index, item in enumerate(before) if (named := _named(item)) is not None and named not in kept]
    if kept and gone:
        for index in reversed(gone):
            del document[index]
        before = [item for index, item in enumerate(before) if index not in gone]
    for index, item in enumerate(after):
        if index >= len(before):
            document.append(_laid_out(item))
        elif isinstance(before[index], dict) and isinstance(item, dict):
            _merge(document[index], before[index], item)
        elif isinstance(before[index], list) and isinstance(item, list):
            _merge_list(document[index], before[index], item)
        elif not _same(before[index], item):
            document[index] = _laid_out(item)
    del document[len(after) :]


def _named(item: Any) -> str | None:
    """What an entry of a list is known by; None where it is known by its place."""
    found = item.get("version", item.get("name")) if isinstance(item, dict) else None
    return found if isinstance(found, str) else None


def _laid_out(value: Any) -> Any:
    """A new value, with texts of several lines as such."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    if isinstance(value, dict):
        return {key: _laid_out(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_laid_out(item) for item in value]
    is_long = isinstance(value, str) and "\n" in value and all(letter.isprintable() or letter == "\n" for letter in value)
    return LiteralScalarString(value) if is_long else value


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values say the same; `1`, `1.0` and `true` are three things."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _fault(file: str, line: int, message: str, reason: str) -> DesiredStateError:
    fault = Fault(file=file, line=line, path="", reason=reason, message=message)
    return DesiredStateError(str(fault), reason=reason, faults=(fault,))
