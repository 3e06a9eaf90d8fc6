"""`python -m controller.own_image`: the controller's own image, made of the parts that build everybody's images.

It is made from a checkout whose environment is installed from the lock (`make` does that). Equal inputs give an equal digest.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import posixpath
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from controller.adapters.attest.sbom import sbom_of
from controller.adapters.attest.signing import sign_image
from controller.adapters.build.fetching import fetch_wheels
from controller.adapters.build.requirements import taken_out, wanted_of
from controller.adapters.clock import SystemClock
from controller.adapters.keys import ImageKey, ImageSigner
from controller.adapters.oci.access import Access, access_from_docker_config, names_host
from controller.adapters.oci.assembly import (
    INTERPRETER,
    PLATFORM,
    PYTHON,
    SITE,
    Base,
    Program,
    WheelLayers,
    assemble,
    based_on,
    file_digest,
    package_folder,
    room_for_wheels,
    tree,
    venv,
)
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.bytecode import compiler_for
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from controller.project import example_folder
from policies.canonical import digest_value
from policies.errors import ControllerError, DesiredStateError
from policies.locks import Lock, Target
from policies.terms.digest import Digest, digest_of

BUILDER = "myelin.io/builders/controller/v1"
PACKAGES = ("controller", "reconcilers", "policies", "myelin")
WITHOUT_WHEELS = ("hpbandster",)
"""Pure Python that its authors published as source only: its modules are taken as they are installed here."""
MOSTLY_UNUSED = ("kubernetes-",)
"""Not compiled: a module for each kind of object, of nearly 2,000 files 39 are ever loaded; it would be a third of all."""
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements" / "controller.txt"
VARIABLES = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}
COMPILED = {"PYTHONDONTWRITEBYTECODE": "1"}
"""The image is read-only, and what is compiled lies in it: a pod that starts loads its modules in a third of the time."""
NOT_COMPILED = {"PYTHONPYCACHEPREFIX": "/tmp/pycache"}
"""Modules that a pod compiled outlive its container's restarts; with this, none that lie in the image count."""
SCRIPT = f"#!{INTERPRETER}\nimport sys\n\nfrom controller.cli import main\n\nsys.exit(main())\n"


def build(
    layout: Layout,
    folder: Path,
    base: Base,
    *,
    requirements: Path = REQUIREMENTS,
    key: ImageSigner | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Digest:
    """Build the controller's image into a layout.

    Args:
        layout: Where it goes.
        folder: Wheels and memories of layers; may be deleted.
        base: What it is built on; it must have git.
        requirements: The controller's lock.
        key: Signs it; None: nobody does.
        progress: Told what goes on.

    Raises:
        DesiredStateError: The base has no git, the lock is not to be had, or something else is installed here than it says.
        SilentError: The index does not answer.
    """
    if not any(posixpath.basename(path) == "git" for path in base.programs):
        text = f"base {base.reference}: expected git, which the controller reads repositories with, got none"
        raise DesiredStateError(f"{text}; take a base that has it", reason="BaseGit")
    if not requirements.exists():
        text = f"{requirements}: expected the controller's lock, it is missing; run this from a checkout"
        raise DesiredStateError(text, reason="NoLock")
    text, sources = taken_out(requirements.read_text(), WITHOUT_WHEELS)
    target = Target(python=PYTHON, platform=PLATFORM)
    lock = Lock(text=text, origin=requirements.name, resolved=False, wheels=wanted_of(text, requirements.name, target))
    folder.mkdir(parents=True, exist_ok=True)
    wheels = [wheel.path for wheel in fetch_wheels(lock, folder / "wheels", target, progress=progress)]
    progress(f"{len(wheels)} wheels, laying layers")
    installed = [_installed(name, version) for name, version in sorted(sources.items())]
    own = _own_files()
    more, links = venv(base)
    wheel_layers, most = WheelLayers(layout, folder), room_for_wheels(base)
    layers = [*wheel_layers.laid(wheels, most=most), *(lay(layout, files) for files in installed)]
    compiler = compiler_for(base.exact, folder / "bytecode")
    if compiler is not None:
        progress(f"compiling modules for Python {compiler.version}")
        own_compiler = compiler_for(base.exact, folder / "bytecode-own") or compiler
        layers += wheel_layers.bytecode([item for item in wheels if not item.name.startswith(MOSTLY_UNUSED)], compiler, most=most)
        layers += [lay(layout, own_compiler.of_files(files, SITE)) for files in (*installed, own)]
    else:
        progress(f"no Python {base.exact or PYTHON} here: modules are not compiled, so its pod starts slowly")
    layers.append(lay(layout, {**own, **more}, links))
    env = {**VARIABLES, **(COMPILED if compiler is not None else NOT_COMPILED)}
    program = Program(entrypoint=(INTERPRETER, "-m", "controller"), args=("operate",), env=env, folder="/tmp")
    digest = assemble(layout, layers, program, base=base, annotations=based_on(base))
    if key is not None:
        progress("signing")
        parts = [own, *installed]
        content = digest_value({path: digest_of(item.data) for files in parts for path, item in files.items()})
        provenance = _provenance(base, wheels, content, compiler.version if compiler is not None else "")
        sign_image(layout, digest, key, provenance, sbom_of(digest, "controller", provenance))
    return digest


def _own_files() -> dict[str, Stored]:
    files: dict[str, Stored] = {}
    for name in PACKAGES:
        files |= tree(package_folder(name), f"{SITE}/{name}")
    files |= tree(example_folder(), f"{SITE}/controller/example-repo")
    return {**files, "opt/venv/bin/myelin": Stored(data=SCRIPT.encode(), executable=True)}


def _installed(name: str, version: str) -> dict[str, Stored]:
    """The modules of an installed package, each checked against what was written down when it was installed."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        found = None
    if found is None or found.version != version:
        got = found.version if found is not None else "none"
        text = f"package {name}: expected version {version} in this environment, got {got}; run `make`"
        raise DesiredStateError(text, reason="NotInstalled")
    files: dict[str, Stored] = {}
    for path in found.files or ():
        if path.parts[0] == ".." or path.parts[0].endswith(".dist-info") or "__pycache__" in path.parts:
            continue
        data = Path(str(path.locate())).read_bytes()
        # RECORD's way to write a digest (PyPA, recording installed projects): no padding.
        if path.hash is None or base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=") != path.hash.value:
            text = f"package {name}: {path}: expected what was installed, got other bytes; install it again"
            raise DesiredStateError(text, reason="NotInstalled")
        files[f"{SITE}/{path.as_posix()}"] = Stored(data=data)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    return {**files, f"{SITE}/{name}-{version}.dist-info/METADATA": Stored(data=metadata)}


def _provenance(base: Base, wheels: Sequence[Path], content: Digest, bytecode: str) -> dict[str, object]:
    used = [("source", content), *((wheel.name, file_digest(wheel)) for wheel in wheels)]
    return {
        "buildDefinition": {
            "buildType": BUILDER,
            "externalParameters": {"base": base.reference},
            "internalParameters": {"python": PYTHON, **({"bytecode": {PLATFORM: bytecode}} if bytecode else {})},
            "resolvedDependencies": [
                {"name": "base", "uri": base.reference, "digest": {"sha256": base.digest.removeprefix("sha256:")}},
                *({"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}} for name, digest in used),
            ],
        },
        "runDetails": {"builder": {"id": BUILDER}, "metadata": {"finishedOn": SystemClock().now().isoformat()}},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Build, push and print the reference by digest."""
    parser = argparse.ArgumentParser(prog="python -m controller.own_image", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="base image with Python and git, host[:port]/path@sha256:…")
    parser.add_argument("--push", required=True, metavar="HOST/PATH", help="repository to push to")
    parser.add_argument("--unsafe-plain-http", action="store_true", help="talk to that host without TLS")
    parser.add_argument("--docker-config", type=Path, metavar="FILE", help="credentials, as docker keeps them")
    parser.add_argument("--layout", type=Path, metavar="DIR", help="keep blobs here, and wheels beside it")
    parser.add_argument("--requirements", type=Path, default=REQUIREMENTS, metavar="FILE", help="the controller's lock")
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign with this P-256 key")
    options = parser.parse_args(argv)
    try:
        reference = _made(options)
    except ControllerError as error:
        _say(error.message)
        return 1
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    sys.stdout.write(f"{reference}\n")
    return 0


def _made(options: argparse.Namespace) -> str:
    config = options.docker_config.read_text() if options.docker_config else ""
    plain_host = options.push.partition("/")[0] if options.unsafe_plain_http else ""

    def access_for(repository: str) -> Access:
        host = repository.partition("/")[0]
        # Public images need no name.
        if names_host(config, host) or (config and repository == options.push):
            origin = str(options.docker_config)
            return access_from_docker_config(config, repository, origin=origin, unsafe_plain_http=host == plain_host)
        return Access(repository=repository, unsafe_plain_http=host == plain_host)

    with ExitStack() as closing_all:
        top = options.layout or Path(closing_all.enter_context(tempfile.TemporaryDirectory(prefix="myelin-image-"))) / "layout"
        folder = top.with_name(f"{top.name}.build")
        registry = closing_all.enter_context(closing(Registry(access_for(options.push))))
        layout = MirroredLayout(top, registry)
        base = Bases(layout, folder / "bases", access_for).open(options.base)
        key = ImageKey.load(options.key) if options.key else None
        digest = build(layout, folder, base, requirements=options.requirements, key=key, progress=_say)
        _say("pushing")
        layout.push(digest, tags=(f"controller-{digest.removeprefix('sha256:')[:12]}",))
        return f"{options.push}@{digest}"


def _say(text: str) -> None:
    sys.stderr.write(f"own_image: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
