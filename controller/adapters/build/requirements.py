"""Requirements files, with what they include -> the releases that they pin, and the requirements that they leave loose.

Law: all faults are told at once, with file and line.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from controller.adapters.build.standards import read_requirement, same_version
from policies.errors import DesiredStateError, Fault
from policies.locks import Line, Target, Wanted, is_sha256, lines_of, name_in
from policies.terms.digest import Digest

HINT = "make it with `uv pip compile --generate-hashes`"
_HARMLESS = ("--require-hashes", "--prefer-binary", "--only-binary", "--disable-pip-version-check")
"""Options that say what is so anyway."""
_INCLUDES = ("-r", "--requirement")
_LIMITS = ("-c", "--constraint")
_REFUSED = {
    "-i": "say where wheels come from with spec.builder.index of myelin.yaml",
    "--index-url": "say where wheels come from with spec.builder.index of myelin.yaml",
    "--extra-index-url": "one index is asked, spec.builder.index of myelin.yaml; a second one could stand in for it",
    "--find-links": "say where wheels come from with spec.builder.index of myelin.yaml",
    "-f": "say where wheels come from with spec.builder.index of myelin.yaml",
    "--no-index": "say where wheels come from with spec.builder.index of myelin.yaml",
    "--trusted-host": "give the controller the certificate of that host",
    "-e": "what is installed must be a release; code of this repository goes in as source",
    "--editable": "what is installed must be a release; code of this repository goes in as source",
    "--no-binary": "a wheel is taken where there is one; spec.builder.allowSourceDistributions builds one where there is none",
    "--pre": "pin the version that is wanted",
}


@dataclass(slots=True)
class Faults:
    """All that is wrong with the files of one lock."""

    found: list[Fault] = field(default_factory=list)

    def add(self, file: str, line: int, message: str, reason: str = "NotLocked") -> None:
        """One more."""
        self.found.append(Fault(file=file, line=line, path="", reason=reason, message=message))

    def tell(self) -> None:
        """Raise what was found.

        Raises:
            DesiredStateError: Something was.
        """
        if self.found:
            text = "; ".join(str(fault) for fault in self.found[:3])
            more = f"; and {len(self.found) - 3} more" if len(self.found) > 3 else ""
            raise DesiredStateError(text + more, reason=self.found[0].reason, faults=tuple(self.found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A requirements file with all that it includes."""

    wanted: tuple[Wanted, ...]
    loose: tuple[str, ...]
    """Requirements without a hash, as they are written."""
    first: tuple[str, int]
    """Where the first of those is."""
    limits: tuple[str, ...]


def wanted_of(text: str, file: str, target: Target) -> tuple[Wanted, ...]:
    """The releases of a requirements file with hashes, alone.

    Raises:
        DesiredStateError: A line is not pinned with its hashes; all faults at once.
    """
    faults = Faults()
    read = RequirementsReader({file: text.encode()}, "", target, faults).all(file)
    if read.loose:
        faults.add(*read.first, f"expected name==version with --hash=sha256:…, got {shown(read.loose[0])}; {HINT}")
    faults.tell()
    return read.wanted


def taken_out(text: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """A lock of requirements without these packages, and the versions that it pinned them to."""
    kept, versions = [], {}
    for block in re.split(r"(?m)^(?=[A-Za-z0-9])", text):
        name = name_in(block) if block[:1].isalnum() else ""
        if name in names:
            versions[name] = re.split(r"[\s;\\]", block.partition("==")[2].strip(), maxsplit=1)[0]
        else:
            kept.append(block)
    return "".join(kept), versions


class RequirementsReader:
    """Reads requirements files, and those that they include.

    Args:
        files: Of a source folder, by path from it.
        folder: Where it is, from the root of the repository; for messages.
        target: What is installed for.
        faults: Take what is wrong.
    """

    def __init__(self, files: Mapping[str, bytes], folder: str, target: Target, faults: Faults) -> None:
        self._files, self._folder, self._target, self._faults = files, folder, target, faults

    def all(self, name: str) -> Read:
        """What a file says, with all that it includes."""
        wanted: dict[str, Wanted] = {}
        loose: list[tuple[str, str, int]] = []
        limits: list[str] = []
        self._into(name, wanted, loose, limits, ())
        return Read(
            wanted=tuple(item for _, item in sorted(wanted.items())),
            loose=tuple(text for text, _, _ in loose),
            first=loose[0][1:] if loose else ("", 0),
            limits=tuple(limits),
        )

    def _into(
        self,
        name: str,
        wanted: dict[str, Wanted],
        loose: list[tuple[str, str, int]],
        limits: list[str],
        within_files: tuple[str, ...],
    ) -> None:
        label = f"{self._folder}/{name}".lstrip("/")
        for line in lines_of(decoded(self._files[name], label)):
            if line.kind == "requirement":
                self._requirement(line, label, wanted, loose)
            elif line.text in _INCLUDES or line.text in _LIMITS:
                path = posixpath.normpath(posixpath.join(posixpath.dirname(name), line.value))
                said = f"{line.text} {shown(line.value)}"
                if path not in self._files:
                    text = f"{said}: expected a file of the source folder, there is none of that name"
                    self._faults.add(label, line.number, text, "FileMissing")
                elif path in (*within_files, name):
                    self._faults.add(label, line.number, f"{said}: expected another file, this one includes itself", "OddOption")
                elif line.text in _INCLUDES:
                    self._into(path, wanted, loose, limits, (*within_files, name))
                else:
                    other = f"{self._folder}/{path}".lstrip("/")
                    limits += [item.text for item in lines_of(decoded(self._files[path], other)) if item.kind == "requirement"]
            elif line.text not in _HARMLESS:
                hint = _REFUSED.get(line.text, "take it out")
                self._faults.add(label, line.number, f"{line.text}: expected no such option; {hint}", "OddOption")

    def _requirement(self, line: Line, label: str, wanted: dict[str, Wanted], loose: list[tuple[str, str, int]]) -> None:
        add = self._faults.add
        if line.odd_option:
            add(label, line.number, f"{line.odd_option}: expected no option but --hash behind a requirement", "OddOption")
            return
        if re.match(r"(\.{0,2}/|[a-z+]+://|git\+|file:)", line.text) or line.text.endswith((".whl", ".tar.gz", ".zip")):
            add(label, line.number, "expected a release of an index, got a path or an address", "NotARelease")
            return
        try:
            found = read_requirement(line.text, self._target)
        except ValueError as error:
            add(label, line.number, f"expected a requirement, got {shown(line.text)}: {error}", "NotARequirement")
            return
        if found.url:
            add(label, line.number, f"{found.name}: expected a release of an index, got an address", "NotARelease")
            return
        if not line.hashes:
            loose.append((line.text, label, line.number))
            return
        hashes = tuple(sorted({Digest(text.lower()) for text in line.hashes if is_sha256(text.lower())}))
        if not found.pin or not hashes:
            what = "name==version" if not found.pin else "--hash=sha256:…"
            add(label, line.number, f"expected name==version with --hash=sha256:…, got {shown(line.text)} without {what}; {HINT}")
            return
        if not found.applies:
            return
        known = wanted.get(found.name)
        if known is not None and not same_version(known.version, found.pin):
            text = f"{found.name}: expected one version, got {found.pin} and, in line {known.line}, {known.version}"
            add(label, line.number, text, "TwoVersions")
            return
        every = tuple(sorted({*hashes, *(known.hashes if known else ())}))
        wanted[found.name] = Wanted(name=found.name, version=found.pin, hashes=every, line=line.number)


def shown(text: str) -> str:
    """A requirement for a message: short, and without what may be a name and password of an address."""
    return repr(re.sub(r"//[^@\s]*@", "//", text)[:60])


def decoded(data: bytes, label: str) -> str:
    """The text of a file.

    Raises:
        DesiredStateError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DesiredStateError(f"{label}: expected UTF-8, got other bytes at {error.start}", reason="NotLocked") from error
