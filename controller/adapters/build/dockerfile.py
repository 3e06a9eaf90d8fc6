"""Reading a Dockerfile as far as it says what it is built on: FROM, ARG, stages, and images that steps copy from or mount.

Laws: what is not rewritten keeps its text; a rewritten file names no image but those that were given. Nothing is fetched or
run here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from policies.errors import DesiredStateError, Fault

EPOCH_ARG = "SOURCE_DATE_EPOCH"
SCRATCH = "scratch"
_DIRECTIVE = re.compile(r"#\s*(?P<key>[A-Za-z]+)\s*=\s*(?P<value>\S+)\s*")
_VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<sign>:[-+])(?P<word>[^{}]*))?\})")
_HEREDOC = re.compile(r"(?:^|\s)\d*<<(?P<dash>-?)(?P<quote>[\"']?)(?P<word>[A-Za-z_]\w*)(?P=quote)(?=\s|$)")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]*")
_FETCHED = re.compile(r"(?:https?|ftp|git)://\S+|git@\S+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, on all lines that it goes on for."""

    first: int
    """Number of its first line, from 1."""
    last: int
    word: str
    """In capitals."""
    text: str
    """What follows the word, joined; without the bodies of here-documents."""
    heredocs: int = 0
    """How many here-documents follow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An image that a Dockerfile names."""

    reference: str
    """After its variables are replaced."""
    line: int
    said: str
    """How it is named there, `FROM` or `--from`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What begins with a FROM."""

    name: str
    """As written, its case does not count; empty where it has none."""
    source: str
    """The image that it is built on; empty for nothing, or for another stage."""
    above: int | None
    """Number of the stage that it is built on; None: on an image, or on nothing."""
    instruction: Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """A Dockerfile that was read."""

    file: str
    """What messages call it."""
    lines: tuple[str, ...]
    stages: tuple[Stage, ...]
    images: tuple[Named, ...]
    """Every image that it names, in order; one that is named twice is here twice."""
    flags: tuple[tuple[Instruction, str, str], ...]
    """(instruction, its flag as written, image in it) of COPY --from and RUN --mount."""
    fetched: tuple[tuple[int, str], ...]
    """(line, address) of what ADD fetches from elsewhere."""
    heredocs: tuple[int, ...]
    """Lines of instructions with here-documents."""
    runs: tuple[int, ...]
    """Lines on which a RUN begins."""

    @property
    def base(self) -> str:
        """The image below the last stage, through the stages that it is built on; empty for none."""
        stage = self.stages[-1]
        while stage.above is not None:
            stage = self.stages[stage.above]
        return stage.source


def read_dockerfile(text: str, file: str, *, args: Mapping[str, str] | None = None, platform: str = "linux/amd64") -> Dockerfile:
    """Read a Dockerfile.

    Args:
        text: Its content.
        file: What to call it in messages.
        args: Build arguments; they count for an ARG that the file declares before its first FROM.
        platform: What is built for, `os/architecture`.

    Raises:
        DesiredStateError: All that cannot be told of it, by file and line.
    """
    lines = tuple(line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    reader = _Reader(file, lines, dict(args or {}), platform)
    for instruction in _instructions(lines, _escape_of(lines)):
        reader.take(instruction)
    return reader.done()


def rewritten(dockerfile: Dockerfile, images: Mapping[str, str], *, run_flags: str = "") -> str:
    """The same build on other names of its images, with SOURCE_DATE_EPOCH as an argument of every stage.

    Args:
        dockerfile: What was read.
        images: Reference -> what to write in its place; every image of the file is a key.
        run_flags: Flags that each RUN gets.
    """
    lines: list[str | None] = list(dockerfile.lines)
    for number, _ in _directives(dockerfile.lines):
        if _is_syntax(dockerfile.lines[number]):
            # It would be another program, of whoever has that name, that reads the file.
            lines[number] = None
    for stage in dockerfile.stages:
        below = SCRATCH if stage.above is None else dockerfile.stages[stage.above].name
        source = images[stage.source] if stage.source else below
        name = f" AS {stage.name}" if stage.name else ""
        item = stage.instruction
        lines[item.first - 1 : item.last] = [
            f"FROM {source}{name}\nARG {EPOCH_ARG}",
            *[None] * (item.last - item.first),
        ]
    for item, flag, reference in dockerfile.flags:
        for number in range(item.first - 1, item.last):
            line = lines[number]
            if line is not None and (found := _whole(flag).search(line)):
                parts = [f"from={images[reference]}" if part == f"from={reference}" else part for part in flag[2:].split(",")]
                # `--mount=from=x` has it as its first part.
                parts[0] = parts[0].replace(f"mount=from={reference}", f"mount=from={images[reference]}")
                lines[number] = f"{line[: found.start()]}--{','.join(parts)}{line[found.end() :]}"
                break
    for number in dockerfile.runs if run_flags else ():
        line = lines[number - 1] or ""
        lines[number - 1] = re.sub(r"^(\s*RUN)\b", lambda found: f"{found[1]} {run_flags}", line, count=1, flags=re.IGNORECASE)
    return "\n".join(line for line in lines if line is not None)


class _Reader:
    def __init__(self, file: str, lines: tuple[str, ...], args: Mapping[str, str], platform: str) -> None:
        self._file, self._lines, self._args, self._platform = file, lines, args, platform
        system, _, machine = platform.partition("/")
        said = (("PLATFORM", platform), ("OS", system), ("ARCH", machine), ("VARIANT", ""))
        self._known: dict[str, str] = {f"{side}{key}": value for side in ("BUILD", "TARGET") for key, value in said}
        self._stages: list[Stage] = []
        self._images: list[Named] = []
        self._flags: list[tuple[Instruction, str, str]] = []
        self._fetched: list[tuple[int, str]] = []
        self._heredocs: list[int] = []
        self._runs: list[int] = []
        self._faults: list[Fault] = []

    def take(self, item: Instruction) -> None:
        if item.heredocs:
            self._heredocs.append(item.first)
        if item.word == "RUN":
            self._runs.append(item.first)
        if item.word == "ARG" and not self._stages:
            self._declare(item)
        elif item.word == "FROM":
            self._begin(item)
        elif not self._stages:
            self._fault(item.first, "expected FROM, or ARG before it", f"{item.word or 'nothing'}")
        elif item.word in ("COPY", "ADD", "RUN"):
            self._flagged(item)
        elif item.word == "ONBUILD" and re.search(r"(?:^|\s|,)--from=|--mount=\S*from=", item.text):
            self._fault(item.first, "expected ONBUILD without images, which cannot be pinned there", "one")

    def done(self) -> Dockerfile:
        if not self._stages and not self._faults:
            self._fault(1, "expected a FROM", "none")
        if self._faults:
            faults = tuple(self._faults)
            raise DesiredStateError("; ".join(map(str, faults)), reason="BadDockerfile", faults=faults)
        return Dockerfile(
            file=self._file,
            lines=self._lines,
            stages=tuple(self._stages),
            images=tuple(self._images),
            flags=tuple(self._flags),
            fetched=tuple(self._fetched),
            heredocs=tuple(self._heredocs),
            runs=tuple(self._runs),
        )

    def _declare(self, item: Instruction) -> None:
        try:
            words = shlex.split(item.text)
        except ValueError as error:
            self._fault(item.first, "ARG: expected NAME or NAME=value", str(error).lower())
            return
        for word in words:
            name, given, value = word.partition("=")
            if name in self._args:
                self._known[name] = self._args[name]
            elif given:
                expanded = self._expanded(value, item.first, f"ARG {name}")
                if expanded is not None:
                    self._known[name] = expanded

    def _begin(self, item: Instruction) -> None:
        words = item.text.split()
        flags = [word for word in words if word.startswith("--")]
        words = words[len(flags) :]
        for flag in flags:
            self._check_platform(flag, item.first)
        if not words or len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            self._fault(item.first, "expected FROM image, or FROM image AS name", f"FROM {item.text}".strip())
            return
        name = words[2] if len(words) == 3 else ""
        if name and not _STAGE.fullmatch(name.lower()):
            self._fault(item.first, "FROM: expected a stage's name of a-z 0-9 _ . - that begins with a letter", name)
            name = ""
        if name.lower() == SCRATCH or (name and self._stage(name) is not None):
            self._fault(item.first, "FROM: expected a name that no other stage has", name)
            name = ""
        reference = self._expanded(words[0], item.first, "FROM")
        if reference is None:
            return
        if not reference:
            self._fault(item.first, "FROM: expected an image", f"nothing for {words[0]}")
            return
        above = self._stage(reference)
        source = "" if above is not None or reference == SCRATCH else reference
        if source:
            self._images.append(Named(reference=source, line=item.first, said="FROM"))
        self._stages.append(Stage(name=name, source=source, above=above, instruction=item))

    def _check_platform(self, flag: str, line: int) -> None:
        key, _, value = flag.partition("=")
        if key != "--platform":
            self._fault(line, "FROM: expected --platform or nothing", key)
            return
        wanted = self._expanded(value, line, "FROM --platform")
        if wanted is not None and wanted != self._platform:
            self._fault(line, f"FROM --platform: expected {self._platform}, others are not emulated here", wanted or "nothing")

    def _flagged(self, item: Instruction) -> None:
        rest = item.text
        while found := re.match(r"--(?P<key>[a-z-]+)(?:=(?P<value>\S*))?(?:\s+|$)", rest):
            key, value, flag = found["key"], found["value"] or "", found[0].strip()
            rest = rest[found.end() :]
            reference = ""
            if key == "from" and item.word == "COPY":
                reference = value
            elif key == "mount" and item.word == "RUN":
                named = [part[5:] for part in value.split(",") if part.startswith("from=")]
                if len(named) > 1:
                    self._fault(item.first, "RUN: expected one from= in a mount", str(len(named)))
                reference = named[0] if named else ""
            if reference:
                self._copied(item, flag, reference)
        if item.word == "ADD":
            self._fetched += [(item.first, address.strip("\",]'")) for address in _FETCHED.findall(rest)]

    def _copied(self, item: Instruction, flag: str, reference: str) -> None:
        if self._stage(reference) is not None or (reference.isdigit() and int(reference) < len(self._stages)):
            return
        if "$" in reference or "\\" in reference or '"' in reference:
            self._fault(item.first, f"{item.word}: expected a stage or image in from=, without variables and quotes", reference)
            return
        if not any(_whole(flag).search(line) for line in self._lines[item.first - 1 : item.last]):
            self._fault(item.first, f"{item.word}: expected {flag.partition('=')[0]} on one line", "several")
            return
        self._images.append(Named(reference=reference, line=item.first, said=f"{item.word} from="))
        self._flags.append((item, flag, reference))

    def _stage(self, reference: str) -> int | None:
        """Number of the last stage of that name; None where none above has it."""
        named = [number for number, stage in enumerate(self._stages) if stage.name and stage.name.lower() == reference.lower()]
        return named[-1] if named else None

    def _expanded(self, text: str, line: int, said: str) -> str | None:
        """Text with its variables replaced; None: one of them has no value, which is told."""
        unknown: list[str] = []

        def value(match: re.Match[str]) -> str:
            name = match["plain"] or match["name"]
            known = self._known.get(name, "")
            if match["sign"] == ":-":
                return known or match["word"]
            if match["sign"] == ":+":
                return match["word"] if known else ""
            if name not in self._known:
                unknown.append(name)
            return known

        replaced = _VARIABLE.sub(value, text.strip("\"'"))
        if unknown:
            self._fault(line, f"{said}: expected a value of {unknown[0]}, from an ARG before the first FROM", "none")
            return None
        if "$" in replaced:
            self._fault(line, f"{said}: expected variables as $NAME or ${{NAME}}", text)
            return None
        return replaced

    def _fault(self, line: int, expected: str, got: str) -> None:
        text = f"{expected}, got {got[:200] if got.isprintable() else ascii(got[:200])}"
        self._faults.append(Fault(file=self._file, line=line, path="", reason="BadDockerfile", message=text))


def _directives(lines: Sequence[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Directives for whoever reads the file: they stand above everything else."""
    for number, line in enumerate(lines):
        found = _DIRECTIVE.fullmatch(line)
        if found is None:
            return
        yield number, found


def _whole(flag: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\S)" + re.escape(flag) + r"(?!\S)")


def _is_syntax(line: str) -> bool:
    found = _DIRECTIVE.fullmatch(line)
    return found is not None and found["key"].lower() == "syntax"


def _escape_of(lines: Sequence[str]) -> str:
    for _, found in _directives(lines):
        if found["key"].lower() == "escape" and found["value"] in ("`", "\\"):
            return found["value"]
    return "\\"


def _instructions(lines: Sequence[str], escape: str) -> Iterator[Instruction]:
    goes_on = re.compile(re.escape(escape) + r"[ \t]*$")
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        if not line or line.startswith("#"):
            number += 1
            continue
        first = number
        parts: list[str] = []
        while number < len(lines):
            line = lines[number].lstrip()
            # Within an instruction, lines of comments and empty ones are as if they were not there.
            if parts and (line.startswith("#") or not line.strip()):
                number += 1
                continue
            cut = goes_on.search(line)
            parts.append(line[: cut.start()] if cut else line)
            number += 1
            if not cut:
                break
        word, text = [*re.split(r"\s+", "".join(parts).strip(), maxsplit=1), ""][:2]
        word, heredocs = word.upper(), 0
        if word in ("RUN", "COPY", "ADD"):
            for match in _HEREDOC.finditer(text):
                end = _end_of(lines, number, match["word"], bool(match["dash"]))
                if end is not None:
                    number, heredocs = end, heredocs + 1
        yield Instruction(first=first + 1, last=number, word=word, text=text.strip(), heredocs=heredocs)


def _end_of(lines: Sequence[str], start: int, word: str, is_indented: bool) -> int | None:
    """The line after a here-document; None where it does not end, and so is none."""
    for number in range(start, len(lines)):
        if (lines[number].lstrip("\t") if is_indented else lines[number]) == word:
            return number + 1
    return None
