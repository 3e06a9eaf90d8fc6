"""The door to ruamel.yaml: text <-> plain values with lines; edits keep comments, order and quoting."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from policies.errors import DesiredStateError, Fault
from policies.terms.document import LoadedDocument

LARGEST_BYTES = 1 << 20
MOST_NODES = 50_000
"""A document that says more than this through its aliases is refused: it would fill the memory."""


class YamlDocuments:
    """Implements `reconcilers.ports.Documents`."""

    def load(self, text: bytes, file: str) -> LoadedDocument:
        """Read a document with its line numbers.

        Raises:
            DesiredStateError: Not YAML, too large, or a key twice; with file and line.
        """
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        if len(text) > LARGEST_BYTES:
            raise _fault(file, 1, f"expected at most {LARGEST_BYTES} bytes, got {len(text)}", "TooLarge")
        try:
            node = YAML(typ="rt").compose(io.StringIO(text.decode()))
        except UnicodeDecodeError as error:
            raise _fault(file, 1, f"expected UTF-8, got byte 0x{text[error.start]:02x} at {error.start}", "NotYaml") from error
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = " ".join((error.problem or error.context or "something else").split())
            raise _fault(file, mark.line + 1 if mark else 1, f"expected YAML, got: {words}", "NotYaml") from error
        except YAMLError as error:
            words = " ".join(str(error).split())[:200]
            raise _fault(file, 1, f"expected one YAML document, got: {words}", "NotYaml") from error
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
        """The document with `value` as content; what did not change keeps comments, order and quoting."""
        yaml = _round_trip()
        document = yaml.load(io.BytesIO(text))
        if not isinstance(document, dict):
            return self.render(value)
        _merge(document, _plain(value))
        out = io.BytesIO()
        yaml.dump(document, out)
        return out.getvalue()


class _Reader:
    """Turns composed nodes into plain values, noting lines and what is wrong."""

    def __init__(self, file: str, lines: dict[tuple[str | int, ...], int], faults: list[Fault]) -> None:
        self._file, self._lines, self._faults = file, lines, faults
        self._nodes = 0
        self._constructor: Any = None

    def read(self, node: Any, path: tuple[str | int, ...]) -> Any:
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        self._nodes += 1
        if self._nodes > MOST_NODES or len(path) > 100:
            message = f"expected at most {MOST_NODES} values, 100 deep; aliases make it more"
            raise _fault(self._file, node.start_mark.line + 1, message, "TooLarge")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self._lines[*path, index] = item.start_mark.line + 1
                items.append(self.read(item, (*path, index)))
            return items
        return self._scalar(node)

    def _mapping(self, node: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, item in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:
                place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*path, key)).lstrip(".")
                message = f"expected each key once, line {self._lines[*path, key]} has it already"
                self._faults.append(Fault(file=self._file, line=line, path=place, reason="DuplicateKey", message=message))
                continue
            self._lines[*path, key] = line
            found[key] = self.read(item, (*path, key))
        return found

    def _scalar(self, node: Any) -> Any:
        tag = str(node.tag).rsplit(":", 1)[-1].rstrip("'>)")
        text = node.value
        if node.style in ("'", '"', "|", ">"):
            return text
        match tag:
            case "null":
                return None
            case "bool":
                return text.lower() in ("true", "yes", "on")
            case "int":
                try:
                    return int(text.replace("_", ""), 0)
                except ValueError:
                    return int(text) if text.lstrip("+-").isdigit() else text
            case "float":
                lowered = text.lower().lstrip("+")
                special = {".inf": "inf", "-.inf": "-inf", ".nan": "nan"}.get(lowered)
                return float(special or text.replace("_", ""))
            case _:
                return text


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


def _merge(document: Any, value: Any) -> None:
    """Bring a round-trip document to say `value`, touching only what differs."""
    for key in [key for key in document if key not in value]:
        del document[key]
    for key, item in value.items():
        before = document.get(key)
        if isinstance(before, dict) and isinstance(item, dict):
            _merge(before, item)
        elif isinstance(before, list) and isinstance(item, list):
            _merge_list(before, item)
        elif (before != item and str(before) != str(item)) or key not in document:
            document[key] = item


def _merge_list(before: list[Any], items: list[Any]) -> None:
    for index, item in enumerate(items):
        if index >= len(before):
            before.append(item)
        elif isinstance(before[index], dict) and isinstance(item, dict):
            _merge(before[index], item)
        elif before[index] != item:
            before[index] = item
    del before[len(items) :]


def _fault(file: str, line: int, message: str, reason: str) -> DesiredStateError:
    fault = Fault(file=file, line=line, path="", reason=reason, message=message)
    return DesiredStateError(str(fault), reason=reason, faults=(fault,))
