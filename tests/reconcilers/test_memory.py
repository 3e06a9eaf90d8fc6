"""What is remembered of manifests between two commits: never another answer than a reader without memory gives."""

from collections.abc import Mapping
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.adapters.documents import YamlDocuments
from controller.trustfile import signers_of
from policies.terms.document import LoadedDocument
from policies.terms.revision import Revision
from reconcilers.source import Memory, read
from tests.fakes.repository import FakeRepository
from tests.fakes.wiring import CONTROLLER
from tests.fakes.world import World

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
AXON = """apiVersion: myelin.io/v1alpha1
kind: Axon
metadata: {{name: {name}}}
spec:
  artifacts: [{{name: source, path: /src}}]
  tasks:
    - name: work
      container:
        imageBuild: {{artifact: source, buildLocation: /src/{name}}}
  sensors:
    - name: on-push
      tasks: [{{resourceExecutor: {{task: work}}}}]
"""
PROJECT = b"apiVersion: myelin.io/v1alpha1\nkind: Project\nmetadata: {name: p}\n"
NAMES = ("one", "two")


class Counted(YamlDocuments):
    """Counts what is read."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def load(self, text: bytes, file: str) -> LoadedDocument:
        self.files.append(file)
        return super().load(text, file)


class Commits:
    """One commit after the other, read with what is remembered of those before."""

    def __init__(self) -> None:
        self.repository = FakeRepository(World(), CONTROLLER, signers_of=signers_of)
        self.memory, self.documents, self.tip = Memory(), Counted(), ""

    def read(self, changes: Mapping[str, bytes | None]) -> tuple[object, object]:
        """What is said with memory, and what without."""
        self.tip = self.repository.push(branch="main", parent=self.tip, changes=dict(changes), message="x", at=AT)
        revision = Revision(branch="main", commit=self.tip, at=AT, signer="x")
        self.documents.files = []
        found = read(self.repository, self.documents, revision, memory=self.memory)
        fresh = read(self.repository, YamlDocuments(), revision, memory=Memory())
        return found, fresh


steps = st.lists(
    st.dictionaries(
        st.sampled_from([f"{name}/app.py" for name in NAMES] + [f"axons/{name}/axon.yaml" for name in NAMES]),
        st.sampled_from(["", "a", "b"]),
        min_size=1,
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=40)
@given(steps)
def test_what_is_remembered_changes_no_answer(found: list[dict[str, str]]) -> None:
    commits, there = Commits(), set[str]()
    for step in found:
        changes: dict[str, bytes | None] = {"myelin.yaml": PROJECT}
        for path, text in step.items():
            if not text and path not in there:
                continue
            (there.add if text else there.discard)(path)
            manifest = AXON.format(name=path.split("/")[-2]) + f"# {text}\n"
            changes[path] = (manifest if path.endswith(".yaml") else text).encode() if text else None
        with_memory, without = commits.read(changes)
        assert with_memory == without


def test_a_commit_to_source_alone_reads_no_manifest_again() -> None:
    commits = Commits()
    commits.read({"axons/one/axon.yaml": AXON.format(name="one").encode(), "one/app.py": b"1"})
    assert commits.documents.files == ["axons/one/axon.yaml"]
    commits.read({"one/app.py": b"2"})
    assert commits.documents.files == []
    found, fresh = commits.read({"one/app.py": None})  # only now lint has something new to say, and says in which line
    assert commits.documents.files == ["axons/one/axon.yaml"]
    assert found == fresh
