"""Where a command works: the repository it is about, its state and its trust; and how a new project is made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from controller.adapters import git
from controller.adapters.documents import YamlDocuments
from controller.adapters.keys import SshKey
from controller.keyring import controller_key, image_key
from controller.settings import Settings, state_folder
from controller.trustfile import signers_of
from policies.errors import DesiredStateError, RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a command was called on."""

    url: str
    state: Path
    trust: Path | None
    work_tree: Path | None
    branch: str = "main"
    """The branch that is the truth."""
    git_access: Path | None = None
    """Folder of files that say how the Git server is reached; None: the user's own set-up counts."""

    @property
    def access(self) -> git.GitAccess | None:
        """What the Git server is shown and must show.

        Raises:
            OutsideError: The folder is not there, or others may read it.
            DesiredStateError: A file that the URL needs is missing.
        """
        return git.access_from_folder(self.git_access, self.url) if self.git_access is not None else None


def find(repo: str, *, state: str = "", trust: str = "", git_access: str = "", bare_folder: bool = False) -> Place:
    """The repository at a path or URL, with what its clone knows of state and trust.

    Args:
        repo: A URL, a clone with a remote `origin`, or a bare repository.
        state: State folder that goes before what the clone knows.
        trust: Trust file that goes before what the clone knows.
        git_access: Folder that goes before what the clone knows.
        bare_folder: Whether any folder will do; then the place's `url` may be empty.

    Raises:
        DesiredStateError: There is no repository.
    """
    if (operated := _operated(repo, state)) is not None:
        return operated
    if "://" in repo or ":" in repo.split("/")[0]:
        return Place(
            url=repo,
            state=Path(state) if state else state_folder(repo),
            trust=Path(trust) if trust else None,
            work_tree=None,
            git_access=Path(git_access) if git_access else None,
        )
    path = Path(repo).resolve()
    url = git.origin_of(path) if path.is_dir() else ""
    if not url and not (bare_folder and path.is_dir()):
        raise DesiredStateError(
            f"{repo}: expected a clone with a remote `origin`, or a bare repository; make one with `myelin init DIR`"
        )
    top = git.top_of(path) if url and url != str(path) else path
    known_state = state or git.config_get(path, "myelin.state")
    known_trust = trust or git.config_get(path, "myelin.trust")
    known_access = git_access or git.config_get(path, "myelin.gitAccess")
    return Place(
        url=url,
        state=Path(known_state) if known_state else state_folder(url or str(path)),
        trust=Path(known_trust) if known_trust else None,
        work_tree=None if url == str(path) else top,
        branch=git.config_get(path, "myelin.branch") or "main",
        git_access=Path(known_access) if known_access else None,
    )


def _operated(repo: str, state: str) -> Place | None:
    """A Project that the controller of this pod follows: `namespace/name`, or `.` where there is only one.

    Its repository is read from the controller's own mirror, which is as new as the last pass.
    """
    root = os.environ.get("MYELIN_STATE", "")
    if state or not root:
        return None
    known = {f"{place.parent.parent.name}/{place.parent.name}": place for place in Path(root).glob("*/*/place.json")}
    if repo == "." and len(known) > 1:
        raise DesiredStateError(f"several projects are followed here: expected --repo with one of {', '.join(sorted(known))}")
    place = known.get(repo) or (next(iter(known.values())) if repo == "." and known else None)
    if place is None:
        return None
    value = json.loads(place.read_bytes())
    return Place(url=value["url"], state=place.parent, trust=place.parent / "trust.yaml", work_tree=None, branch=value["branch"])


def settings_of(place: Place, **more: object) -> Settings:
    """Settings to follow a place."""
    known = {"branch": place.branch, "git_access": place.git_access}
    return Settings(repository=place.url, state=place.state, trust=place.trust, **{**known, **more})  # type: ignore[arg-type]


def example_folder() -> Path:
    """Where example-repo lies: beside the packages in a checkout, inside of them when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "example-repo", here / "example-repo"):
        if (folder / "myelin.yaml").exists():
            return folder
    raise DesiredStateError("example-repo: expected it beside the controller, it is not installed")


def make(folder: Path, *, now: datetime, name: str = "you") -> Place:
    """Make a project from example-repo: a bare repository, a clone of it, a signer's key, a trust file and state.

    Raises:
        RefusedError: Something is there already.
    """
    beside = folder.with_name(folder.name + ".myelin")
    bare = folder.with_name(folder.name + ".git")
    for taken in (folder, beside, bare):
        if taken.exists() and any(taken.iterdir()):
            raise RefusedError(f"{taken}: expected an empty place for a new project, something is there")
    beside.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = SshKey.generate(beside / "signer")
    (beside / "signer.pub").write_text(f"{key.public()} {name}\n")
    documents = YamlDocuments()
    signers = [{"name": name, "ssh": key.public()}]
    state = beside.resolve() / "state"
    own, images = controller_key(state), image_key(state)
    pinned = {"signers": signers, "controller": own.public(), "images": [images.public_pem]}
    (beside / "trust.yaml").write_bytes(documents.render(pinned))
    # With these two lines `git log --show-signature` says by itself who signed what.
    allowed = f"{name}@localhost {key.public()}\nmyelin@localhost {own.public()}\n"
    (beside / "allowed_signers").write_text(allowed)
    files: dict[str, bytes | None] = {}
    source = example_folder()
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[path.relative_to(source).as_posix()] = path.read_bytes()
    project = documents.load(files["myelin.yaml"] or b"", "myelin.yaml").value
    project["spec"]["trust"]["signers"] = signers
    files["myelin.yaml"] = documents.edit(files["myelin.yaml"] or b"", project)
    git.init_bare(bare)
    place = Place(url=str(bare.resolve()), state=state, trust=beside.resolve() / "trust.yaml", work_tree=folder)
    push_as(place, key, files, "Start a project from the example\n", now=now)
    git.clone(str(bare.resolve()), folder)
    for setting, value in (
        ("myelin.state", str(place.state)),
        ("myelin.trust", str(place.trust)),
        ("gpg.format", "ssh"),
        ("gpg.ssh.allowedSignersFile", str((beside / "allowed_signers").resolve())),
        ("user.signingKey", str((beside / "signer").resolve())),
        ("user.name", name),
        ("user.email", f"{name}@localhost"),
        ("commit.gpgSign", "true"),
    ):
        git.config_set(folder, setting, value)
    return place


def push_as(place: Place, key: SshKey, files: dict[str, bytes | None], message: str, *, now: datetime, name: str = "you") -> str:
    """Commit and push as a person would: signed by the person's key, on the tip of main."""
    repository = git.GitRepository(
        place.url, place.state / "pushes", key, author=name, email=f"{name}@localhost", signers_of=signers_of
    )
    try:
        parent = repository.fetch("main")
        return repository.push(branch="main", parent=parent, changes=files, message=message, at=now)
    finally:
        repository.close()
