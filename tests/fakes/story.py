"""A project's story on the simulated outside: two versions, bad feedback, a rollback; told to whoever wants to disturb it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.adapters.documents import YamlDocuments
from controller.loop import Following, Report, run_pass
from controller.trustfile import signers_of
from policies.canonical import canonical
from policies.errors import OutsideError
from policies.jobs import Surroundings
from policies.ledger import decode
from policies.records import fold
from policies.terms.record import Entry, Statement
from policies.terms.revision import Pin, TrustedKey
from policies.terms.trial import Ask
from tests.fakes.engine import work
from tests.fakes.ledger import BRANCH, FakeLedger
from tests.fakes.repository import FakeRepository
from tests.fakes.wiring import CONTROLLER, PERSON, MakeLedger, open_ports
from tests.fakes.world import Box, Commit, Crash, World

EXAMPLE = Path(__file__).resolve().parents[2] / "example-repo"
SMALLER = {"minBudget: 2": "minBudget: 1", "maxBudget: 18": "maxBudget: 3", "numIteration: 2": "numIteration: 1"}
TRIALS = 4
MOST_PASSES = 200
PIN = Pin(signers=(TrustedKey(name="you", key=PERSON.public()),), controller=TrustedKey(name="myelin", key=CONTROLLER.public()))
RELEASE = "releases/digits/deployer.yaml"
TRAIN = "axons/digits/training/train.py"


def project_files(write_back: Mapping[str, Any] | None = None) -> dict[str, bytes | None]:
    """example-repo with a person's key in it, less to tune and no locks, which nothing here reads.

    Args:
        write_back: `spec.writeBack`, where it is not to be the example's.
    """
    axon = (EXAMPLE / "axons/digits/axon.yaml").read_text()
    for old, new in SMALLER.items():
        assert old in axon
        axon = axon.replace(old, new)
    documents = YamlDocuments()
    text = (EXAMPLE / "myelin.yaml").read_bytes()
    project = documents.load(text, "myelin.yaml").value
    project["spec"]["trust"]["signers"] = [{"name": "you", "ssh": PERSON.public()}]
    if write_back is not None:
        project["spec"]["writeBack"] = dict(write_back)
    files: dict[str, bytes | None] = {"myelin.yaml": documents.edit(text, project), "axons/digits/axon.yaml": axon.encode()}
    for path in sorted((EXAMPLE / "axons/digits").rglob("*")):
        if path.suffix == ".py" or path.name == "environment":
            files[path.relative_to(EXAMPLE).as_posix()] = path.read_bytes()
    return files


def prepare(box: Box) -> int:
    box.data["digits.csv"] = box.env["CLASSES"].encode()
    return 0


def train(box: Box) -> int:
    given = dict(zip(box.args[::2], box.args[1::2], strict=True))
    rate, units = float(given["--learning_rate"]), int(given["--units"])
    accuracy = 0.9 - abs(rate - 0.01) + units / 10000 + int(given["--budget"]) / 1000
    box.model["model.json"] = f"{box.image} {sorted(given.items())}".encode() + box.data["digits.csv"]
    box.report.append({"kind": "result", "loss": accuracy, "lossMetric": "accuracy"})
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is left at the end, as far as it must not depend on how often somebody died."""

    commits: tuple[str, ...]
    files: Mapping[str, bytes]
    statements: tuple[str, ...]
    started: tuple[str, ...]
    servers: tuple[str, ...]


class Story:
    """One telling: a world, and a controller that is started again whenever it died.

    Args:
        ledger: Makes the ledger of each controller.
        lives: After how many port calls each controller dies; those after the last one do not.
        goes_on: Whether jobs, builds and servers go on while no controller lives.
        loses_disk: Whether what was not pushed is lost with each controller.
        write_back: `spec.writeBack` of the project, where it is not to be the example's.
    """

    def __init__(
        self,
        *,
        ledger: MakeLedger = FakeLedger,
        lives: Iterable[int] = (),
        goes_on: bool = False,
        loses_disk: bool = False,
        write_back: Mapping[str, Any] | None = None,
    ) -> None:
        self._write_back = write_back
        self.world = World()
        self.world.programs |= {
            "axons/digits/data": prepare,
            "axons/digits/training": train,
            "axons/digits/serving": lambda _: None,
        }
        self.person = FakeRepository(self.world, PERSON, author="you", email="you@localhost", signers_of=signers_of)
        self.deaths = 0
        self._ledger, self._lives, self._goes_on, self._loses_disk = ledger, iter(lives), goes_on, loses_disk
        self._is_open = False

    def tell(self) -> Ending:
        """From the first commit to the end of the alert."""
        self.begin()
        self.go_bad()
        self.recover()
        return self.ending()

    def begin(self) -> None:
        """Two commits of a person, each of which becomes a version."""
        self.push(project_files(self._write_back), "Start a project\n")
        self.settle()
        self.world.move(60)
        self.push({TRAIN: b"# better\n"}, "Train better\n")
        self.settle()

    def go_bad(self) -> None:
        """The newest version's answers turn out to be wrong, for long enough."""
        address = self.address(self.versions()[-1])
        self.world.outside.exposed[address] = [({"__name__": "deploy_accuracy_digits"}, 0.5)]
        self.world.move(8)
        self.settle()

    def recover(self) -> None:
        """Nobody asks the bad version any more."""
        self.world.outside.exposed.clear()
        self.world.move(10)
        self.settle()

    def settle(self) -> Report:
        """Passes until nothing is due and nothing goes on. Time stands still; what goes on ends when a pass had no more to do."""
        for _ in range(MOST_PASSES):
            met = self.world.faults_met
            try:
                if not self._is_open:
                    self._open()
                report = run_pass(self.following, self.ports)
            except Crash:
                self.deaths, self._is_open = self.deaths + 1, False
                if self._loses_disk:
                    self.world.outside.disks.clear()
                if self._goes_on:
                    work(self.world)
                continue
            except OutsideError:
                # A controller may refuse to start while the outside is away; one that runs goes on.
                assert not self._is_open
                continue
            if report.look_again or self.world.faults_met > met:
                continue
            if not work(self.world):
                return report
        raise AssertionError(f"never at rest: {report.outcomes}")

    def push(self, files: Mapping[str, bytes | None], message: str) -> str:
        """What a person does: a signed commit on the tip."""
        parent = self.person.fetch("main")
        return self.person.push(branch="main", parent=parent, changes=files, message=message, at=self.world.outside.now)

    def commits(self, branch: str = "main") -> list[Commit]:
        """A branch's commits, oldest first."""
        tip = self.world.outside.branches.get(branch, "")
        return [self.world.outside.commits[facts.commit] for facts in self.person.facts(since="", until=tip)]

    def files(self) -> Mapping[str, bytes]:
        """What is on the branch."""
        return self.commits()[-1].files

    def release(self) -> dict[str, Any]:
        """What the release says."""
        value: dict[str, Any] = YamlDocuments().load(self.files()[RELEASE], RELEASE).value["spec"]
        return value

    def versions(self) -> list[str]:
        """Names of the versions on the branch, in the order of their commits."""
        found: list[str] = []
        for commit in self.commits():
            paths = [path for path in commit.files if path.startswith("versions/")]
            found += [name for path in paths if (name := Path(path).stem) not in found]
        return found

    def address(self, version: str) -> str:
        """Where a version's server answers."""
        found = [item for item in self.world.outside.servers.values() if item.spec.labels.get("version") == version]
        return f"127.0.0.1:{found[0].port}"

    def entries(self) -> list[Entry]:
        """What is on the ledger's branch."""
        files = self.commits(BRANCH)[-1].files
        return [decode(line) for _, text in sorted(files.items()) for line in text.splitlines()]

    def statements(self) -> list[Statement]:
        """What the ledger's branch says."""
        return [entry.statement for entry in self.entries()]

    def kinds(self) -> Counter[str]:
        """How many statements of each kind are in the ledger."""
        return Counter(said.kind for said in self.statements())

    def asks(self) -> list[Ask]:
        """Every configuration that was to be tried."""
        asked = fold(entry for entry in self.entries() if entry.statement.kind == "ask")
        return [ask for asks in asked.asks.values() for ask in asks]

    def ending(self) -> Ending:
        """What is left."""
        return Ending(
            commits=tuple(commit.message for commit in self.commits()),
            files=self.files(),
            statements=tuple(
                sorted(f"{entry.statement.key} {canonical(entry.statement.body).decode()}" for entry in self.entries())
            ),
            started=tuple(sorted(self.world.outside.started)),
            servers=tuple(sorted(f"{name} {server.phase}" for name, server in self.world.outside.servers.items())),
        )

    def _open(self) -> None:
        life = next(self._lives, None)
        if life is not None:
            self.world.crash_at = len(self.world.calls) + life
        self.ports = open_ports(self.world, ledger=self._ledger)
        self.following = Following(branch="main", pin=PIN, around=Surroundings())
        self._is_open = True
