"""Locks of every kind: the same releases out of each, and every fault with its file and line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controller.adapters.build.fetching import fetch_wheels
from controller.adapters.build.locks import read_lock
from controller.adapters.build.requirements import taken_out, wanted_of
from controller.adapters.build.resolving import Learn, Resolver, failure_of
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError
from policies.lock_files import proposed_lock
from policies.locks import Lock, Target
from policies.terms.build import NO_RULES, BuildRules
from policies.terms.digest import digest_of
from tests.controller.wheel_index import WheelIndex, wheel_bytes, wheel_index

HEAD = (
    "# Resolved by Myelin from requirements.txt, for Python 3.11 on linux/amd64 and linux/arm64.\n"
    "# Delete this file to resolve it again.\n"
)
AMD = Target(python="3.11", platform="linux/amd64")
STRICT = BuildRules(requires_hashes=True)
SOURCES = BuildRules(builds_wheels=True)
A, B, C = (digest_of(text) for text in (b"a", b"b", b"c"))


@dataclass(slots=True)
class Answers:
    """A resolver that says what it is told to, and was asked what it was asked."""

    lock: str = ""
    pylock: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    targets: Sequence[Target] = ()
    index: str = ""

    def exported(self, texts: Mapping[str, str], origin: str) -> str:
        self.asked.append(("exported", "\n".join(sorted(texts)), origin))
        return self.pylock

    def resolved(
        self,
        requirements: str,
        limits: str,
        previous: str,
        *,
        targets: Sequence[Target],
        index: str,
        origin: str,
        learn: Learn | None = None,
    ) -> str:
        self.asked.append((requirements, limits, previous))
        self.targets, self.index = targets, index
        return self.lock


def read(
    files: Mapping[str, str],
    *,
    rules: BuildRules = NO_RULES,
    target: Target = AMD,
    answers: Answers | None = None,
    runtime: str = "",
) -> Lock:
    data = {name: text.encode() for name, text in files.items()}
    return read_lock(data, "src", target, answers or Answers(), rules=rules, runtime=runtime)


def pylock(*packages: str, head: str = 'lock-version = "1.0"\ncreated-by = "test"\n') -> str:
    return head + "".join(f"\n[[packages]]\n{package}\n" for package in packages)


def package(name: str, version: str, *files: str, more: str = "") -> str:
    wheels = ", ".join(
        f'{{name = "{name}-{version}-{tags}.whl", url = "https://h.example/{name}-{version}-{tags}.whl", '
        f'hashes = {{sha256 = "{digest_of(tags.encode()).removeprefix("sha256:")}"}}}}'
        for tags in files
    )
    return f'name = "{name}"\nversion = "{version}"\n' + (f"wheels = [{wheels}]\n" if files else "") + more


SDIST = (
    'sdist = {name = "a-1.0.tar.gz", url = "https://h.example/a-1.0.tar.gz", '
    f'hashes = {{sha256 = "{A.removeprefix("sha256:")}"}}}}\n'
)


def test_no_file_asks_for_nothing_but_our_runtime() -> None:
    lock = read({"app.py": ""}, runtime=f"aiohttp==3.12 --hash={A}\n")
    assert (lock.origin, lock.resolved, lock.text) == ("", False, "")
    assert [(item.name, item.line) for item in lock.wheels] == [("aiohttp", 0)]
    assert read({}).wheels == ()


def test_the_most_exact_file_counts_and_the_others_are_not_even_read() -> None:
    files = {
        "pylock.toml": pylock(package("a", "1.0", "py3-none-any")),
        "uv.lock": "not TOML at all [",
        "requirements.lock": "nonsense nonsense",
        "requirements.txt": "more nonsense",
    }
    lock = read(files)
    assert (lock.origin, [item.name for item in lock.wheels], lock.text) == ("src/pylock.toml", ["a"], files["pylock.toml"])


def test_a_wheel_of_a_pylock_is_named_to_the_byte() -> None:
    (item,) = read({"pylock.toml": pylock(package("a", "1.0", "cp311-cp311-manylinux_2_28_x86_64", "py3-none-any"))}).wheels
    tags = "cp311-cp311-manylinux_2_28_x86_64"
    assert (item.file, item.url) == (f"a-1.0-{tags}.whl", f"https://h.example/a-1.0-{tags}.whl")
    assert (item.hashes, item.line, item.is_source) == ((digest_of(tags.encode()),), 5, False)


@pytest.mark.parametrize(
    ("target", "tags"),
    [
        (AMD, "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"),
        (Target(python="3.11", platform="linux/arm64"), "cp311-cp311-manylinux_2_17_aarch64"),
        (Target(python="3.12", platform="linux/amd64"), "cp39-abi3-manylinux_2_28_x86_64"),
        (Target(python="3.11", platform="linux/amd64", is_musl=True), "cp311-cp311-musllinux_1_2_x86_64"),
        (Target(python="3.14", platform="linux/arm64"), "py3-none-any"),
    ],
)
def test_a_pylock_gives_each_target_its_own_wheel(target: Target, tags: str) -> None:
    every = (
        "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp311-cp311-manylinux_2_17_aarch64",
        "cp311-cp311-manylinux_2_35_x86_64",
        "cp39-abi3-manylinux_2_28_x86_64",
        "cp311-cp311-musllinux_1_2_x86_64",
        "cp311-cp311-win_amd64",
        "py3-none-any",
    )
    (item,) = read({"pylock.toml": pylock(package("a", "1.0", *every))}, target=target).wheels
    assert item.file == f"a-1.0-{tags}.whl"


def test_markers_groups_and_extras_of_a_pylock_are_those_of_a_plain_install() -> None:
    groups = 'extras = ["gpu"]\ndependency-groups = ["dev", "serve"]\ndefault-groups = ["serve"]\n'
    head = f'lock-version = "1.0"\ncreated-by = "test"\n{groups}'
    text = pylock(
        package("a", "1.0", "py3-none-any"),
        package("b", "1.0", "py3-none-any", more="marker = \"'gpu' in extras\"\n"),
        package("c", "1.0", "py3-none-any", more="marker = \"'dev' in dependency_groups\"\n"),
        package("d", "1.0", "py3-none-any", more="marker = \"'serve' in dependency_groups\"\n"),
        package("e", "1.0", "py3-none-any", more="marker = \"sys_platform == 'win32'\"\n"),
        package("f", "1.0", "py3-none-any", more="marker = \"python_version < '3.12'\"\n"),
        package("f", "2.0", "py3-none-any", more="marker = \"python_version >= '3.12'\"\n"),
        package("myelin", "1.0", more=SDIST.replace("a-1.0", "myelin-1.0")),
        head=head,
    )
    assert [(item.name, item.version) for item in read({"pylock.toml": text}).wheels] == [
        ("a", "1.0"),
        ("d", "1.0"),
        ("f", "1.0"),
    ]


def test_a_requirements_file_with_hashes_leaves_the_file_to_the_index() -> None:
    text = (
        f"# \nB_c[x]==2.0 ; python_version > '3' \\\n    --hash={A} \\\n    --hash=sha512:00 \\\n    --hash={B}\n    # via a\n"
        f"d==1; sys_platform == 'win32' --hash={C}\n"
    )
    lock = read({"requirements.txt": text})
    (item,) = lock.wheels
    assert (item.name, item.version, item.hashes, item.line, item.file) == ("b-c", "2.0", tuple(sorted((A, B))), 2, "")
    assert (lock.text, lock.resolved) == (text, False)


def test_what_a_file_includes_counts_and_what_bounds_it_does_not() -> None:
    files = {
        "requirements.txt": f"--require-hashes\n-r more/base.txt\na==1 --hash={A}\n-c limits.txt\n",
        "more/base.txt": f"-r ../other.txt\nb==2 --hash={B}\n",
        "other.txt": f"c==3 --hash={C}\n",
        "limits.txt": "z<1\n",
    }
    assert [item.name for item in read(files).wheels] == ["a", "b", "c"]


FAULTS: dict[str, tuple[dict[str, str], BuildRules, str]] = {
    "a line without a pin": (
        {"requirements.txt": f"a==1 --hash={A}\nb>=2 --hash={B}\n"},
        NO_RULES,
        r"src/requirements\.txt:2: expected name==version",
    ),
    "a line without a hash": (
        {"requirements.txt": f"a==1 --hash={A}\n\nb==2\n"},
        NO_RULES,
        r"src/requirements\.txt:3: expected name==version with --hash=sha256:…, got 'b==2'",
    ),
    "a pin of many versions": ({"requirements.txt": f"a==1.* --hash={A}\n"}, NO_RULES, r"without name==version"),
    "a hash that is too weak": ({"requirements.txt": "a==1 --hash=md5:00\n"}, NO_RULES, r"without --hash=sha256"),
    "loose lines where hashes are asked for": (
        {"requirements.txt": "a\n"},
        STRICT,
        r"src/requirements\.txt:1: expected name==version",
    ),
    "something editable": (
        {"requirements.txt": "-e .\n"},
        NO_RULES,
        r"src/requirements\.txt:1: -e: expected no such option; what is installed must be a release",
    ),
    "an index": (
        {"requirements.txt": "\n-i https://ada:pw@h/simple\na\n"},
        NO_RULES,
        r"requirements\.txt:2: -i: expected no such option; .*spec\.builder\.index",
    ),
    "a second index": (
        {"requirements.txt": "--extra-index-url=https://h\n"},
        NO_RULES,
        r"--extra-index-url: expected no such option",
    ),
    "a folder of wheels": ({"requirements.txt": "--find-links ./w\n"}, NO_RULES, r"--find-links: expected no such option"),
    "an unknown option": ({"requirements.txt": "--colour red\n"}, NO_RULES, r"--colour: expected no such option; take it out"),
    "an option behind a requirement": (
        {"requirements.txt": "a==1 --global-option=x\n"},
        NO_RULES,
        r"--global-option: expected no option but --hash",
    ),
    "a path": (
        {"requirements.txt": "./a-1.0-py3-none-any.whl\n"},
        NO_RULES,
        r"requirements\.txt:1: expected a release of an index, got a path",
    ),
    "a repository": (
        {"requirements.txt": "git+https://ada:pw@h/a.git\n"},
        NO_RULES,
        r"expected a release of an index, got a path or an address",
    ),
    "an address": (
        {"requirements.txt": "a @ https://ada:pw@h/a\n"},
        NO_RULES,
        r"requirements\.txt:1: a: expected a release of an index, got an address",
    ),
    "no requirement": (
        {"requirements.txt": "this is none\n"},
        NO_RULES,
        r"requirements\.txt:1: expected a requirement, got 'this is none'",
    ),
    "two versions": (
        {"requirements.txt": f"a==1 --hash={A}\na==2 --hash={B}\n"},
        NO_RULES,
        r"requirements\.txt:2: a: expected one version, got 2 and, in line 1, 1",
    ),
    "a file that is not there": (
        {"requirements.txt": "-r other.txt\n"},
        NO_RULES,
        r"-r 'other\.txt': expected a file of the source folder",
    ),
    "a file outside": ({"requirements.txt": "-r ../../etc/passwd\n"}, NO_RULES, r"expected a file of the source folder"),
    "a file in itself": (
        {"requirements.txt": "-r b.txt\n", "b.txt": "-r requirements.txt\n"},
        NO_RULES,
        r"src/b\.txt:1: -r 'requirements\.txt': expected another file",
    ),
    "a lock that does not fit": (
        {"requirements.txt": "a>=2\n", "requirements.lock": f"a==1 --hash={A}\n"},
        STRICT,
        r"src/requirements\.lock: expected a>=2, as requirements\.txt says, got 1; lock it again",
    ),
    "a lock without a package": (
        {"requirements.txt": "b\n", "requirements.lock": f"a==1 --hash={A}\n"},
        STRICT,
        r"expected b, as requirements\.txt says, got none",
    ),
    "a lock with a loose line": ({"requirements.lock": "a\n"}, NO_RULES, r"src/requirements\.lock:1: expected name==version"),
    "no text": ({"requirements.txt": "\udcff"}, NO_RULES, r"src/requirements\.txt: expected UTF-8"),
    "no TOML": ({"pylock.toml": "["}, NO_RULES, r"src/pylock\.toml: expected TOML"),
    "an unknown version": (
        {"pylock.toml": pylock(head='lock-version = "2.0"\ncreated-by = "t"\npackages = []\n')},
        NO_RULES,
        r"src/pylock\.toml: lock-version: expected 1\.0, got 2\.0",
    ),
    "no lock at all": ({"pylock.toml": "x = 1\n"}, NO_RULES, r"src/pylock\.toml: "),
    "another Python": (
        {
            "pylock.toml": pylock(
                package("a", "1.0", "py3-none-any"), head='lock-version = "1.0"\ncreated-by = "t"\nrequires-python = ">=3.12"\n'
            )
        },
        NO_RULES,
        r"requires-python: >=3\.12: expected a lock for Python 3\.11",
    ),
    "another platform": (
        {
            "pylock.toml": pylock(
                package("a", "1.0", "py3-none-any"),
                head='lock-version = "1.0"\ncreated-by = "t"\nenvironments = ["sys_platform == \'win32\'"]\n',
            )
        },
        NO_RULES,
        r"environments: expected one for Python 3\.11 on linux/amd64",
    ),
    "no wheel for the target": (
        {"pylock.toml": pylock(package("a", "1.0", "cp312-cp312-win_amd64"))},
        NO_RULES,
        r"src/pylock\.toml:5: a 1\.0: expected a wheel for Python 3\.11 on linux/amd64 with glibc up to 2\.28, got cp312-cp312",
    ),
    "a source distribution": (
        {"pylock.toml": pylock(package("a", "1.0", more=SDIST))},
        NO_RULES,
        r"got none at all, and a source distribution, .* spec\.builder\.allowSourceDistributions",
    ),
    "a repository in a lock": (
        {"pylock.toml": pylock(package("a", "1.0", more='vcs = {type = "git", url = "https://ada:pw@h/a", commit-id = "00"}\n'))},
        NO_RULES,
        r"src/pylock\.toml:5: a 1\.0: expected a release of an index, got a commit",
    ),
    "a folder in a lock": (
        {"pylock.toml": pylock(package("a", "1.0", more='directory = {path = ".", editable = true}\n'))},
        NO_RULES,
        r"got a folder",
    ),
    "an address in a lock": (
        {
            "pylock.toml": pylock(
                package("a", "1.0", more='archive = {url = "https://ada:pw@h/a.zip", hashes = {sha256 = "00"}}\n')
            )
        },
        NO_RULES,
        r"got an address",
    ),
    "another kind of hash": (
        {"pylock.toml": pylock(package("a", "1.0", "py3-none-any").replace("sha256", "md5"))},
        NO_RULES,
        r"expected the sha256 of a-1\.0-py3-none-any\.whl, got md5",
    ),
    "a uv.lock alone": ({"uv.lock": "version = 1\n"}, NO_RULES, r"src/uv\.lock: expected pyproject\.toml beside it"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_with_its_place_and_no_password(case: str) -> None:
    files, rules, words = FAULTS[case]
    data = {name: text.encode("utf-8", "surrogateescape") for name, text in files.items()}
    with pytest.raises(DesiredStateError, match=words) as error:
        read_lock(data, "src", AMD, Answers(), rules=rules)
    assert "ada" not in error.value.message
    assert "pw" not in error.value.message.replace("password", "")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(DesiredStateError) as error:
        read({"requirements.txt": f"-e .\n-i x\na @ https://h\nb>1 --hash={A}\n"})
    assert [(fault.line, fault.reason) for fault in error.value.faults] == [
        (1, "OddOption"),
        (2, "OddOption"),
        (3, "NotARelease"),
        (4, "NotLocked"),
    ]
    assert error.value.message.endswith("and 1 more")


def test_a_source_distribution_is_wanted_where_the_project_allows_it() -> None:
    (item,) = read({"pylock.toml": pylock(package("a", "1.0", "cp312-cp312-win_amd64", more=SDIST))}, rules=SOURCES).wheels
    assert (item.is_source, item.file, item.hashes) == (True, "a-1.0.tar.gz", (A,))


def test_loose_requirements_are_resolved_and_the_answer_is_the_lock() -> None:
    answers = Answers(lock=f"a==1.5 --hash={A}\n")
    files = {"requirements.txt": "a>1\nmyelin\n-c limits.txt\nb; sys_platform == 'win32'\n", "limits.txt": "a<2\n"}
    lock = read(files, answers=answers, rules=BuildRules(index="https://h/simple", platforms=("linux/amd64", "linux/arm64")))
    assert (lock.resolved, lock.origin) == (True, "src/requirements.txt")
    assert lock.text == f"{HEAD}a==1.5 --hash={A}\n"
    assert answers.asked[0][0] == "a>1\nb; sys_platform == 'win32'\n"
    assert answers.asked[0][1].startswith("a<2\n")
    assert (answers.index, [target.platform for target in answers.targets]) == (
        "https://h/simple",
        ["linux/amd64", "linux/arm64"],
    )
    # Merged as it is proposed, it is read without asking anybody, and asks for the same.
    made = proposed_lock("src", lock)
    again = read({**files, "requirements.lock": made.content.decode()}, answers=(quiet := Answers()))
    assert (again.wheels, again.text, again.resolved, quiet.asked) == (lock.wheels, lock.text, False, [])
    assert made.path == "src/requirements.lock"


def test_requirements_that_outgrew_their_lock_are_resolved_again_from_it() -> None:
    old = f"a==1.5 --hash={A}\n"
    answers = Answers(lock=f"a==1.5 --hash={A}\nb==1 --hash={B}\n")
    lock = read({"requirements.txt": "a>1\nb\n", "requirements.lock": old}, answers=answers)
    assert (answers.asked[0][2], lock.resolved, [item.name for item in lock.wheels]) == (old, True, ["a", "b"])


def test_only_our_own_package_is_nothing_to_resolve() -> None:
    lock = read({"requirements.txt": "myelin==1.0\n"}, answers=(answers := Answers()))
    assert (answers.asked, lock.wheels, lock.resolved) == ([], (), True)


RUNTIME = f"aiohttp==3.12 --hash={A}\nidna==3.10 --hash={B}\n"


@pytest.mark.parametrize("kind", ["requirements.txt", "pylock.toml", "requirements.lock"])
def test_a_user_may_have_other_versions_than_our_runtime_but_none_that_breaks_it(kind: str) -> None:
    def files(version: str) -> dict[str, str]:
        return {
            kind: pylock(package("aiohttp", version, "py3-none-any"))
            if kind == "pylock.toml"
            else f"aiohttp=={version} --hash={C}\nmyelin==1 --hash={C}\n"
        }

    assert {item.name: item.version for item in read(files("3.11.5"), runtime=RUNTIME).wheels} == {
        "aiohttp": "3.11.5",
        "idna": "3.10",
    }
    with pytest.raises(
        DesiredStateError, match=rf"src/{kind}:\d: aiohttp: expected >=3\.11, which Myelin's runtime in the image needs, got 3\.8"
    ):
        read(files("3.8"), runtime=RUNTIME)


PROJECT = """[project]
name = "demo"
version = "0.1"
requires-python = ">=3.11"
dependencies = ["a>=1", "b ; sys_platform == 'win32'"]
[dependency-groups]
dev = ["c"]
[project.optional-dependencies]
x = ["d"]
"""


@pytest.fixture(scope="module")
def index() -> Iterator[WheelIndex]:
    with wheel_index() as found:
        for name in ("a", "b", "c", "d"):
            found.add(name, "1.0")
        found.add("a", "2.0", data=wheel_bytes("a", "2.0", needs="e"))
        found.add("e", "1.0")
        found.add("odd", "1.0", tags="cp311-cp311-win_amd64")
        yield found


@pytest.fixture(scope="module")
def locked(index: WheelIndex, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A `uv.lock` as uv itself writes it."""
    from uv import find_uv_bin

    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text(PROJECT)
    command = [
        find_uv_bin(),
        "lock",
        "--quiet",
        "--no-config",
        "--default-index",
        index.address,
        "--cache-dir",
        str(folder / "cache"),
    ]
    subprocess.run(command, cwd=folder, check=True)
    return {name: (folder / name).read_bytes() for name in ("pyproject.toml", "uv.lock")}


def test_a_uv_lock_gives_what_uv_would_install_without_extras_and_dev(
    locked: dict[str, bytes], tmp_path: Path, index: WheelIndex
) -> None:
    resolver = Resolver(tmp_path / "answers")
    before = len(index.asked)
    lock = read_lock({**locked, "requirements.txt": b"nonsense nonsense"}, "src", AMD, resolver)
    assert [(item.name, item.version) for item in lock.wheels] == [("a", "2.0"), ("e", "1.0")]
    assert (lock.origin, lock.resolved, lock.text.encode()) == ("src/uv.lock", False, locked["uv.lock"])
    assert lock.text.splitlines()[lock.wheels[0].line - 1] == 'name = "a"'
    assert len(index.asked) == before, "nothing is asked of an index for that"
    assert [wheel.file for wheel in fetch_wheels(lock, tmp_path / "wheels", AMD)] == [
        "a-2.0-py3-none-any.whl",
        "e-1.0-py3-none-any.whl",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b'"a>=1"', b'"a>=1", "e"'), r"src/uv\.lock:1: expected e, as pyproject\.toml says, got another; run `uv lock`"),
        ((b'"a>=1"', b'"a>=3"'), r"src/uv\.lock:1: expected a>=3, as pyproject\.toml says"),
        ((b'">=3.11"', b"[1]"), r"src/uv\.lock: "),
    ],
)
def test_a_uv_lock_of_another_project_file_is_refused(
    locked: dict[str, bytes], tmp_path: Path, change: tuple[bytes, bytes], words: str
) -> None:
    with pytest.raises(DesiredStateError, match=words):
        read_lock({**locked, "pyproject.toml": locked["pyproject.toml"].replace(*change)}, "src", AMD, Resolver(tmp_path))


def test_an_unknown_version_of_uv_lock_is_refused(locked: dict[str, bytes], tmp_path: Path) -> None:
    files = {**locked, "uv.lock": locked["uv.lock"].replace(b"version = 1\n", b"version = 9\n", 1)}
    with pytest.raises(DesiredStateError, match=r"src/uv\.lock: .*version") as error:
        read_lock(files, "src", AMD, Resolver(tmp_path))
    assert str(tmp_path) not in error.value.message


def test_loose_requirements_are_resolved_once_and_fetched(index: WheelIndex, tmp_path: Path) -> None:
    rules = BuildRules(index=index.address)
    files = {"requirements.txt": b"a\nb<2 # note\n"}
    resolver = Resolver(tmp_path / "answers")
    lock = read_lock(files, "src", AMD, resolver, rules=rules)
    assert [(item.name, item.version, item.hashes) for item in lock.wheels] == [
        (name, version, (digest_of(index.files[name][f"{name}-{version}-py3-none-any.whl"]),))
        for name, version in (("a", "2.0"), ("b", "1.0"), ("e", "1.0"))
    ]
    assert "127.0.0.1" not in lock.text
    assert str(tmp_path) not in lock.text
    before = len(index.asked)
    assert read_lock(files, "src", AMD, Resolver(tmp_path / "answers"), rules=rules) == lock
    assert len(index.asked) == before
    assert len(fetch_wheels(lock, tmp_path / "wheels", AMD, index=index.address)) == 3


def test_what_an_old_lock_says_is_kept_where_it_can_be(index: WheelIndex, tmp_path: Path) -> None:
    old = index.line("a", "1.0")
    files = {"requirements.txt": b"a\nb\n", "requirements.lock": old.encode()}
    lock = read_lock(files, "src", AMD, Resolver(tmp_path), rules=BuildRules(index=index.address))
    assert [(item.name, item.version) for item in lock.wheels] == [("a", "1.0"), ("b", "1.0")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a==9\n", r"src/requirements\.txt: expected requirements that fit together, got: Because there is no version of a==9"),
        ("a<1.5\na>1.5\n", r"expected requirements that fit together"),
        ("odd\n", r"expected requirements that fit together, got: .*odd"),
        ("nothing-of-that-name\n", r"expected requirements that fit together, got: .*nothing-of-that-name"),
    ],
)
def test_requirements_that_nothing_fits_say_so(index: WheelIndex, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DesiredStateError, match=words) as error:
        read_lock({"requirements.txt": text.encode()}, "src", AMD, Resolver(tmp_path), rules=BuildRules(index=index.address))
    assert error.value.reason == "NoSolution"
    assert "127.0.0.1" not in error.value.message


UV_SAYS: dict[str, tuple[str, type[ControllerError], str]] = {
    "nobody listens": (
        "error: Request failed after 3 retries\n  cause: Failed to fetch: http://h:9/simple/six/\n  cause: tcp connect error",
        SilentError,
        "Failed to fetch: the index",
    ),
    "too much to do": (
        "error: Failed to fetch: `https://h/simple/a/`\n  cause: HTTP status client error (429 Too Many Requests)",
        SilentError,
        "429",
    ),
    "broken": (
        "error: Failed to fetch: `https://h/simple/a/`\n  cause: HTTP status server error (503 Service Unavailable)",
        SilentError,
        "503",
    ),
    "closed": (
        "error: Failed to fetch: `https://ada:pw@h/simple/a/`\n  cause: HTTP status client error (401 Unauthorized)",
        RefusedError,
        "other credentials",
    ),
    "full": ("error: failed to write\n  cause: No space left on device (os error 28)", SilentError, "no space left on the disk"),
    "silence": ("", DesiredStateError, "uv gave no reason"),
}


@pytest.mark.parametrize("case", UV_SAYS)
def test_what_uv_says_is_sorted_by_who_can_mend_it(case: str) -> None:
    text, kind, words = UV_SAYS[case]
    error = failure_of(text, "src/requirements.txt")
    assert type(error) is kind
    assert words in error.message
    assert "ada" not in error.message


def test_an_index_that_fails_is_no_fault_of_the_commit(
    index: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wheel_index() as other:
        other.add("a", "1.0")
        other.faults["a"] = "401"
        with pytest.raises(RefusedError, match="other credentials"):
            read_lock({"requirements.txt": b"a\n"}, "src", AMD, Resolver(tmp_path), rules=BuildRules(index=other.address))


def test_packages_are_taken_out_of_a_lock_with_their_versions() -> None:
    lock = f"a==1.0 \\\n    --hash={A}\nB_c==2.0 ; python_version > '3' \\\n    --hash={B}\nd==3\n"
    rest, versions = taken_out(lock, ("b-c",))
    assert versions == {"b-c": "2.0"}
    assert rest == f"a==1.0 \\\n    --hash={A}\nd==3\n"


def test_a_lock_alone_is_read_as_it_is() -> None:
    assert [item.name for item in wanted_of(f"b==1 --hash={A}\na==1 --hash={A}\n", "controller.txt", AMD)] == ["a", "b"]
    with pytest.raises(DesiredStateError, match=r"controller\.txt:1: expected name==version"):
        wanted_of("a\n", "controller.txt", AMD)
