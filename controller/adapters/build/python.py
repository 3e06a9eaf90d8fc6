"""The Python builder: source of a commit, locked wheels and our runtime, laid on a base. No daemon, no root, no container.

Law: an image's bytes follow from its source, its wheels, our runtime, its base and the rules alone. Its provenance names all of
these, so it can be laid again from that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.adapters.attest.provenance import Making, materials_of, provenance_of
from controller.adapters.build.driver import Built, Progress
from controller.adapters.build.folder import INSTALL_SCRIPT, Folder, read_folder
from controller.adapters.build.image_wheels import ImageWheels, builds_of, sources_of
from controller.adapters.build.leaks import MountedSecret
from controller.adapters.build.s2i import Derived, InstallScripts, profile_of, script_of
from controller.adapters.build.scanning import Scanner
from controller.adapters.build.standards import host, rank_of
from controller.adapters.build.wheel_store import Wheel
from controller.adapters.image_source import SourceReader
from controller.adapters.oci.assembly import (
    INTERPRETER,
    PLATFORM,
    PYTHON,
    SITE,
    Base,
    Program,
    WheelLayers,
    assemble,
    assemble_index,
    based_on,
    package_folder,
    room_for_wheels,
    tree,
    venv,
)
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.bytecode import OWN_VERSION, Compiler, compiler_for
from controller.adapters.oci.layers import Stored, lay
from controller.adapters.oci.layout import Layout
from controller.adapters.oci.tar import EPOCH
from policies.canonical import digest_value
from policies.errors import DesiredStateError
from policies.identity import image_identity
from policies.locks import OWN_LOCK, Lock, Target, Wanted
from policies.provenance import PYTHON_BUILD
from policies.reproducibility import Report, is_built_again
from policies.terms.build import BuildSecret
from policies.terms.digest import Digest, digest_of
from policies.terms.secret import Secret
from policies.terms.task import ImageSpec

REVISION, CREATED = "org.opencontainers.image.revision", "org.opencontainers.image.created"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What goes into an image for one kind of machine."""

    base: Base | None
    wheels: tuple[Wheel, ...]
    version: str
    """Of the Python that compiles modules, `3.11.2`; empty: none are compiled."""
    derived: Derived | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything that is laid, before anything is."""

    folder: Folder
    lock: Lock
    parts: Mapping[str, _Part]
    """By platform, sorted."""
    runtime: Mapping[str, Stored]
    committed_at: int


class PythonBuilder:
    """Implements `controller.adapters.build.driver.Driver`.

    Args:
        reader: Reads source.
        layout: Where images go.
        folder: Wheels and memories of layers; may be deleted.
        bases: Opens base images.
        scripts: Runs install scripts, with the BuildKit at an address or here.
        secret: The files of a Secret in the project's namespace, for install scripts.
        scanner: Refuses keys in source.
    """

    def __init__(
        self,
        reader: SourceReader,
        layout: Layout,
        folder: Path,
        bases: Bases,
        scripts: Callable[[str], InstallScripts],
        secret: Callable[[BuildSecret], Mapping[str, Secret]],
        scanner: Scanner,
    ) -> None:
        self._reader, self._layout, self._folder, self._bases = reader, layout, folder, bases
        self._scripts, self._secret, self._scanner = scripts, secret, scanner
        self._wheel_layers = WheelLayers(layout, folder)
        self._runtime = ""

    def identity(self, spec: ImageSpec) -> Digest:
        """Source, base and rules; our runtime and Python too, as they are part of every image."""
        runtime = self._runtime_digest()
        return digest_value({"image": image_identity(spec), "python": PYTHON, "runtime": runtime, "format": PYTHON_BUILD})

    def build(self, spec: ImageSpec, progress: Progress) -> Built:
        """Build an image into the store."""
        plan = self._planned(spec, progress)
        progress(f"{len(_wheels_of(plan))} wheels, laying layers")
        digest = self._laid(spec, plan, self._layout, self._wheel_layers, self._folder)
        report = None
        if is_built_again(spec.rules.reproducibility, self.identity(spec)):
            progress("building again, to compare")
            report = self._again(spec, plan, digest, progress)
        first = next(iter(plan.parts.values()))
        internal: dict[str, Any] = {
            "python": PYTHON,
            "runtime": self._runtime_digest(),
            "platforms": list(plan.parts),
            "epoch": EPOCH,
            "bytecode": {platform: part.version for platform, part in plan.parts.items() if part.version},
            # A wheel for any machine may be taken for one kind of them alone.
            **({"wheels": _by_platform(plan)} if len(plan.parts) > 1 else {}),
            "builds": {file: told for part in plan.parts.values() for file, told in builds_of(part.wheels).items()},
            **({"lock": {"origin": plan.lock.origin, "text": plan.lock.text}} if plan.lock.resolved else {}),
            **({"reproducible": report.told()} if report is not None else {}),
        }
        if first.derived is not None:
            derived = first.derived
            internal["script"] = {"digest": derived.script, "made": derived.digest, "tool": derived.tool}
        data = plan.folder.data()
        sources = {file: digest for part in plan.parts.values() for file, digest in sources_of(part.wheels).items()}
        materials = {
            "commit": spec.commit,
            "folder": spec.folder,
            "tree": spec.tree,
            **_elsewhere(spec),
            "base": spec.base,
            "python": PYTHON,
            "wheels": _wheels_of(plan),
            **({"sources": sources} if sources else {}),
            **({"data": data} if data else {}),
            **({"submodules": _modules_of(plan.folder)} if plan.folder.submodules else {}),
            **({"reproducible": report.told()} if report is not None else {}),
            **({"lock": digest_of(plan.lock.text.encode())} if plan.lock.resolved else {}),
        }
        making = Making(
            repository=self._reader.url,
            base_digest=first.base.digest if first.base is not None else "",
            internal={key: value for key, value in internal.items() if value not in ({}, "")},
        )
        return Built(digest=digest, materials=materials, provenance=provenance_of(spec, materials, making))

    def rebuild(self, spec: ImageSpec, provenance: Mapping[str, Any], layout: Layout, folder: Path, progress: Progress) -> Digest:
        """Lay an image again from what its provenance says went in, into another store.

        Args:
            spec: What the provenance says was asked for.
            provenance: The predicate.
            layout: Where it goes, with nothing of the first build in it.
            folder: The same for memories.
            progress: Told what goes on.

        Raises:
            DesiredStateError: It was made with another runtime or Python than this controller has.
            TrustError: Something is not what its digest says.
            OutsideError: The index, a registry or a repository does not answer.
        """
        inner = provenance["buildDefinition"]["internalParameters"]
        for name, own in (("runtime", self._runtime_digest()), ("python", PYTHON)):
            if inner.get(name) != own:
                made = inner.get(name)
                text = f"{spec.repository}: expected an image with this controller's {name} {own}, it was made with {made}"
                raise DesiredStateError(f"{text}; take the controller that made it", reason="OtherBuilder")
        # What it was made for where nobody said so: for the machine that it was made on.
        made_for = tuple(inner.get("platforms") or spec.rules.platforms)
        spec = replace(spec, rules=replace(spec.rules, platforms=made_for))
        plan = self._planned(spec, progress, known=provenance)
        progress("laying layers")
        return self._laid(spec, plan, layout, WheelLayers(layout, folder), folder)

    def materials(self, provenance: Mapping[str, Any], spec: ImageSpec) -> Mapping[str, Any] | None:
        """What went into an image; None: another tree, base, Python or runtime than would go in here."""
        found = materials_of(provenance)
        same = {"tree": spec.tree, "base": spec.base, "python": PYTHON, "runtime": self._runtime_digest()}
        if {key: found.pop(key, None) if key == "runtime" else found.get(key) for key in same} != same:
            return None
        told = provenance["buildDefinition"]["internalParameters"].get("reproducible")
        if told is None and is_built_again(spec.rules.reproducibility, self.identity(spec)):
            return None
        if told is not None:
            found["reproducible"] = told
        if lock := provenance["buildDefinition"]["internalParameters"].get("lock"):
            found["lock"] = digest_of(lock["text"].encode())
        return found

    def _planned(self, spec: ImageSpec, progress: Progress, known: Mapping[str, Any] | None = None) -> _Plan:
        if profile := profile_of(spec.builder_image, spec.repository):
            progress(profile.note)
        folder = read_folder(self._reader, spec)
        progress("looking for keys and passwords")
        self._scanner.refuse(folder.texts, spec.folder)
        package = package_folder("myelin")
        parts, lock = {}, None
        for platform in spec.rules.platforms or (PLATFORM,):
            part, read = self._part(spec, folder, platform, progress, known)
            # What the lock says for one kind of machine is what it says for all.
            parts[platform], lock = part, lock or read
        assert lock is not None
        committed_at = self._reader.committed_at(spec) if spec.rules.stamps else 0
        return _Plan(folder=folder, lock=lock, parts=parts, runtime=_runtime_files(package), committed_at=committed_at)

    def _part(
        self, spec: ImageSpec, folder: Folder, platform: str, progress: Progress, known: Mapping[str, Any] | None
    ) -> tuple[_Part, Lock]:
        chosen = self._wheels(spec, platform, progress)
        if known is None:
            lock = chosen.lock(folder.texts, spec.folder, (package_folder("myelin") / "requirements.txt").read_text())
        else:
            lock = _lock_of(known, chosen.target, platform)
        base = self._base(spec, platform, progress)
        derived = self._derived(spec, folder, base, platform, progress)
        if derived is not None and known is not None:
            _check_tool(spec, derived, known)
        if known is None:
            wheels = chosen.of(lock)
        else:
            wheels = chosen.recorded(lock, known["buildDefinition"]["internalParameters"].get("builds", {}))
        version = ""
        wanted = spec.rules.precompile if spec.rules.precompile is not None else folder.serves
        if known is not None:
            version = str(known["buildDefinition"]["internalParameters"].get("bytecode", {}).get(platform, ""))
        elif wanted and (compiler := compiler_for(base.exact if base else OWN_VERSION, self._folder / "bytecode")):
            version = compiler.version
        return _Part(base=derived.base if derived else base, wheels=wheels, version=version, derived=derived), lock

    def _wheels(self, spec: ImageSpec, platform: str, progress: Progress) -> ImageWheels:
        is_host = spec.base == "host" and platform == PLATFORM
        target = host() if is_host else Target(python=PYTHON, platform=platform)
        return ImageWheels(folder=self._folder, rules=spec.rules, target=target, is_host=is_host, progress=progress)

    def _laid(self, spec: ImageSpec, plan: _Plan, layout: Layout, wheel_layers: WheelLayers, folder: Path) -> Digest:
        images = {}
        for platform, part in plan.parts.items():
            most = room_for_wheels(part.base)
            paths = [wheel.path for wheel in part.wheels]
            layers = wheel_layers.laid(paths, most=most)
            layers.append(lay(layout, plan.runtime))
            if part.version:
                compiler = _compiler(part.version, folder / "bytecode")
                layers += wheel_layers.bytecode(paths, compiler, most=most)
                layers.append(lay(layout, compiler.of_files(plan.runtime, SITE)))
            files, links = venv(part.base)
            files |= plan.folder.placed()
            if plan.lock.resolved:
                # So the image is the same once somebody commits the lock.
                files[f"app/{OWN_LOCK}"] = Stored(data=plan.lock.text.encode())
            layers.append(lay(layout, files, {**links, **plan.folder.placed_links()}))
            images[platform] = assemble(
                layout, layers, _program(plan.folder), base=part.base, annotations=_notes(spec, plan, part), platform=platform
            )
        if len(images) == 1:
            return next(iter(images.values()))
        return assemble_index(layout, images)

    def _again(self, spec: ImageSpec, plan: _Plan, first: Digest, progress: Progress) -> Report:
        """What comes of a second build, in another folder, that remembers nothing of the first."""
        from controller.adapters.build.comparing import compare

        with tempfile.TemporaryDirectory(dir=self._folder, prefix="again-") as place:
            other = Layout(Path(place) / "store")
            parts = {}
            for platform, part in plan.parts.items():
                wheels = self._wheels(spec, platform, progress).once_more(part.wheels, Path(place) / "wheels")
                parts[platform] = replace(part, wheels=wheels)
            plan = replace(plan, parts=parts)
            second = self._laid(spec, plan, other, WheelLayers(other, Path(place)), Path(place))
            if first == second:
                return Report(first=first, second=second)
            return compare((self._layout, first), (other, second))

    def _base(self, spec: ImageSpec, platform: str, progress: Progress) -> Base | None:
        if spec.base == "host":
            if platform != PLATFORM:
                text = f"{spec.repository}: builder.platforms: expected a base image for {platform}, got the host's own system"
                raise DesiredStateError(f"{text}; set builder.base", reason="BasePlatform")
            return None
        progress("opening the base image")
        return self._bases.open(spec.base, platform=platform, signers=spec.rules.base_signers)

    def _derived(self, spec: ImageSpec, folder: Folder, base: Base | None, platform: str, progress: Progress) -> Derived | None:
        script = script_of(folder.settings, folder.files, spec.folder)
        if script is None:
            return None
        if base is None:
            text = f"{spec.repository}: {INSTALL_SCRIPT}: expected a base image to run it on, got the host's own system"
            raise DesiredStateError(f"{text}; set builder.base", reason="BaseMissing")
        if platform != PLATFORM:
            text = f"{spec.repository}: {INSTALL_SCRIPT}: expected to run it for {PLATFORM}, as this machine is, got {platform}"
            text += "; take it out of builder.platforms, or install by wheels"
            raise DesiredStateError(text, reason="BasePlatform")
        secrets = tuple(MountedSecret(name=item.name, path=item.path, files=self._secret(item)) for item in spec.secrets)
        return self._scripts(spec.rules.buildkit).derived(
            base,
            script,
            subject=spec.repository,
            progress=progress,
            rules=spec.rules,
            secrets=secrets,
        )

    def _runtime_digest(self) -> str:
        if not self._runtime:
            folder = package_folder("myelin")
            files = {path: item.data.decode(errors="replace") for path, item in _runtime_files(folder).items()}
            self._runtime = digest_value({**files, "requirements.txt": (folder / "requirements.txt").read_text()})
        return self._runtime


def _program(folder: Folder) -> Program:
    app = f"/app/{folder.settings.get('APP_FILE', 'app.py')}"
    entrypoint = [INTERPRETER, "-m", "myelin.serve"] if folder.serves else [INTERPRETER, app]
    return Program(entrypoint=entrypoint, env={"MYELIN_PYTHON": PYTHON, **folder.variables})


def _notes(spec: ImageSpec, plan: _Plan, part: _Part) -> dict[str, str]:
    if not spec.rules.stamps:
        return based_on(part.base)
    created = datetime.fromtimestamp(plan.committed_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**based_on(part.base), REVISION: spec.source_commit or spec.commit, CREATED: created}


def _compiler(version: str, folder: Path) -> Compiler:
    found = compiler_for(version, folder)
    if found is None:
        text = f"bytecode: expected a Python {version} on this machine to compile with, there is none"
        raise DesiredStateError(f"{text}; install it, or build where it is", reason="OtherBuilder")
    return found


def _check_tool(spec: ImageSpec, derived: Derived, known: Mapping[str, Any]) -> None:
    """See that a base that another program made with an install script came out the same; else nothing is said of the image."""
    made = known["buildDefinition"]["internalParameters"].get("script", {})
    if derived.digest != made.get("made") and derived.tool != made.get("tool"):
        text = f"{spec.repository}: {INSTALL_SCRIPT}: expected what {made.get('tool')} made of it, {derived.tool} makes another"
        raise DesiredStateError(f"{text}; build it where that is", reason="OtherBuilder")


def _lock_of(provenance: Mapping[str, Any], target: Target, platform: str) -> Lock:
    """The lock that an image was made by, out of its provenance: exactly these wheels, as far as they are for a platform."""
    inner = provenance["buildDefinition"]["internalParameters"]
    wheels: dict[str, Wanted] = {}
    for file, digest in _taken(materials_of(provenance)["wheels"], inner.get("wheels", {}).get(platform), target):
        name, version = file.split("-")[:2]
        plain = name.replace("_", "-").lower()
        wheels.setdefault(plain, Wanted(name=plain, version=version, hashes=(Digest(digest),), line=0, file=file))
    lock = inner.get("lock", {})
    ordered = tuple(wheels[name] for name in sorted(wheels))
    origin = str(lock.get("origin", "")) or "its provenance"
    return Lock(text=str(lock.get("text", "")), origin=origin, resolved=bool(lock), wheels=ordered)


def _taken(wheels: Mapping[str, str], named: Sequence[str] | None, target: Target) -> list[tuple[str, str]]:
    """(file, digest) of the wheels of one platform: those that are named for it, else those that fit it, the best first."""
    if named is not None:
        return [(file, wheels[file]) for file in named]
    ranked = [(rank, file) for file in wheels if (rank := rank_of(file, target)) is not None]
    return [(file, wheels[file]) for _, file in sorted(ranked)]


def _by_platform(plan: _Plan) -> dict[str, list[str]]:
    return {platform: [wheel.file for wheel in part.wheels] for platform, part in plan.parts.items()}


def _wheels_of(plan: _Plan) -> dict[str, str]:
    """File -> digest, of all kinds of machines."""
    return {wheel.file: wheel.digest for part in plan.parts.values() for wheel in part.wheels}


def _modules_of(folder: Folder) -> dict[str, str]:
    return {item.path: f"{item.url}@sha1:{item.commit}" for item in folder.submodules}


def _elsewhere(spec: ImageSpec) -> dict[str, str]:
    """What is said of source in another repository."""
    if spec.source is None:
        return {}
    return {"repo": spec.source.repo, "revision": spec.source.revision, "sourceCommit": spec.source_commit}


def _runtime_files(folder: Path) -> dict[str, Stored]:
    return tree(folder, f"{SITE}/myelin", "*.py")
