"""What a flood of junk at the inbox does to the loop: passes, and how soon a genuine webhook is noticed, with and without."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from controller import inbox, project
from controller.adapters.clock import SystemClock
from controller.adapters.keys import SshKey
from controller.loop import run_pass
from controller.wiring import Waker, Wired, wire
from policies.terms.secret import Secret
from tests.fakes.hooks import proof

AXONS = 10
JUNK_PER_SECOND = 1000
JUNK_SECONDS = 10.0
QUIET_SECONDS = 10.0
PASSES_PER_SECOND = 50
SENDERS = 16
HOOK_SECONDS = 1.1
"""Between two genuine webhooks: each is one of its own, and not one that waits for an earlier one's rest."""


class Line(Protocol):
    """Prints a figure beside its bound; whether it is met."""

    def __call__(
        self, what: str, got: float, unit: str, bound: float | None, baseline: tuple[str, float] | None = None
    ) -> bool: ...


def measure(
    folder: Path,
    line: Line,
    *,
    manifest: str,
    push: Callable[[project.Place, SshKey, dict[str, bytes | None]], None],
    settle: Callable[[Wired], None],
) -> Iterator[bool]:
    """Print the figures; each answer is whether one met its bound.

    Args:
        folder: An empty folder.
        line: Prints a figure.
        manifest: Text of an axon with `{number}`.
        push: Pushes files to a place.
        settle: Runs passes until nothing is due.
    """
    place = project.make(folder / "hooked", now=SystemClock().now())
    key = SshKey.load(folder / "hooked.myelin" / "signer")
    files: dict[str, bytes | None] = {"axons/digits/axon.yaml": None, "src/app.py": b"print('hello')\n"}
    files |= {f"axons/a{number}/axon.yaml": manifest.format(number=number).encode() for number in range(AXONS)}
    push(place, key, files)
    waker = Waker()
    with wire(project.settings_of(place), wake=waker.wake) as wired:
        settle(wired)
        found = inbox.webhooks(place.state / "inbox")
        port, secret = int(wired.inbox_address.rpartition(":")[2]), Secret(found["secret"])
        before = watch(wired, waker, port, secret, QUIET_SECONDS)
        sender = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hooks", str(port)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert sender.stdout is not None
        sender.stdout.readline()  # it begins
        used = time.process_time()
        during = watch(wired, waker, port, secret, JUNK_SECONDS)
        used = (time.process_time() - used) / JUNK_SECONDS
        said = sender.communicate()[0]
        after = watch(wired, waker, port, secret, QUIET_SECONDS)
    print(f"{'junk: sent and answered':<48} {said.strip()}", flush=True)
    quiet = [one + two for one, two in zip(before, after, strict=True)]
    for what, calm, busy in zip(("a pass that changes nothing", "a webhook noticed"), quiet, during, strict=True):
        few = len(busy) < 100  # webhooks come once a second: of so few, only the median says something
        for share, word in ((0.5, "median"),) if few else ((0.5, "median"), (0.9, "p90"), (0.99, "p99")):
            base, got = at(calm, share), at(busy, share)
            line(f"{what}, {word}, under junk", got * 1000, "ms", None, ("without", base * 1000))
            if share == 0.5:
                yield line(f"{what}, {word}: times as long", got / base, "x", 2.0)
    line("CPU of the controller under junk, of one core", used * 100, "%", None)


def watch(wired: Wired, waker: Waker, port: int, secret: Secret, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds that each pass took, and each webhook until it was noticed."""
    passes: list[float] = []
    noticed: list[float] = []
    over = threading.Event()

    def send() -> None:
        while not over.wait(HOOK_SECONDS):
            waker.wait(0)
            begun = time.perf_counter()
            hook(port, secret)
            waker.wait(5)
            noticed.append(time.perf_counter() - begun)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        run_pass(wired.following, wired.ports)
        passes.append(time.perf_counter() - begun)
        time.sleep(1 / PASSES_PER_SECOND)
    over.set()
    sender.join()
    return passes, noticed


def hook(port: int, secret: Secret) -> None:
    """Send a genuine webhook."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/hooks/project/generic", b"{}", proof("generic", secret, b"{}", at=datetime.now(UTC)))
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


def at(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def junk(number: int) -> bytes:
    """Guesses of all sorts: signatures, tokens, paths, and bodies from none to 10 kB."""
    body = b"x" * (0, 200, 10_000)[number % 3]
    head = (
        f"POST /hooks/project/github HTTP/1.1\r\nX-Hub-Signature-256: sha256={number:064x}",
        "POST /hooks/project/gitlab HTTP/1.1\r\nX-Gitlab-Token: guess",
        "POST /hooks/another/gitea HTTP/1.1\r\nX-Gitea-Event: push",
        f"GET /{number} HTTP/1.1\r\nAccept: */*",
        "POST /sensors/project/digits/again HTTP/1.1\r\nAuthorization: Bearer guess",
    )[number % 5]
    return f"{head}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def flood(port: int) -> dict[str, Any]:
    """Send junk, a connection for each, by several senders; what came of it."""
    answers: Counter[str] = Counter()
    begun = time.perf_counter()

    def send(first: int) -> None:
        for number in range(first, int(JUNK_PER_SECOND * JUNK_SECONDS), SENDERS):
            time.sleep(max(number / JUNK_PER_SECOND - (time.perf_counter() - begun), 0))
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as sender:
                    sender.sendall(junk(number))
                    said = sender.recv(64)[9:12].decode() or "closed"
            except OSError as error:
                said = type(error).__name__
            answers[said] += 1

    senders = [threading.Thread(target=send, args=(first,)) for first in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return {"a second": round(answers.total() / (time.perf_counter() - begun)), **answers}


if __name__ == "__main__":
    print("now", flush=True)
    print(flood(int(sys.argv[1])))
