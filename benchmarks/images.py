"""Images: our builder beside buildah with uv and with pip, and what signing, checking and starting one costs.

Run as `python -m benchmarks.images`. All of them get the same base, wheels and hashes, lie on this machine, and push to a
registry of their own on loopback. Without buildah or a base image, what needs them is left out and said. What our builder
does not need is imported where it is used: as a command, it is measured with its start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from controller.adapters.oci.access import Access
from controller.adapters.oci.assembly import (
    INTERPRETER,
    PYTHON,
    SITE,
    Base,
    Program,
    WheelLayers,
    assemble,
    based_on,
    package_folder,
    room_for_wheels,
    tree,
    venv,
)
from controller.adapters.oci.bases import Bases
from controller.adapters.oci.layers import Laid, Stored, lay
from controller.adapters.oci.layout import CONFIG, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Registry
from policies.canonical import canonical
from policies.terms.digest import Digest

if TYPE_CHECKING:
    from controller.adapters.engine_local.launch import Launcher

ROOT = Path(__file__).resolve().parent.parent
SERVING = ROOT / "example-repo/axons/digits/serving"
ROUNDS = int(os.environ.get("MYELIN_BENCH_ROUNDS", "3"))
BUMPED, VERSIONS = "idna", ("3.8", "3.9", "3.10", "3.6", "3.7")
"""A small requirement, and other versions of it."""
LARGE_BYTES = 1 << 30
Line = Callable[..., bool]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all builders are given."""

    folder: Path
    wheels: tuple[Path, ...]
    others: tuple[Path, ...]
    """Wheels of one requirement in other versions."""

    def lock(self, wheels: Sequence[Path]) -> str:
        """Requirements with hashes that only these wheels fit."""
        rows = []
        for path in wheels:
            name, version = path.name.split("-")[:2]
            rows.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
        return "\n".join(rows) + "\n"

    def bumped(self, number: int) -> list[Path]:
        """The wheels with another version of one small requirement."""
        kept = [path for path in self.wheels if not path.name.startswith(f"{BUMPED}-")]
        return [*kept, self.others[number % len(self.others)]]

    def app(self, number: int) -> Path:
        """Source of which one line says `number`."""
        place = self.folder / f"app-{number}"
        if not place.exists():
            shutil.copytree(SERVING, place)
            with (place / "Digits.py").open("a") as file:
                file.write(f"\n\nNUMBER = {number}\n")
        return place


def measure(folder: Path, line: Line) -> Iterator[bool]:
    """Print a line for each figure."""
    from tests.cluster import base_image, cache
    from tests.contracts.registry_server import why_no_registry

    wheelhouse = cache.keep("bench", cache.digest_of(_lock().encode(), " ".join(VERSIONS).encode()), _download)
    every = sorted(wheelhouse.glob("*.whl"))
    others = tuple(path for path in every if path.name.startswith(tuple(f"{BUMPED}-{version}-" for version in VERSIONS)))
    scene = Scene(folder=folder, wheels=tuple(path for path in every if path not in others), others=others)
    yield from _in_process(scene, line)
    yield from _memory(scene, line)
    yield from _started(scene, line)
    missing = why_no_registry() or ("" if shutil.which("mmdebstrap") or base_image.is_made() else "mmdebstrap: it makes the base")
    if missing:
        print(f"left out, as something is missing: {missing}")
        return
    yield from _signed(scene, line)
    yield from _beside_buildah(scene, line)


def _lock() -> str:
    """What the builder would install: the image's own requirements, and those of our runtime that it does not name."""
    from controller.adapters.build.requirements import taken_out
    from policies.locks import OURS, lines_of, name_in

    own, _ = taken_out((SERVING / "requirements.txt").read_text(), (OURS,))
    runtime = (package_folder("myelin") / "requirements.txt").read_text()
    named = [name_in(line.text) for line in lines_of(own) if line.kind == "requirement"]
    return own.rstrip("\n") + "\n" + taken_out(runtime, named)[0]


def _download(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "lock.txt").write_text(_lock())
    environment = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(place)]
    subprocess.run([*pip, "--require-hashes", "-r", str(place / "lock.txt")], check=True, env=environment)
    for version in VERSIONS:
        subprocess.run([*pip, f"{BUMPED}=={version}"], check=True, env=environment)


def _access(repository: str) -> Access:
    return Access(repository=repository, unsafe_plain_http=True)


def _image(
    layout: Layout,
    shelf: WheelLayers,
    wheels: Sequence[Path],
    app: dict[str, Stored],
    base: Base | None,
    more: Sequence[Laid] = (),
) -> Digest:
    """What the controller does once it has wheels and source."""
    files, links = venv(base)
    layers = [*shelf.laid(wheels, most=room_for_wheels(base)), *more, lay(layout, {**app, **files}, links)]
    program = Program(entrypoint=(INTERPRETER, "-m", "myelin.serve"), env={"MODEL_NAME": "Digits", "MYELIN_PYTHON": PYTHON})
    return assemble(layout, layers, program, base=base, annotations=based_on(base))


def _in_process(scene: Scene, line: Line) -> Iterator[bool]:
    state = scene.folder / "in-process"
    layout, shelf = Layout(state / "store"), WheelLayers(Layout(state / "store"), state)
    took = _seconds(lambda: shelf.laid(scene.wheels))
    packed = sum(path.stat().st_size for path in scene.wheels) / 1e6
    line(f"layers of {len(scene.wheels)} wheels, {packed:.0f} MB, for the first time", took, "s", None)
    app = tree(SERVING, "app")
    _image(layout, shelf, scene.wheels, app, None)
    found, many = [], {f"app/f{number // 100}/m{number}.py": Stored(data=b"x = 1\n" * 60) for number in range(2043)}
    for number in range(15):
        app["app/Digits.py"] = Stored(data=app["app/Digits.py"].data + b"# %d\n" % number)
        found.append(_seconds(lambda: _image(layout, shelf, scene.wheels, app, None)))
    yield line("one changed source line, in process", _median(found) * 1e3, "ms", 5.0)
    found = []
    for number in range(5):
        many["app/f1/m100.py"] = Stored(data=b"%d" % number)
        found.append(_seconds(lambda: _image(layout, shelf, scene.wheels, many, None)))
    yield line("one of 2043 source files changed, in process", _median(found) * 1e3, "ms", 100.0)
    sizes = [_sizes(layout, _image(layout, shelf, scene.wheels, files, None)) for files in (app, many)]
    shared = sum(size for digest, size in sizes[0].items() if digest in sizes[1]) / sum(sizes[0].values())
    line("bytes that a second service shares", shared * 100, "%", None)
    yield shared >= 0.95


def _sizes(layout: Layout, digest: Digest) -> dict[str, int]:
    return {item["digest"]: item["size"] for item in layout.manifest(digest)["layers"]}


def _memory(scene: Scene, line: Line) -> Iterator[bool]:
    """The most memory that a process takes for an image of a gigabyte."""
    state = scene.folder / "large"
    state.mkdir()
    block = os.urandom(1 << 20)
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        path = state / f"{name}-1.0-py3-none-any.whl"
        with (
            zipfile.ZipFile(path, "w", method, compresslevel=1) as archive,
            archive.open(f"{name}.bin", "w", force_zip64=True) as file,
        ):
            for _ in range(LARGE_BYTES // 2 // len(block)):
                file.write(block)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.images", "large", str(state)], cwd=ROOT, capture_output=True, check=True
    )
    shutil.rmtree(state)
    yield line("peak memory of building an image of 1 GiB", int(done.stdout) / 1e3, "MB", 150.0)


def _large(state: Path) -> None:
    layout = Layout(state / "store")
    digest = _image(layout, WheelLayers(layout, state), sorted(state.glob("*.whl")), {}, None)
    layout.check_all(digest)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    print(int(found[1]) * 1024 // 1000)


def _started(scene: Scene, line: Line) -> Iterator[bool]:
    """From the start of the example's server, as the engine on one machine starts it, to its first answer."""
    from controller.adapters.engine_local.launch import Launcher, bubblewrap
    from controller.adapters.oci.bytecode import OWN_VERSION, compiler_for

    state = scene.folder / "in-process"
    layout, shelf = Layout(state / "store"), WheelLayers(Layout(state / "store"), state)
    runtime = tree(package_folder("myelin"), f"{SITE}/myelin", "*.py")
    compiler = compiler_for(OWN_VERSION, state / "bytecode")
    assert compiler is not None
    begun = time.perf_counter()
    compiled = [*shelf.bytecode(scene.wheels, compiler), lay(layout, compiler.of_files(runtime, SITE))]
    line("bytecode of these wheels, for the first time", time.perf_counter() - begun, "s", None)
    line("size of its layers", sum(layer.descriptor["size"] for layer in compiled) / 1e6, "MB", None)
    launcher, app = Launcher(layout, state / "unpacked", bubblewrap()), tree(SERVING, "app")
    model = _model(scene.folder / "model", state, launcher, layout, shelf, scene, app)
    without = _image(layout, shelf, scene.wheels, app, None, [lay(layout, runtime)])
    having = _image(layout, shelf, scene.wheels, app, None, [lay(layout, runtime), *compiled])
    slow = _median([_first_answer(launcher, without, model) for _ in range(5)])
    quick = _median([_first_answer(launcher, having, model) for _ in range(7)])
    yield line("start to first answer, with bytecode", quick, "s", 1.0, ("without", slow))
    alone = _median([_loaded(launcher, having, model) for _ in range(7)])
    line("a bare Python that loads the model, with bytecode", alone, "s", None)


def _model(
    place: Path, state: Path, launcher: Launcher, layout: Layout, shelf: WheelLayers, scene: Scene, app: dict[str, Stored]
) -> Path:
    place.mkdir()
    text = "import sys, joblib, numpy\nfrom sklearn.linear_model import LogisticRegression as Model\n"
    text += "chance = numpy.random.default_rng(1)\nX, y = chance.random((200, 64)), numpy.arange(200) % 10\n"
    text += "joblib.dump(Model(max_iter=20000).fit(X, y), sys.argv[1])\n"
    image = _image(layout, shelf, scene.wheels, {**app, "app/fit.py": Stored(data=text.encode())}, None)
    target = str(place / "model.joblib")
    program = launcher.program(image, command=("python", "/app/fit.py"), args=(target,), env={}, writable=[place])
    subprocess.run(program.argv, env=dict(program.env), cwd=program.cwd, check=True, stderr=subprocess.DEVNULL)
    return place


def _first_answer(launcher: Launcher, image: Digest, model: Path) -> float:
    import urllib.error
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"PORT": str(port), "HOST": "127.0.0.1", "MODEL_PATH": f"{model}/"}
    program = launcher.program(image, command=(), args=(), env=env, writable=[model])
    question = json.dumps({"data": {"ndarray": [[0.0] * 64]}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", question, {"Content-Type": "application/json"})
    begun = time.perf_counter()
    server = subprocess.Popen(
        program.argv, env=dict(program.env), cwd=program.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while time.perf_counter() - begun < 60:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
                return time.perf_counter() - begun
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, "the server ended"
                time.sleep(0.005)
        raise TimeoutError("no answer within a minute")
    finally:
        server.terminate()
        server.wait(30)


def _loaded(launcher: Launcher, image: Digest, model: Path) -> float:
    """What no server can do without: Python, the model's own libraries, and the model."""
    code = f"import gc; gc.disable(); import joblib; joblib.load({str(model / 'model.joblib')!r})"
    program = launcher.program(image, command=("python", "-c"), args=(code,), env={}, writable=[model])
    return _seconds(lambda: subprocess.run(program.argv, env=dict(program.env), cwd=program.cwd, check=True))


def _signed(scene: Scene, line: Line) -> Iterator[bool]:
    """Signature, provenance and bill of materials: made and pushed; and all of them looked at."""
    from controller.adapters.attest.sbom import sbom_of
    from controller.adapters.attest.signing import own_trust, sign_image
    from controller.adapters.attest.verifying import check_content, examine
    from controller.adapters.keys import ImageKey
    from policies.provenance import PYTHON_BUILD
    from tests.contracts.registry_server import registry_server

    key = ImageKey.generate(scene.folder / "key.pem")
    with registry_server(scene.folder / "signed") as server, closing(Registry(_access(f"{server.address}/team/app"))) as registry:
        layout = MirroredLayout(scene.folder / "in-process" / "store", registry)
        shelf = WheelLayers(layout, scene.folder / "in-process")
        used = [{"name": path.name, "digest": {"sha256": shelf.digest(path).removeprefix("sha256:")}} for path in scene.wheels]
        source = {"name": "source", "digest": {"gitCommit": "c" * 40}}
        provenance = {
            "buildDefinition": {
                "buildType": PYTHON_BUILD,
                "externalParameters": {"source": {"commit": "c" * 40}},
                "resolvedDependencies": [source, *used],
            },
            "runDetails": {"builder": {"id": PYTHON_BUILD}},
        }
        sign, check, whole = [], [], []
        for number in range(7):
            digest = _image(layout, shelf, scene.wheels, tree(scene.app(number), "app"), None)
            layout.push(digest)
            bill = sbom_of(digest, "team/app", provenance)
            sign.append(_seconds(partial(sign_image, layout, digest, key, provenance, bill)))
            local, trust = Layout(layout.root), own_trust(key)
            check.append(_seconds(partial(examine, local, digest, trust)))
            assert len(examine(local, digest, trust).predicates) == 3
            whole.append(_seconds(partial(check_content, local, digest)))
        yield line("sign, attest and push, three claims and .sig", _median(sign) * 1e3, "ms", 100.0)
        yield line("verify all three claims, offline", _median(check) * 1e3, "ms", 35.0)
        line("read and hash all layers as well", _median(whole) * 1e3, "ms", None)


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, tool: str, folder: Path, wheels: Path) -> None:
        self.tool, self._folder, self._wheels = tool, folder, wheels
        folder.mkdir(parents=True)
        roots = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
        self._program = ["buildah", *roots, "--storage-driver", os.environ.get("STORAGE_DRIVER", "overlay")]

    def pull(self, base: str) -> None:
        """Bring the base here."""
        self._run("pull", "--quiet", "--tls-verify=false", base)

    def build(self, lock: str, app: Path, wheels: Sequence[Path], *, base: str, repository: str) -> float:
        """Build and push; how long that took."""
        del wheels  # it finds those of the lock itself
        context = self._folder / "context"
        shutil.rmtree(context, ignore_errors=True)
        shutil.copytree(app, context / "app")
        (context / "requirements.txt").write_text(lock)
        flags = "--no-index --find-links /wheels --no-deps --require-hashes -r /requirements.txt"
        install = {
            "uv": f"/tools/uv pip install --quiet --offline --no-cache --python /opt/venv/bin/python {flags}",
            "pip": f"/opt/venv/bin/python /tools/pip.whl/pip install --quiet --no-cache-dir --no-compile {flags}",
        }[self.tool]
        text = f"FROM {base}\nUSER 0\nCOPY requirements.txt /requirements.txt\n"
        text += f"RUN python3 -m venv --without-pip /opt/venv && {install}\nCOPY app /app\nUSER 65532:65532\n"
        (context / "Dockerfile").write_text(text + f'WORKDIR /app\nENTRYPOINT ["{INTERPRETER}", "-m", "myelin.serve"]\n')
        tools = self._folder / "tools"
        if not tools.exists():
            tools.mkdir()
            shutil.copy(Path(sys.executable).with_name("uv"), tools / "uv")
            shutil.copy(_pip(), tools / "pip.whl")
        begun = time.perf_counter()
        mounts = ["-v", f"{self._wheels}:/wheels:ro", "-v", f"{tools}:/tools:ro"]
        options = ["--layers", "--timestamp", "0", "--isolation", "chroot", "--tls-verify=false", "--pull-never", *mounts]
        self._run("bud", "--quiet", *options, "-t", repository, str(context))
        self._run("push", "--quiet", "--tls-verify=false", repository)
        return time.perf_counter() - begun

    def close(self) -> None:
        """Remove what it kept."""
        self._run("rmi", "--all", "--force")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([*self._program, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RuntimeError(f"buildah {arguments[0]}: {done.stderr[-2000:]}")


class Ours:
    """Our builder, as a command of its own each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def close(self) -> None:
        """Remove what it kept."""
        shutil.rmtree(self._folder)

    def pull(self, base: str) -> None:
        """Look into the base, as whoever pulls it unpacks it."""
        self._run("base", base, base.partition("@")[0] + "-seen", "", "", [])

    def build(self, lock: str, app: Path, wheels: Sequence[Path], *, base: str, repository: str, compiles: bool = False) -> float:
        """Build and push; how long that took."""
        begun = time.perf_counter()
        self._run("compiled" if compiles else "plain", base, repository, lock, str(app), wheels)
        return time.perf_counter() - begun

    def _run(self, how: str, base: str, repository: str, lock: str, app: str, wheels: Sequence[Path]) -> None:
        given = {"how": how, "state": str(self._folder), "base": base, "repository": repository, "lock": lock, "app": app}
        (self._folder / "given.json").write_text(json.dumps({**given, "wheels": [str(path) for path in wheels]}))
        # As it is where a package is installed: with its modules compiled, whatever the environment here says.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-m", "benchmarks.images", "build", str(self._folder / "given.json")]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)


def _build(given: Path) -> None:
    asked = json.loads(given.read_text())
    state = Path(asked["state"])
    with closing(Registry(_access(asked["repository"]))) as registry:
        layout = MirroredLayout(state / "store", registry)
        base = Bases(layout, state / "bases", _access).open(asked["base"])
        if asked["how"] == "base":
            return
        shelf, wheels = WheelLayers(layout, state), [Path(path) for path in asked["wheels"]]
        assert all(f"--hash={shelf.digest(path)}" in asked["lock"] for path in wheels), "another wheel than the lock says"
        compiled: list[Laid] = []
        if asked["how"] == "compiled":
            from controller.adapters.oci.bytecode import compiler_for

            compiler = compiler_for(base.exact, state / "bytecode")
            assert compiler is not None, f"no Python {base.exact or 'of the version of the base'} on this machine"
            compiled = shelf.bytecode(wheels, compiler, most=room_for_wheels(base))
        layout.push(_image(layout, shelf, wheels, tree(Path(asked["app"]), "app"), base, compiled), tags=("latest",))


def _pip() -> Path:
    found = [*Path("/usr/share/python-wheels").glob("pip-*.whl"), *Path(os.__file__).parent.glob("ensurepip/_bundled/pip-*.whl")]
    return found[0]


@contextmanager
def _registry_with_base(folder: Path) -> Iterator[tuple[str, str]]:
    """A registry's address, and the base in it."""
    from tests.cluster import base_image
    from tests.contracts.registry_server import registry_server

    made = base_image.folder()
    with registry_server(folder) as server, closing(Registry(_access(f"{server.address}/base"))) as registry:
        layout = MirroredLayout(folder / "base", registry)
        shutil.copytree(made / "blobs", layout.root / "blobs", dirs_exist_ok=True)
        manifest = layout.manifest(base_image.manifest_digest(made))
        config = json.loads(layout.get(manifest["config"]["digest"]))
        # buildah 1.28 counts layers by their history.
        config["history"] = [{"created": "1980-01-02T00:00:00Z", "created_by": "mmdebstrap"} for _ in manifest["layers"]]
        manifest["config"] = layout.descriptor(layout.put(canonical(config)), CONFIG)
        digest = layout.put(canonical(manifest))
        layout.push(digest)
        yield server.address, f"{server.address}/base@{digest}"


def _beside_buildah(scene: Scene, line: Line) -> Iterator[bool]:
    if shutil.which("buildah") is None:
        print("left out, as something is missing: buildah")
        return
    cold: dict[str, list[float]] = {}
    warm: dict[str, dict[str, list[float]]] = {}
    for number in range(ROUNDS):
        with _registry_with_base(scene.folder / f"registry-{number}") as (address, base):
            for tool, compiles in (("ours", False), ("bytecode", True), ("uv", False), ("pip", False)):
                place, repository = scene.folder / f"{tool}-{number}", f"{address}/{tool}/app"
                with closing(Buildah(tool, place, scene.wheels[0].parent) if tool in ("uv", "pip") else Ours(place)) as builder:
                    builder.pull(base)
                    more = {"compiles": True} if compiles else {}
                    build = partial(builder.build, base=base, repository=repository, **more)
                    cold.setdefault(tool, []).append(build(scene.lock(scene.wheels), scene.app(0), scene.wheels))
                    if number == ROUNDS - 1 and not compiles:
                        for name, found in _rounds(scene, build).items():
                            warm.setdefault(name, {})[tool] = found
    yield _faster("cold build and push", cold, 6, line)
    line("the same with bytecode for the base's Python", _median(cold["bytecode"]), "s", None)
    for name, found in warm.items():
        yield _faster(f"{name}, a command", found, 20 if "bumped" in name else 2, line)


def _rounds(scene: Scene, build: Callable[[str, Path, Sequence[Path]], float]) -> dict[str, list[float]]:
    """Seconds of each scenario, again and again."""
    same = scene.lock(scene.wheels)
    build(same, scene.app(1), scene.wheels)
    nothing = [build(same, scene.app(1), scene.wheels) for _ in range(5)]
    lines = [build(same, scene.app(2 + number), scene.wheels) for number in range(5)]
    bumped = []
    for number in range(ROUNDS):
        wheels = scene.bumped(number)
        bumped.append(build(scene.lock(wheels), scene.app(1), wheels))
    return {"no change": nothing, "one source line changed": lines, "one requirement bumped": bumped}


def _faster(what: str, found: dict[str, list[float]], least: float, line: Line) -> bool:
    """A line for our seconds and one for how many times as long the others took."""
    ours, uv, pip = (_median(found[name]) for name in ("ours", "uv", "pip"))
    line(what, ours, "s", None)
    is_met = min(uv, pip) >= least * ours
    beside = f"buildah with uv {uv:.2f} s, {uv / ours:.1f} x; with pip {pip:.2f} s, {pip / ours:.1f} x"
    print(f"{'':<49}{beside}  bound {least} x: {'met' if is_met else 'MISSED'}", flush=True)
    return is_met


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main(arguments: Sequence[str]) -> int:
    """Print every figure; 1 when one misses its bound."""
    if arguments[:1] == ["large"]:
        _large(Path(arguments[1]))
        return 0
    if arguments[:1] == ["build"]:
        _build(Path(arguments[1]))
        return 0
    from benchmarks.run import line

    with tempfile.TemporaryDirectory(prefix="myelin-bench-") as folder:
        return 0 if all([*measure(Path(folder), line)]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
