"""The whole story on this machine, told while it happens: every part is the real one, run as a user would run it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from controller import answers, project
from controller.adapters.clock import SystemClock
from controller.adapters.git import pull
from controller.adapters.keys import SshKey
from controller.answers.opened import opened
from controller.stopping import stop_servers
from policies.errors import ControllerError, SilentError
from policies.records import fold
from policies.terms.release import Release

PATIENCE_SECONDS = 600.0
AXON = "digits"
WORSE = ('{name: CLASSES, value: "0,1,2,3,4,5,6,7,8,9"}', '{name: CLASSES, value: "0,1,2,3,4"}')
Found = TypeVar("Found")


def tell(folder: Path | None, *, keep: bool) -> int:
    """Tell the story; 0 when it came to its good end.

    Args:
        folder: Where; a fresh folder when None. It stays either way.
        keep: Go on serving at the end, until interrupted.
    """
    top = (folder or Path(tempfile.mkdtemp(prefix="myelin-demo-"))).resolve()
    top.mkdir(parents=True, exist_ok=True)
    teller = _Teller(top)
    try:
        return teller.tell(keep=keep)
    finally:
        teller.end()


class _Teller:
    def __init__(self, top: Path) -> None:
        self._top, self._clone = top, top / "project"
        self._started = time.monotonic()
        self._controller: subprocess.Popen[str] | None = None
        self._is_ending = False
        self._place = project.Place(url="", state=top, trust=None, work_tree=None)

    def tell(self, *, keep: bool) -> int:
        """The chapters, in order."""
        self._say(1, "a project repository from example-repo, signed by a key made here")
        self._place = project.make(self._clone, now=SystemClock().now())
        key = SshKey.load(self._clone.with_name("project.myelin") / "signer")
        self._say(2, f"the controller follows it (myelin run --repo {self._clone})")
        self._run()
        self._say(3, "it builds and signs images, prepares data, tunes")
        first = self._wait("the first version", self._newest_served)
        self._say(4, f"{first} is deployed; a handwritten image is classified through both of its URLs")
        public, own = self._urls(first)
        samples = json.loads((self._clone / "axons/digits/samples.json").read_bytes())
        picture = samples[3]
        for url in (public, own):
            digit, version = classify(url, picture["pixels"])
            print(f"   {url}predict: it is a {digit} (labelled {picture['digit']}), says {version}")
        print(drawn(picture["pixels"]))
        self._say(5, "what was learned is on main, as a signed commit")
        pull(self._clone)
        self._git("show", "--stat", "--format=%h %an: %s%n%n%b", "HEAD")
        self._say(6, "somebody pushes a worse configuration: it trains on half of the digits, and its own validation looks fine")
        manifest = self._clone / "axons/digits/axon.yaml"
        text = manifest.read_text().replace(*WORSE)
        changes: dict[str, bytes | None] = {"axons/digits/axon.yaml": text.encode()}
        project.push_as(self._place, key, changes, "Train on fewer digits, it is faster\n", now=SystemClock().now())
        second = self._wait("the second version", lambda: self._newest_served(besides=first))
        print(f"   {second} has a share of {self._shares().get(second)}, {first} has {self._shares().get(first)}")
        for version in (first, second):
            _, url = self._urls(version)
            right = sum(feed_back(url, sample) for sample in samples)
            print(f"   feedback: {version} was right on {right} of {len(samples)} images")
        self._wait("the rollback", lambda: self._is_held(second))
        pull(self._clone)
        self._git("show", "--format=%h %an: %s%n%n%b", "--stat", "HEAD")
        seconds = self._seconds_to_roll_back(second)
        print(f"   {seconds:.1f} s from the alert's firing to the commit; {self._shares()}")
        self._say(7, "the audit, from Git alone")
        for command in (["history", AXON], ["why", second], ["verify"]):
            print(f"\n$ myelin {' '.join(command)}")
            self._myelin(*command)
        is_good = bool(answers.verify(self._place)["ok"]) and classify(public, picture["pixels"])[1] == first
        self._close(keep=keep, public=public)
        return 0 if is_good else 1

    def end(self) -> None:
        """Stop everything that was started."""
        if self._controller is not None:
            self._is_ending = True
            self._controller.send_signal(signal.SIGTERM)
            self._controller.wait(30)
        stop_servers(self._place.state, jobs=True)

    def _close(self, *, keep: bool, public: str) -> None:
        print(f"\nThe story took {time.monotonic() - self._started:.0f} s. Look at:")
        print(f"   git -C {self._clone} log              the commits of people and of Myelin")
        print(f"   {self._clone}/versions, releases       what was deployed, who gets which traffic")
        print(f"   git -C {self._clone} log origin/myelin/ledger   everything that happened")
        print("Go on with your own: myelin init DIR, cd DIR, myelin run; README.md has a tutorial.")
        if not keep:
            print("Serving ends here; myelin demo --dir DIR --keep goes on, with URLs to ask and a repository to push to.")
            return
        print(f"\nServing until you press Ctrl-C. In another terminal, in {self._clone}:")
        print(f"   curl -d @question.json {public}predict     by traffic; question.json is one of axons/digits/samples.json as")
        print('                  {"data": {"ndarray": [pixels]}}')
        for version in self._shares():
            print(f"   {self._urls(version)[1]}predict     {version} alone")
        print("   myelin status, myelin endpoint digits; edit axons/digits/axon.yaml, git commit -am …, git push")
        try:
            while self._controller is not None and self._controller.poll() is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass

    def _run(self) -> None:
        command = [sys.executable, "-m", "controller", "run", "--repo", str(self._clone)]
        self._controller = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        threading.Thread(target=self._show, args=(self._controller,), daemon=True).start()

    def _show(self, controller: subprocess.Popen[str]) -> None:
        assert controller.stderr is not None
        for line in controller.stderr:
            if self._is_ending:
                return  # what it says of servers that go on is not true here: they are ended next
            print(f"   [{time.monotonic() - self._started:5.1f} s] {line.rstrip()[:160]}", flush=True)

    def _wait(self, what: str, look: Callable[[], Found]) -> Found:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if self._controller is not None and self._controller.poll() is not None:
                raise SilentError(f"demo: the controller ended with {self._controller.returncode} before {what}")
            try:
                if found := look():
                    return found
                stalled = [item for item in answers.status(self._place, "")["outcomes"] if item["state"] == "stalled"]
                if stalled:
                    raise ControllerError(f"demo: {stalled[0]['subject']}: {stalled[0]['message']}")
            except (SilentError, OSError, http.client.HTTPException):
                pass
            time.sleep(0.5)
        raise SilentError(f"demo: waited {PATIENCE_SECONDS:.0f} s for {what}; see the lines above")

    def _newest_served(self, besides: str = "") -> str:
        for version in self._shares():
            if version == besides:
                continue
            public, own = self._urls(version)
            if public and own and ask(own + "predict", {"data": {"ndarray": [[0] * 64]}})[0] == 200:
                return version
        return ""

    def _shares(self) -> dict[str, int]:
        release = self._release()
        return {item.version: item.share for item in release.spec.traffic} if release else {}

    def _release(self) -> Release | None:
        return answers.releases(self._place).get((AXON, "deployer"))

    def _is_held(self, version: str) -> bool:
        release = self._release()
        return release is not None and any(hold.version == version for hold in release.spec.holds)

    def _seconds_to_roll_back(self, version: str) -> float:
        """From the alert's firing to the rollback's record, which follows its commit, by the ledger's instants."""
        with opened(self._place) as seen:
            fold_of = fold(seen.entries())
        done = next(task for task in fold_of.tasks.values() if task.kind == "rollback" and task.version == version)
        events = [fold_of.events[event] for event in fold_of.runs[done.run].events]
        return (done.at - events[-1].at).total_seconds()

    def _urls(self, version: str) -> tuple[str, str]:
        for entry in answers.endpoint(self._place, AXON):
            for model in entry["models"]:
                for backend in model["backends"]:
                    if backend["version"] == version:
                        return entry["modelStable"]["publicUrl"], backend["url"]
        return "", ""

    def _git(self, *args: str) -> None:
        self._shown(["git", "-C", str(self._clone), "-c", "color.ui=never", *args])

    def _myelin(self, *args: str) -> None:
        self._shown([sys.executable, "-m", "controller", *args, "--repo", str(self._clone)])

    def _shown(self, command: Sequence[str]) -> None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        print("\n".join(f"   {line[:170]}" for line in (done.stdout + done.stderr).splitlines()))

    def _say(self, number: int, text: str) -> None:
        print(f"\n{number}. [{time.monotonic() - self._started:5.1f} s] {text}", flush=True)


def ask(url: str, message: Mapping[str, Any]) -> tuple[int, Mapping[str, Any], str]:
    """POST a message; status, answer, and the version that answered."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request("POST", "/" + path, json.dumps(message), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.getheader("Myelin-Version") or ""
    finally:
        connection.close()


def classify(url: str, pixels: Sequence[int]) -> tuple[str, str]:
    """Ask a URL which digit a picture shows; the digit, and the version that said so."""
    status, answer, version = ask(url + "predict", {"data": {"ndarray": [list(pixels)]}})
    if status != 200:
        raise SilentError(f"{url}predict: expected 200, got {status}: {answer}")
    row = answer["data"]["ndarray"][0]
    return str(answer["data"]["names"][row.index(max(row))]), version


def feed_back(url: str, sample: Mapping[str, Any]) -> bool:
    """Ask a URL about a sample, and tell it the truth; whether it was right."""
    digit, _ = classify(url, sample["pixels"])
    message = {"request": {"data": {"ndarray": [sample["pixels"]]}}, "truth": {"data": {"ndarray": [sample["digit"]]}}}
    ask(url + "send-feedback", message)
    return digit == str(sample["digit"])


def drawn(pixels: Sequence[int]) -> str:
    """A picture of 8 by 8 pixels, in letters."""
    shades = " .:-=+*#%@"
    rows = (pixels[start : start + 8] for start in range(0, 64, 8))
    return "\n".join("      " + "".join(shades[min(pixel * 10 // 17, 9)] * 2 for pixel in row) for row in rows)
