"""What the earlier Myelin's builds of source folders asked for and a builder without containers cannot do by itself.

A builder image stood for a program that serves or runs Python; ours is chosen by `.s2i/environment`, so its name only has to be
one that is known. An install script needs a container: it is run once on the base, and what comes out is the base that the Python
builder goes on with.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from controller.adapters.build.buildah import BuiltByFile, DockerfileJob
from controller.adapters.build.leaks import MountedSecret
from controller.adapters.oci.assembly import Base, read_memo, write_memo
from controller.adapters.oci.layers import Stored
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.tar import EPOCH
from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.terms.build import NO_RULES, BuildRules
from policies.terms.digest import Digest, digest_of

_BUILDER_IMAGE = re.compile(
    r"(?:[^\s@]+/)?(?:myelin-)?deployer-s2i-(?P<python>py3|python3|python|py2|python2)(?P<cuda>-?(?:cuda|gpu)[0-9.]*)?"
    r"(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?"
)
_PLACE = "/app"
_FORMAT = 2
"""Of derived bases; another one makes all of them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a builder image of the earlier Myelin is here."""

    name: str
    note: str
    """What to tell whoever wrote the manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """An install script of a source folder."""

    path: str
    """From the folder."""
    arguments: tuple[str, ...]
    content: Stored

    @property
    def digest(self) -> Digest:
        """Names what it does, as far as that follows from itself."""
        how = {"path": self.path, "arguments": list(self.arguments), "executable": self.content.executable}
        return digest_value({**how, "content": digest_of(self.content.data)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A base after an install script ran on it."""

    base: Base
    """With the layers that the script made; it is still called by what the script ran on."""
    digest: Digest
    """Of the image that base and script came to."""
    script: Digest
    """Names the script."""
    network: bool
    tool: str
    """What ran it, with its version."""


class ByFile(Protocol):
    """What builds a Dockerfile; see `BuildahDriver`."""

    def build(self, job: DockerfileJob, layout: Layout, progress: Callable[[str], None]) -> BuiltByFile:
        """Build an image into the store."""
        ...


def profile_of(builder_image: str, subject: str) -> Profile | None:
    """What a manifest's builder image is here; None where it names none.

    Args:
        builder_image: As the manifest has it.
        subject: What messages begin with.

    Raises:
        DesiredStateError: It is another one.
    """
    if not builder_image:
        return None
    found = _BUILDER_IMAGE.fullmatch(builder_image)
    if found is None:
        text = f"{subject}: builderImage: expected one of the earlier Myelin's (…deployer-s2i-py3…), got {builder_image}"
        raise DesiredStateError(f"{text}; leave it out, or build by a Dockerfile", reason="UnknownBuilder")
    if found["python"] in ("py2", "python2"):
        text = f"{subject}: builderImage: expected one with Python 3, got {builder_image}"
        raise DesiredStateError(f"{text}; port the code, and leave builderImage out", reason="UnknownBuilder")
    note = f"builderImage {builder_image} is not used: Myelin's own Python runtime serves the same `.s2i/environment`"
    if found["cuda"]:
        note += "; for a GPU, take a base with the CUDA libraries (builder.base) or wheels that bring them"
    return Profile(name="python", note=note)


def script_of(settings: Mapping[str, str], files: Mapping[str, Stored], folder: str = "") -> Script | None:
    """The install script that `.s2i/environment` names; None where it names none.

    Args:
        settings: What `.s2i/environment` says.
        files: Those of the source folder, by path from it.
        folder: What messages call the source folder.

    Raises:
        DesiredStateError: It is no file of the folder.
    """
    text = settings.get("INSTALL_SCRIPT", "")
    if not text:
        return None
    place = f"{folder}/.s2i/environment".lstrip("/")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise DesiredStateError(f"{place}: INSTALL_SCRIPT: expected a file, got {text!r}", reason="BadScript") from error
    path = words[0].removeprefix("./") if words else ""
    if path not in files:
        raise DesiredStateError(
            f"{place}: INSTALL_SCRIPT: expected a file of the source folder, got {path or text!r}", reason="BadScript"
        )
    return Script(path=path, arguments=tuple(words[1:]), content=files[path])


def install_dockerfile(script: Script, reference: str) -> str:
    """The Dockerfile that runs an install script as root, in the folder where the source will be."""
    path, target = script.path, f"{_PLACE}/{script.path}"
    command = [f"./{path}"] if script.content.executable else ["sh", path]
    lines = [
        f"FROM {reference}",
        "USER 0:0",
        f"WORKDIR {_PLACE}",
        f"COPY {json.dumps([path, target])}",
        f"RUN {json.dumps([*command, *script.arguments])}",
    ]
    return "\n".join(lines) + "\n"


class InstallScripts:
    """Runs install scripts on bases, each pair once.

    Args:
        driver: Builds by Dockerfile.
        layout: Where derived bases go.
        folder: Memories of them; may be deleted.
    """

    def __init__(self, driver: ByFile, layout: Layout, folder: Path) -> None:
        self._driver, self._layout, self._folder = driver, layout, folder

    def derived(
        self,
        base: Base,
        script: Script,
        *,
        subject: str,
        progress: Callable[[str], None],
        rules: BuildRules = NO_RULES,
        secrets: tuple[MountedSecret, ...] = (),
        network: bool = False,
    ) -> Derived:
        """The base as it is after the script ran on it.

        The script sees itself and the base; no other file of the source, so that a changed line of source does not run it again,
        and no commit's time, so that whoever runs it for another commit gets the same.

        Raises:
            DesiredStateError: The script failed, or took too much.
            TrustError: Something is not what its digest says.
            OutsideError: A registry said no or does not answer, or the disk is full.
        """
        names = [[item.name, item.path] for item in secrets]
        key = digest_value(
            {"base": base.digest, "script": script.digest, "network": network, "secrets": names, "format": _FORMAT}
        )
        memo = self._folder / f"install-{key.removeprefix('sha256:')[:32]}.json"
        known = read_memo(memo)
        if known is None or not all(self._layout.has(known[part]) for part in ("digest", "config")):
            progress(f"running {script.path} on the base")
            job = DockerfileJob(
                subject=f"{subject}: INSTALL_SCRIPT",
                files={
                    "Dockerfile": Stored(data=install_dockerfile(script, base.reference).encode()),
                    script.path: script.content,
                },
                committed_at=EPOCH,
                secrets=secrets,
                network=network,
                rules=rules,
            )
            built = self._driver.build(job, self._layout, progress)
            config = self._layout.manifest(built.digest)["config"]["digest"]
            known = {"digest": built.digest, "config": config, "tool": built.tool}
            self._folder.mkdir(parents=True, exist_ok=True)
            write_memo(memo, known)
        manifest = self._layout.manifest(known["digest"])
        config = json.loads(self._layout.get(known["config"]))
        layers, diff_ids = tuple(manifest["layers"]), tuple(config["rootfs"]["diff_ids"])
        return Derived(
            base=replace(base, config=config, layers=layers, diff_ids=diff_ids),
            digest=Digest(known["digest"]),
            script=script.digest,
            network=network,
            tool=str(known["tool"]),
        )
