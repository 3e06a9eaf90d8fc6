"""Whether an image comes out the same when it is built again, and what follows from it.

Laws: which builds are sampled follows from their identity alone; an image that was not compared is never promoted where
comparison is required.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from policies.errors import DesiredStateError
from policies.terms.build import Reproducibility
from policies.terms.digest import Digest
from policies.terms.task import ImageState
from policies.terms.verdict import Verdict

Kind = Literal["pyc", "log", "cache", "time", "header", "content", "missing"]
"""Compiled Python, a log, a cache; else only the time of a file differs, or its mode, owner or target, or what is in it, or one
of the two images has no such file."""
SHOWN_PATHS = 20
SHOWN_IN_SENTENCE = 3
SAMPLED = 8
"""One build in so many is built again where the project says `sampled`."""
ADVICE: Mapping[Kind, str] = {
    "pyc": "let pip or compileall see SOURCE_DATE_EPOCH, and do not use pip --target",
    "log": "remove logs in the step that writes them",
    "cache": "remove caches in the step that fills them",
    "time": "the step sets times by itself",
    "header": "the step sets modes or owners that depend on where it runs",
    "content": "the step writes a date, a random number or the name of the machine",
    "missing": "the step makes files whose names depend on where or when it runs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs in one layer in one way."""

    layer: str
    """`layer 3 of 5`, or `config`."""
    step: str
    """The instruction that made the layer; empty where that is not known."""
    kind: Kind
    count: int
    paths: tuple[str, ...]
    """The first ones, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of a comparison."""

    first: Digest
    second: Digest
    differences: tuple[Difference, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether one image is the other."""
        return self.first == self.second and not self.differences

    def told(self) -> bool | list[dict[str, Any]]:
        """As provenance has it under `internalParameters.reproducible`: true, or what differs."""
        if self.is_same:
            return True
        return [
            {"layer": item.layer, "step": item.step, "class": item.kind, "count": item.count, "paths": list(item.paths)}
            for item in self.differences
        ]


def is_built_again(policy: Reproducibility, identity: str) -> bool:
    """Whether an image is built a second time.

    Args:
        policy: What the project says.
        identity: Digest of what the image is built from.
    """
    if policy == "sampled":
        return int(identity.removeprefix("sha256:")[:16], 16) % SAMPLED == 0
    return policy == "required"


def judge(policy: Reproducibility, reproducible: Any) -> Verdict:
    """Whether a version with this image may be promoted.

    Args:
        policy: What the project says.
        reproducible: What the image's provenance says of it: true, a list as `Report.told` gives it, or None.
    """
    if policy != "required" or reproducible is True:
        return Verdict(answer="allow")
    if not isinstance(reproducible, list):
        return Verdict(answer="deny", reasons=("reproducibility: expected an image that was built twice, got none of the kind",))
    return Verdict(answer="deny", reasons=(sentence(reproducible),))


def check_promoted(policy: Reproducibility, states: Iterable[ImageState], image: Digest) -> None:
    """See that a version with this image may be promoted.

    Args:
        policy: What the project says.
        states: What is known of the images that were built.
        image: The image.

    Raises:
        DesiredStateError: It may not.
    """
    told = next((state.materials.get("reproducible") for state in states if state.digest == image), None)
    verdict = judge(policy, told)
    if verdict.answer == "deny":
        raise DesiredStateError("; ".join(verdict.reasons), reason="NotReproducible")


def sentence(differences: Iterable[Mapping[str, Any]]) -> str:
    """The first differences, in one line, and what to do about the very first."""
    found = list(differences)
    parts = [_part(item) for item in found[:SHOWN_IN_SENTENCE]]
    more = f"; and {len(found) - SHOWN_IN_SENTENCE} more" if len(found) > SHOWN_IN_SENTENCE else ""
    step = ADVICE.get(found[0].get("class"), "") if found else ""  # type: ignore[arg-type]
    text = f"reproducibility: expected the same image from a second build, got differences: {'; '.join(parts) or 'unnamed'}{more}"
    return f"{text}; {step}" if step else text


def _part(item: Mapping[str, Any]) -> str:
    paths = [str(path) for path in item.get("paths") or ()][:SHOWN_IN_SENTENCE]
    step = f" ({item['step']})" if item.get("step") else ""
    return f"{item.get('layer')}{step}: {item.get('count')} {item.get('class')}: {', '.join(paths)}"
