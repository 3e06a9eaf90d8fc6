"""Images brought to a real registry, Debian's on loopback: whole, again, with one line changed, and to a sibling.

Beside it, in the same run: the same bytes sent to the same registry in one stream by the standard library, which checks nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from controller.adapters.oci.layout import CONFIG, LAYER, MANIFEST, Layout
from controller.adapters.oci.mirrored import MirroredLayout
from controller.adapters.oci.registry import Access, Registry
from controller.adapters.oci.seen import Seen
from policies.canonical import canonical
from policies.terms.digest import Digest
from tests.contracts.registry_server import RegistryServer, registry_server, why_no_registry

SIZES_MB = (42, 31, 18, 9, 5, 2.5, 1.2)
"""Layers of a usual image of a model server, and a small one for the source: 8 blobs, 109 MB."""
TIMES = 3
Line = Callable[..., bool]


def measure(folder: Path, line: Line) -> Iterator[bool]:
    """Print a line for each figure."""
    if why_no_registry():
        print(why_no_registry())
        return
    folder.mkdir(parents=True)
    with ExitStack() as closing_all:
        server = closing_all.enter_context(registry_server(folder / "registry"))
        found: dict[str, list[float]] = {}

        def note(what: str, value: float) -> None:
            found.setdefault(what, []).append(value)

        for number in range(TIMES):
            _round(server, folder / str(number), note)
        median = {what: sorted(values)[len(values) // 2] for what, values in found.items()}
        stream = ("one stream of the standard library", median["stream"])
        total = sum(SIZES_MB)
        yield line(f"8 blobs, {total:.0f} MB, pushed to a registry", median["push"], "s", None, stream)
        yield line("the same again by another process: requests", median["again requests"], "", 2)
        yield line("the same again by another process", median["again"], "s", 0.050)
        yield line("one source line changed: requests", median["one requests"], "", 6)
        yield line("one source line changed: pushed", median["one"], "s", 0.050)
        yield line("sibling on the same stack: bytes read there", median["sibling sent"], "%", 5)
        yield line("sibling on the same stack: requests", median["sibling requests"], "", None)
        yield line("sibling on the same stack: pushed", median["sibling"], "s", None, ("the first push", median["push"]))


def _round(server: RegistryServer, folder: Path, note: Callable[[str, float], None]) -> None:
    seen = folder / "seen"
    folder.mkdir()
    layout = Layout(folder / "store")
    layers = [os.urandom(int(size * 1e6)) for size in SIZES_MB]
    first = _image(layout, layers, b"print(1)")
    everything = folder / "everything"
    everything.write_bytes(b"".join(layers))
    digest = hashlib.sha256(everything.read_bytes()).hexdigest()
    note("stream", _timed(lambda: _stream(server.address, f"{folder.name}/plain", everything, digest)))
    everything.unlink()

    def pushed(what: str, place: str, digest: Digest, tag: str, registry: Registry | None = None) -> Registry:
        """Count and time one push; without a registry, by one that knows nothing but what is on disk."""
        access = Access(repository=f"{server.address}/{folder.name}/{place}", unsafe_plain_http=True)
        used = registry or Registry(access)
        mirrored = MirroredLayout(layout.root, used, seen=Seen(seen))
        before = server.requests()
        note(what, _timed(lambda: mirrored.push(digest, tags=(tag,))))
        note(f"{what} requests", server.requests() - before)
        return used

    with ExitStack() as closing_all:
        registry = closing_all.enter_context(closing(pushed("push", "first", first, "v1")))
        closing_all.enter_context(closing(pushed("again", "first", first, "v1")))
        pushed("one", "first", _image(layout, layers, b"print(2)"), "v2", registry)
        sibling = _image(layout, layers, b"print('sibling')")
        before = _read_by(server.pid)
        closing_all.enter_context(closing(pushed("sibling", "second", sibling, "v1")))
        note("sibling sent", 100 * (_read_by(server.pid) - before) / sum(len(layer) for layer in layers))


def _image(layout: Layout, layers: list[bytes], source: bytes) -> Digest:
    described = [layout.descriptor(layout.put(data), LAYER) for data in (*layers, source)]
    config = canonical({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [item["digest"] for item in described]}})
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": layout.descriptor(layout.put(config), CONFIG)}
    return layout.put(canonical({**value, "layers": described}))


def _stream(address: str, path: str, file: Path, digest: str) -> None:
    """What a plain client does: begin an upload, send all of it in one request."""
    with closing(HTTPConnection(address, timeout=60)) as connection, file.open("rb") as body:
        connection.request("POST", f"/v2/{path}/blobs/uploads/")
        answer = connection.getresponse()
        answer.read()
        place = urlsplit(answer.headers["Location"])
        fields = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
        connection.request("PUT", f"{place.path}?{place.query}&digest=sha256%3A{digest}", body=body, headers=fields)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 201, answer.status


def _read_by(pid: int) -> int:
    """Bytes that a process read so far, from its connections and from files."""
    return int(Path(f"/proc/{pid}/io").read_text().split("rchar:")[1].split()[0])


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
