"""Laws of reading a Dockerfile and of judging whether an image comes out twice."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.build.dockerfile import read_dockerfile, rewritten
from policies.errors import DesiredStateError
from policies.reproducibility import ADVICE, SAMPLED, Difference, Report, is_built_again, judge
from policies.terms.digest import digest_of

IMAGES = ("reg.example/a", "reg.example/ab", "reg.example/a:1", "reg.example:5000/x/y@sha256:" + "0" * 64)
NAMES = ("one", "Two", "three")
STEPS = (
    "RUN echo FROM reg.example/a",
    "RUN a && \\\n  # FROM nothing\n  b\\\n\n  c",
    "ENV FROM=x",
    "COPY --chown=1:1 a b",
    "run x",
    'ADD ["a", "b"]',
    "RUN --mount=type=cache,target=/x y",
    "\t# a comment",
    "",
)
images, steps = st.sampled_from(IMAGES), st.sampled_from(STEPS)


@st.composite
def dockerfiles(draw: st.DrawFn) -> str:
    """Files of several stages, that name images in each way there is."""
    lines = draw(
        st.sampled_from(
            [[], ["# syntax=reg.example/frontend:1"], ["# escape=\\", "", "# a comment"], ["ARG X=1", "ARG Y=${X}-2"]]
        )
    )
    free = list(NAMES)
    known: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        source = draw(st.one_of(images, st.just("scratch"), *([st.sampled_from(known)] if known else [])))
        name = free.pop(0) if draw(st.booleans()) and free else ""
        word = draw(st.sampled_from(["FROM", "from", "FROM --platform=linux/amd64", "FROM --platform=$TARGETPLATFORM"]))
        lines = [*lines, f"{word} {source}" + (f" AS {name}" if name else "")]
        if name:
            known.append(name)
        for _ in range(draw(st.integers(0, 3))):
            image = draw(st.one_of(images, *([st.sampled_from(known)] if known else [])))
            copied = [
                f"COPY --from={image} /a /b",
                f"RUN --mount=type=bind,from={image},target=/x --mount=from={image},target=/y cat /x",
            ]
            lines.append(draw(st.one_of(steps, st.sampled_from(copied))))
    return "\n".join(lines) + "\n"


@given(dockerfiles())
def test_a_rewritten_file_names_no_image_but_the_given_ones_and_has_the_same_stages(text: str) -> None:
    read = read_dockerfile(text, "Dockerfile")
    given_names = {image.reference: f"a{number:063x}" for number, image in enumerate(read.images, start=1)}
    again = read_dockerfile(rewritten(read, given_names), "Dockerfile")
    assert [image.reference for image in again.images] == [given_names[image.reference] for image in read.images]
    assert [(stage.name, stage.above) for stage in again.stages] == [(stage.name, stage.above) for stage in read.stages]
    assert again.base == given_names.get(read.base, "")


@given(dockerfiles())
def test_each_stage_knows_the_time_of_the_commit_and_nothing_else_is_changed(text: str) -> None:
    read = read_dockerfile(text, "Dockerfile")
    lines = rewritten(read, {image.reference: image.reference for image in read.images}).split("\n")
    for number, line in enumerate(lines):
        if re.match(r"FROM ", line):
            assert lines[number + 1] == "ARG SOURCE_DATE_EPOCH"
    assert sum(line == "ARG SOURCE_DATE_EPOCH" for line in lines) == len(read.stages)

    def others(found: list[str]) -> list[str]:
        return [line for line in found if not re.match(r"(?i)from |arg source_date|# syntax", line)]

    assert others(lines) == others(text.split("\n"))
    assert not any(line.startswith("# syntax") for line in lines)


@given(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.lists(st.sampled_from(["FROM a.b/c\n", "RUN x\n", "\\\n", "ARG\n", "FROM $\n"]), max_size=5),
)
def test_whatever_comes_is_read_or_refused_by_file_and_line(text: str, parts: list[str]) -> None:
    refused = None
    try:
        read_dockerfile("".join(parts) + text, "Dockerfile")
    except DesiredStateError as error:
        refused = error
    assert refused is None or re.match(r"Dockerfile:\d+: ", refused.message)
    assert refused is None or all(fault.line >= 1 for fault in refused.faults)


@given(dockerfiles(), st.sampled_from(["\r\n", "\n"]))
def test_how_lines_end_does_not_matter(text: str, end: str) -> None:
    assert read_dockerfile(text.replace("\n", end), "D").images == read_dockerfile(text, "D").images


@pytest.mark.parametrize(
    ("text", "args", "image"),
    [
        ("ARG V=3.11\nFROM r.example/p:$V", {}, "r.example/p:3.11"),
        ("ARG V=3.11\nFROM r.example/p:${V}-slim", {"V": "3.12"}, "r.example/p:3.12-slim"),
        ("ARG V\nFROM r.example/p:${V:-3}", {}, "r.example/p:3"),
        ("ARG V=1\nFROM r.example/p${V:+:9}", {}, "r.example/p:9"),
        ('ARG A="r.example" B=p\nARG C=$A/$B\nFROM "$C:1"', {}, "r.example/p:1"),
        ("FROM r.example/p:$TARGETARCH", {}, "r.example/p:amd64"),
        ("# escape=`\nFROM `\nr.example/p:1\nRUN a \\\nENV FROM=x", {}, "r.example/p:1"),
        ("\ufeffFROM r.example/p:1\nRUN <<EOF cat <<-B\nFROM x\nEOF\n\tFROM y\n\tB\nCOPY a b", {}, "r.example/p:1"),
    ],
)
def test_variables_directives_and_heredocs_are_read_as_docker_reads_them(text: str, args: dict[str, str], image: str) -> None:
    assert [found.reference for found in read_dockerfile(text, "D", args=args).images] == [image]


REFUSED = {
    "nothing": ("", "D:1: expected a FROM, got none"),
    "a step before": ("RUN x\nFROM a.b/c", "D:1: expected FROM, or ARG before it, got RUN"),
    "a variable without a value": ("ARG V\nFROM a.b/c:$V", "D:2: FROM: expected a value of V"),
    "no image": ("FROM ${X:-}", "D:1: FROM: expected an image"),
    "a name for two": ("FROM a.b/c AS x\nFROM a.b/d AS X", "D:2: FROM: expected a name that no other stage has"),
    "a variable in --from": ("FROM a.b/c\nCOPY --from=$X a b", "D:2: COPY: expected a stage or image in from="),
    "a flag on two lines": ("FROM a.b/c\nCOPY --fr\\\nom=a.b/d a b", "D:2: COPY: expected --from on one line"),
    "a trigger that names an image": ("FROM a.b/c\nONBUILD COPY --from=a.b/d a b", "D:2: expected ONBUILD without images"),
    "all at once": (
        "FROM $A\nFROM a b c d",
        "D:1: FROM: expected a value of A, from an ARG before the first FROM, got none; D:2: expected",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_refused(text: str, message: str) -> None:
    with pytest.raises(DesiredStateError) as caught:
        read_dockerfile(text, "D")
    assert caught.value.message.startswith(message)
    assert caught.value.reason == "BadDockerfile"


digests = st.binary(max_size=4).map(digest_of)
differences = st.builds(
    Difference,
    layer=st.sampled_from(["layer 1 of 3", "config"]),
    step=st.sampled_from(["", "RUN x"]),
    kind=st.sampled_from(sorted(ADVICE)),
    count=st.integers(1, 10**6),
    paths=st.lists(st.text(max_size=5), min_size=1, max_size=20).map(tuple),
)


@given(digests)
def test_which_builds_are_sampled_follows_from_their_identity_alone(identity: str) -> None:
    assert is_built_again("sampled", identity) == is_built_again("sampled", identity)
    assert is_built_again("required", identity)
    assert not is_built_again("off", identity)


def test_one_build_in_a_few_is_sampled() -> None:
    chosen = sum(is_built_again("sampled", digest_of(str(number).encode())) for number in range(4000))
    assert 4000 / SAMPLED * 0.8 < chosen < 4000 / SAMPLED * 1.2


@given(st.builds(Report, first=digests, second=digests, differences=st.lists(differences, max_size=6).map(tuple)))
def test_only_what_came_out_twice_is_promoted_where_that_is_required(report: Report) -> None:
    told = json.loads(json.dumps(report.told()))
    verdict = judge("required", told)
    assert (verdict.answer == "allow") == (report.first == report.second and not report.differences)
    assert judge("off", told).answer == judge("sampled", told).answer == "allow"
    for reason in verdict.reasons:
        assert reason.startswith("reproducibility: expected")
        assert not report.differences or report.differences[0].layer in reason


@pytest.mark.parametrize("said", [None, False, "true", 1, {}])
def test_what_was_not_compared_is_not_promoted_where_that_is_required(said: object) -> None:
    assert judge("required", said).answer == "deny"
