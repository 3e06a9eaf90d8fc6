"""A real Gitea on loopback, with people in it: as a context manager, and from the command line.

    python -m tests.forge.gitea up --state DIR      start one; prints its URL and tokens as JSON; runs until Ctrl-C
    python -m tests.forge.gitea build               build it into the user's cache folder, once

Never listens to other machines, and never outlives the process that started it.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from tests.forge import binary

Style = Literal["merge", "fast-forward-only", "squash", "rebase", "rebase-merge"]
PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0
MERGE_SECONDS = 30.0
SIGNER = ("Forge", "forge@example.invalid")
SETTINGS = """\
RUN_MODE = prod
WORK_PATH = {state}
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
ROOT_URL = http://127.0.0.1:{port}/
{static}
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = {state}/gitea.db
SQLITE_JOURNAL_MODE = WAL
[security]
INSTALL_LOCK = true
PASSWORD_HASH_ALGO = pbkdf2_v2
[service]
DISABLE_REGISTRATION = true
[webhook]
ALLOWED_HOST_LIST = loopback
[repository]
DEFAULT_BRANCH = main
[repository.signing]
{signing}
[log]
LEVEL = Warn
[cron]
ENABLED = false
[indexer]
ISSUE_INDEXER_TYPE = db
[actions]
ENABLED = false
"""
SIGNING = """\
SIGNING_FORMAT = ssh
SIGNING_KEY = {key}.pub
SIGNING_NAME = {name}
SIGNING_EMAIL = {email}
INITIAL_COMMIT = never
CRUD_ACTIONS = never
WIKI = never
MERGES = always
"""


class ForgeRefusal(AssertionError):
    """Gitea did not do what a person of a test asked for; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with an account."""

    name: str
    password: str
    token: str
    is_admin: bool = False


class Gitea:
    """A Gitea: `with Gitea(state) as gitea:` starts one, in about 3 seconds, and ends it.

    People: `owner`, who is its administrator and owns all repositories; `myelin`, the controller's own user; `reviewer` and
    `contributor`, who may write to them; `stranger`, who only has an account.

    Args:
        state: Folder for everything of it.
        is_signing: Whether it signs the merge commits that it makes, by an SSH key of its own.
    """

    def __init__(self, state: Path, *, is_signing: bool = True) -> None:
        self.state, self._is_signing = state.resolve(), is_signing
        self.url = ""
        self.people: dict[str, Person] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(trust_env=False, timeout=30)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def signing_key(self) -> str:
        """The public key that it signs merges by, `ssh-ed25519 AAAA…`, without comment."""
        return " ".join((self.state / "signing.pub").read_text().split()[:2])

    def __enter__(self) -> Self:
        """Start."""
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.down()

    def up(self) -> None:
        """Set it up if that was not done before, and start it."""
        program, static = binary.program()
        self.state.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        config = self.state / "app.ini"
        if self._is_signing and not (self.state / "signing").exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "forge", "-f", str(self.state / "signing")]
            subprocess.run(command, check=True, capture_output=True)
        name, email = SIGNER
        signing = SIGNING.format(key=self.state / "signing", name=name, email=email) if self._is_signing else "SIGNING_KEY = none"
        root = f"STATIC_ROOT_PATH = {static}" if static else ""
        config.write_text(SETTINGS.format(state=self.state, port=port, static=root, signing=signing))
        where = ["--config", str(config), "--work-path", str(self.state)]
        environment = {**os.environ, "GITEA_I_AM_BEING_UNSAFE_RUNNING_AS_ROOT": "true", "HOME": str(self.state)}
        if not (self.state / "people.json").exists():
            self._run([str(program), "migrate", *where], environment)
            owner = ["admin", "user", "create", "--admin", "--username", "owner", "--password", "owner-owner", "--email"]
            owner += ["owner@example.invalid", "--must-change-password=false"]
            self._run([str(program), *owner, *where], environment)
        with (self.state / "web.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), "web", *where], env=environment, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        self.url = f"http://127.0.0.1:{port}"
        self._wait()
        self._make_people()

    def down(self) -> None:
        """End it; its folder stays."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._http.close()

    def ask(self, method: str, path: str, body: object = None, *, by: str = "owner", fine: tuple[int, ...] = ()) -> Any:
        """Ask the API as somebody; what it says as JSON.

        Args:
            method: `GET` …
            path: Below `/api/v1`.
            body: Sent as JSON.
            by: A person's name.
            fine: Statuses besides 200 to 299 that are no failure; the answer is then None.
        """
        headers = {"Authorization": f"token {self.people[by].token}"}
        answer = self._http.request(method, f"{self.url}/api/v1{path}", json=body, headers=headers)
        if answer.status_code in fine:
            return None
        if not answer.is_success:
            raise ForgeRefusal(f"{method} {path} as {by}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content.strip() else None

    def repository(
        self, name: str = "", *, private: bool = True, writers: tuple[str, ...] = ("myelin", "reviewer", "contributor")
    ) -> Served:
        """A new, empty repository of the owner's."""
        name = name or f"r{secrets.token_hex(4)}"
        self.ask("POST", "/user/repos", {"name": name, "private": private, "default_branch": "main"})
        made = Served(gitea=self, name=name)
        for writer in writers:
            self.ask("PUT", f"{made.path}/collaborators/{writer}", {"permission": "write"})
        return made

    def token(self, person: str, scopes: tuple[str, ...]) -> str:
        """A new token of somebody with these scopes, `write:repository`."""
        return self._token(person, self.people[person].password, scopes)

    def _run(self, command: list[str], environment: Mapping[str, str]) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=START_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:4])}: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                if self._http.get(f"{self.url}/api/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"gitea did not start: {(self.state / 'web.log').read_text()[-2000:]}")

    def _make_people(self) -> None:
        known = self.state / "people.json"
        if known.exists():
            self.people = {name: Person(**facts) for name, facts in json.loads(known.read_text()).items()}
            return
        token = self._token("owner", "owner-owner", ("all",))
        self.people["owner"] = Person(name="owner", password="owner-owner", token=token, is_admin=True)
        for name in ("myelin", "reviewer", "contributor", "stranger"):
            password = f"{name}-{name}"
            facts = {"username": name, "password": password, "email": f"{name}@example.invalid", "must_change_password": False}
            self.ask("POST", "/admin/users", facts)
            self.people[name] = Person(name=name, password=password, token=self._token(name, password, ("all",)))
        facts_of = {
            name: {"name": name, "password": one.password, "token": one.token, "is_admin": one.is_admin}
            for name, one in self.people.items()
        }
        known.touch(0o600)
        known.write_text(json.dumps(facts_of))

    def _token(self, name: str, password: str, scopes: tuple[str, ...]) -> str:
        value = {"name": f"t-{secrets.token_hex(4)}", "scopes": list(scopes)}
        answer = self._http.post(f"{self.url}/api/v1/users/{name}/tokens", json=value, auth=(name, password))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sha1"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One repository of a Gitea, and what people do to it."""

    gitea: Gitea
    name: str
    owner: str = "owner"

    @property
    def path(self) -> str:
        """Below the API's root."""
        return f"/repos/{self.owner}/{self.name}"

    @property
    def url(self) -> str:
        """For Git, without a user."""
        return f"{self.gitea.url}/{self.owner}/{self.name}.git"

    def url_as(self, person: str) -> str:
        """For Git, with somebody's name and token in it."""
        one = self.gitea.people[person]
        return f"http://{one.name}:{one.token}@{self.gitea.url.removeprefix('http://')}/{self.owner}/{self.name}.git"

    def git(self, folder: Path, *arguments: str, by: str = "contributor") -> str:
        """Run git in a folder, with somebody as author and their token for this Gitea; what it printed."""
        one = self.gitea.people[by]
        environment = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": one.name,
            "GIT_AUTHOR_EMAIL": f"{one.name}@example.invalid",
            "GIT_COMMITTER_NAME": one.name,
            "GIT_COMMITTER_EMAIL": f"{one.name}@example.invalid",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{self.gitea.url}/.extraHeader",
            "GIT_CONFIG_VALUE_0": "Authorization: Basic " + _basic(one.name, one.token),
        }
        done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ForgeRefusal(f"git {arguments[0]} as {by}: {done.stderr.strip()}")
        return done.stdout

    def commit(
        self, branch: str, files: Mapping[str, str], *, message: str = "change", by: str = "contributor", base: str = "main"
    ) -> str:
        """Commit files through the API, on a branch that is made from `base` if it is not there; the new commit."""
        there = self.tip(branch)
        from_base = {} if there else {"new_branch": branch}
        start = branch if there or not self.tip(base) else base
        changes = []
        for path, text in files.items():
            old = (
                self.gitea.ask("GET", f"{self.path}/contents/{path}?ref={start}", by=by, fine=(404,)) if self.tip(start) else None
            )
            change = {
                "path": path,
                "operation": "update" if old else "create",
                "content": base64.b64encode(text.encode()).decode(),
            }
            changes.append({**change, "sha": old["sha"]} if old else change)
        value = {"branch": start, **(from_base if start != branch else {}), "message": message, "files": changes}
        made = self.gitea.ask("POST", f"{self.path}/contents", value, by=by)
        return str(made["commit"]["sha"])

    def tip(self, branch: str) -> str:
        """A branch's tip; empty where there is none."""
        found = self.gitea.ask("GET", f"{self.path}/branches/{branch}", fine=(404,))
        return str(found["commit"]["id"]) if found else ""

    def move(self, branch: str, to: str, *, by: str = "owner") -> None:
        """Force a branch to be where another one, or a commit, is."""
        with tempfile.TemporaryDirectory() as folder:
            self.git(Path(folder), "clone", "--quiet", self.url, ".", by=by)
            commit = to if len(to) == 40 else f"origin/{to}"
            self.git(Path(folder), "push", "--quiet", "--force", "origin", f"{commit}:refs/heads/{branch}", by=by)

    def delete_branch(self, branch: str) -> None:
        """Delete one."""
        self.gitea.ask("DELETE", f"{self.path}/branches/{branch}")

    def protect(
        self,
        branch: str = "main",
        *,
        approvals: int = 0,
        statuses: tuple[str, ...] = (),
        direct_pushes: tuple[str, ...] = (),
        dismiss_stale: bool = False,
    ) -> None:
        """Protect a branch: only these people push to it, merges need so many approvals and these statuses; also of owners."""
        value = {
            "rule_name": branch,
            "enable_push": bool(direct_pushes),
            "enable_push_whitelist": bool(direct_pushes),
            "push_whitelist_usernames": list(direct_pushes),
            "required_approvals": approvals,
            "enable_status_check": bool(statuses),
            "status_check_contexts": list(statuses),
            "dismiss_stale_approvals": dismiss_stale,
            "block_admin_merge_override": True,
        }
        self.gitea.ask("POST", f"{self.path}/branch_protections", value)

    def hook(
        self,
        url: str,
        secret: str,
        events: tuple[str, ...] = ("push", "pull_request", "pull_request_review", "pull_request_comment", "status"),
    ) -> int:
        """Call a URL, which must be on loopback, at each of these events, signed by a secret; the hook's number."""
        config = {"url": url, "content_type": "json", "secret": secret}
        value = {"type": "gitea", "active": True, "config": config, "events": list(events)}
        return int(self.gitea.ask("POST", f"{self.path}/hooks", value)["id"])

    def pull(self, number: int) -> Any:
        """A pull request as the API tells of it."""
        return self.gitea.ask("GET", f"{self.path}/pulls/{number}")

    def pulls(self, state: str = "open") -> Any:
        """All of a state, newest first."""
        # It was seen to answer 404 for a moment, while a request was being made.
        return self.gitea.ask("GET", f"{self.path}/pulls?state={state}&limit=50", fine=(404,)) or []

    def make_pull(self, head: str, base: str = "main", *, title: str = "please", by: str = "contributor") -> int:
        """Somebody's own pull request; `head` may be `user:branch` of a fork."""
        return int(self.gitea.ask("POST", f"{self.path}/pulls", {"head": head, "base": base, "title": title}, by=by)["number"])

    def approve(self, number: int, *, by: str = "reviewer", text: str = "") -> None:
        """Approve what is there now."""
        self._review(number, "APPROVED", text, by)

    def ask_for_changes(self, number: int, *, by: str = "reviewer", text: str = "please change it") -> None:
        """Object."""
        self._review(number, "REQUEST_CHANGES", text, by)

    def _review(self, number: int, event: str, text: str, by: str) -> None:
        value = {"event": event, "body": text, "commit_id": self.pull(number)["head"]["sha"]}
        self.gitea.ask("POST", f"{self.path}/pulls/{number}/reviews", value, by=by)

    def merge(self, number: int, *, style: Style = "merge", by: str = "owner", delete_branch: bool = False) -> str:
        """Merge, as soon as Gitea has checked whether it may; the commit that it became.

        Raises:
            ForgeRefusal: It may not.
        """
        end = time.monotonic() + MERGE_SECONDS
        value = {"Do": style, "delete_branch_after_merge": delete_branch}
        while True:
            try:
                self.gitea.ask("POST", f"{self.path}/pulls/{number}/merge", value, by=by)
                break
            except ForgeRefusal as refusal:
                # It checks for conflicts by itself, after each push, and says this until it did.
                if "try again later" not in str(refusal).lower() or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        return str(self.pull(number)["merge_commit_sha"])

    def close(self, number: int, *, by: str = "reviewer") -> None:
        """Close without merging."""
        self.gitea.ask("PATCH", f"{self.path}/pulls/{number}", {"state": "closed"}, by=by)

    def reopen(self, number: int, *, by: str = "reviewer") -> None:
        """Open again."""
        self.gitea.ask("PATCH", f"{self.path}/pulls/{number}", {"state": "open"}, by=by)

    def comments(self, number: int) -> list[tuple[str, str]]:
        """Who said what, oldest first."""
        found = self.gitea.ask("GET", f"{self.path}/issues/{number}/comments")
        return [(item["user"]["login"], item["body"]) for item in found]

    def say(self, number: int, text: str, *, by: str = "reviewer") -> None:
        """Comment."""
        self.gitea.ask("POST", f"{self.path}/issues/{number}/comments", {"body": text}, by=by)

    def statuses(self, commit: str) -> dict[str, tuple[str, str, str]]:
        """Context -> newest state, text and URL."""
        found = self.gitea.ask("GET", f"{self.path}/commits/{commit}/status")
        return {item["context"]: (item["status"], item["description"], item["target_url"]) for item in found["statuses"] or ()}

    def status_history(self, commit: str, context: str) -> list[str]:
        """All states of one context, oldest first."""
        found = self.gitea.ask("GET", f"{self.path}/commits/{commit}/statuses?limit=50&sort=oldest")
        return [item["status"] for item in sorted(found, key=lambda item: item["id"]) if item["context"] == context]


def _basic(name: str, password: str) -> str:
    return base64.b64encode(f"{name}:{password}".encode()).decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.forge.gitea", description="A real Gitea on loopback.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build it into the user's cache folder, once")
    up = commands.add_parser("up", help="start one, until Ctrl-C")
    up.add_argument("--state", type=Path, required=True, help="folder for everything of it; started again, it goes on there")
    said = parser.parse_args(arguments)
    if lacking := binary.missing():
        print(f"a forge needs: {lacking}", file=sys.stderr)
        return 1
    if said.command == "build":
        print(binary.program()[0])
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Gitea(said.state) as gitea:
        people = {one.name: {"password": one.password, "token": one.token} for one in gitea.people.values()}
        print(
            json.dumps({"url": gitea.url, "pid": gitea.pid, "signing_key": gitea.signing_key, "people": people}, indent=2),
            flush=True,
        )
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
