"""How Git servers are reached: logins, keys with passphrases, host keys, authorities, client certificates, proxies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller import project
from controller.adapters.git import GitAccess, GitRepository, access_from, access_from_folder, init_bare
from policies.errors import ControllerError, DesiredStateError, RefusedError, SilentError
from tests.contracts.certificates import Authority
from tests.contracts.git_server import git_server
from tests.contracts.ssh_server import PASSPHRASE, SshServer, ssh_server

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Bare:
    """A bare repository, and those who opened it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "served" / "origin.git"
        self.opened: list[GitRepository] = []
        init_bare(self.path)

    def open(self, url: str, access: GitAccess | None = None, *, poll_seconds: float = 0.0) -> GitRepository:
        mirror = self.folder / f"mirror-{len(self.opened)}"
        made = GitRepository(url, mirror, None, access=access, poll_seconds=poll_seconds)
        self.opened.append(made)
        return made


def push(repository: GitRepository, parent: str = "", content: bytes = b"1") -> str:
    return repository.push(branch="main", parent=parent, changes={"a": content}, message="change", at=AT)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    made = Bare(tmp_path)
    yield made
    for repository in made.opened:
        repository.close()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


def by_key(server: SshServer, bare: Bare, key: str = "identity", **more: str) -> GitRepository:
    url = server.url(bare.path)
    values = {"identity": server.key(key), "known_hosts": server.known_hosts, **more}
    return bare.open(url, access_from(values, url, origin="test"))


@pytest.mark.parametrize("named", ["passphrase", "password"])
def test_a_key_with_a_passphrase_opens_the_door(sshd: SshServer, bare: Bare, named: str) -> None:
    repository = by_key(sshd, bare, "closed", **{named: PASSPHRASE + "\n"})
    commit = push(repository)
    assert repository.fetch("main") == commit


@pytest.mark.parametrize("passphrase", ["", "something else"])
def test_a_key_that_does_not_open_is_a_refused_login(sshd: SshServer, bare: Bare, passphrase: str) -> None:
    repository = by_key(sshd, bare, "closed", passphrase=passphrase)
    with pytest.raises(RefusedError) as caught:
        repository.fetch("main")
    assert caught.value.reason == "LoginRefused"


def test_a_key_that_the_server_does_not_know_is_a_refused_login(sshd: SshServer, bare: Bare) -> None:
    repository = by_key(sshd, bare, "stranger")
    with pytest.raises(RefusedError) as fetched:
        repository.fetch("main")
    with pytest.raises(RefusedError) as pushed:
        push(repository)
    assert fetched.value.reason == pushed.value.reason == "LoginRefused"


def test_a_host_that_nobody_vouched_for_is_refused_with_what_to_do(sshd: SshServer, bare: Bare) -> None:
    repository = by_key(sshd, bare, known_hosts="other.test ssh-ed25519 AAAA\n")
    with pytest.raises(RefusedError, match=f"ssh-keyscan -p {sshd.port} 127.0.0.1") as caught:
        repository.fetch("main")
    assert caught.value.reason == "HostKeyUnknown"


def test_a_host_with_another_key_is_refused_and_told_apart(sshd: SshServer, bare: Bare) -> None:
    kind, key = (sshd.folder / "other_host.pub").read_text().split()[:2]
    repository = by_key(sshd, bare, known_hosts=f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    with pytest.raises(RefusedError, match="somebody may stand in between") as caught:
        repository.fetch("main")
    assert caught.value.reason == "HostKeyChanged"


def test_the_users_own_ssh_is_used_and_is_as_strict(sshd: SshServer, bare: Bare) -> None:
    repository = bare.open(sshd.url(bare.path))
    with pytest.raises(RefusedError) as caught:
        repository.fetch("main")
    assert caught.value.reason == "HostKeyUnknown"


def test_a_command_for_ssh_of_the_users_own_stays(sshd: SshServer, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = bare.folder / "hosts"
    hosts.write_text(sshd.known_hosts)
    command = f"ssh -F none -i {sshd.folder / 'identity'} -o IdentitiesOnly=yes -o UserKnownHostsFile={hosts}"
    monkeypatch.setenv("GIT_SSH_COMMAND", command)
    repository = bare.open(sshd.url(bare.path))
    assert repository.fetch("main") == ""


def test_an_agent_of_the_user_is_asked(sshd: SshServer, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    home = bare.folder / "home"
    home.mkdir()
    (home / "hosts").write_text(sshd.known_hosts)
    socket = bare.folder / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None
        agent.stdout.readline()  # it listens
        subprocess.run(
            ["ssh-add", "-q", str(sshd.folder / "identity")], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, check=True
        )
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        command = f"ssh -o UserKnownHostsFile={home / 'hosts'} -o BatchMode=yes"
        monkeypatch.setenv("GIT_SSH_COMMAND", command)
        assert bare.open(sshd.url(bare.path)).fetch("main") == ""
    finally:
        agent.terminate()
        agent.wait(10)
        if agent.stdout is not None:
            agent.stdout.close()


@pytest.mark.parametrize("given", [{"bearerToken": "hunter2\n"}, {"username": "ada", "password": "hunter2"}])
def test_a_token_or_a_password_logs_in_and_never_shows(bare: Bare, given: dict[str, str]) -> None:
    with git_server(bare.folder / "served") as server:
        url = server.url("origin.git")
        access = access_from(given, url, origin="test")
        assert access.header is not None
        server.needs = access.header.reveal()
        repository = bare.open(url, access)
        commit = push(repository)
        assert repository.fetch("main") == commit
        server.needs = "Bearer another"
        with pytest.raises(RefusedError) as caught:
            repository.fetch("main")
        assert caught.value.reason == "LoginRefused"
        assert "hunter2" not in f"{caught.value} {access} {repository._login!r}"
    config = "".join(path.read_text(errors="replace") for path in bare.folder.glob("mirror-*/**/*") if path.is_file())
    assert "hunter2" not in config


def test_an_authority_of_ones_own_is_trusted_when_it_is_given(bare: Bare) -> None:
    authority, other = Authority(bare.folder / "pki"), Authority(bare.folder / "other", "others")
    with git_server(bare.folder / "served", authority.context()) as server:
        url = server.url("origin.git")
        repository = bare.open(url, access_from({"ca.crt": authority.pem}, url, origin="test"))
        assert repository.fetch("main") == ""
        assert push(repository) == repository.fetch("main")
        for access in (None, access_from({"ca.crt": other.pem}, url, origin="test")):
            with pytest.raises(RefusedError) as caught:
                bare.open(url, access).fetch("main")
            assert caught.value.reason == "CertificateUnknown"


def test_a_client_certificate_logs_in(bare: Bare) -> None:
    authority = Authority(bare.folder / "pki")
    certificate, key = authority.signed("ada")
    with git_server(bare.folder / "served", authority.context(people=True)) as server:
        url = server.url("origin.git")
        values = {"ca.crt": authority.pem, "tls.crt": certificate, "tls.key": key}
        repository = bare.open(url, access_from(values, url, origin="test"))
        assert push(repository) == repository.fetch("main")
        with pytest.raises((RefusedError, SilentError)):
            bare.open(url, access_from({"ca.crt": authority.pem}, url, origin="test")).fetch("main")


def test_a_proxy_is_used_for_hosts_that_only_it_knows(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with git_server(bare.folder / "served") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        repository = bare.open("http://git.invalid/origin.git")
        commit = push(repository)
        assert repository.fetch("main") == commit
        assert {path.split("?")[0] for _, path, _ in proxy.asked} >= {"http://git.invalid/origin.git/info/refs"}


def test_a_proxy_in_the_users_git_settings_is_used(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    with git_server(bare.folder / "served") as proxy:
        settings = bare.folder / "gitconfig"
        settings.write_text(f'[http "http://git.invalid"]\n\tproxy = http://{proxy.address}\n')
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
        assert bare.open("http://git.invalid/origin.git").fetch("main") == ""
        assert proxy.asked


def test_files_of_an_access_are_private_and_gone_when_it_is_closed(sshd: SshServer, bare: Bare) -> None:
    repository = by_key(sshd, bare)
    folder = repository._login._folder
    assert folder is not None
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    assert "PRIVATE" not in str(repository._login.environment)
    repository.close()
    assert not folder.exists()


def test_a_folder_of_files_is_read_like_a_secret(bare: Bare, sshd: SshServer) -> None:
    folder, url = bare.folder / "access", sshd.url(bare.path)
    folder.mkdir()
    for name, text in (("identity", sshd.key("closed")), ("known_hosts", sshd.known_hosts), ("passphrase", PASSPHRASE + "\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    assert bare.open(url, access_from_folder(folder, url)).fetch("main") == ""
    (folder / "identity").rename(folder / "ssh-privatekey")
    assert bare.open(url, access_from_folder(folder, url)).fetch("main") == ""
    (folder / "ssh-privatekey").rename(folder / "identity")
    (folder / "identity").chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600") as caught:
        access_from_folder(folder, url)
    assert caught.value.reason == "SecretOpen"


def test_a_clone_remembers_how_its_server_is_reached(bare: Bare, sshd: SshServer) -> None:
    url, folder, clone = sshd.url(bare.path), bare.folder / "access", bare.folder / "clone"
    folder.mkdir()
    for name, text in (("identity", sshd.key()), ("known_hosts", sshd.known_hosts)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
    for setting, value in (("remote.origin.url", url), ("myelin.gitAccess", str(folder)), ("myelin.state", str(bare.folder))):
        subprocess.run(["git", "-C", str(clone), "config", setting, value], check=True)
    place = project.find(str(clone))
    assert place.git_access == project.settings_of(place).git_access == folder
    assert bare.open(place.url, place.access).fetch("main") == ""
    assert project.find(url, git_access=str(folder)).access == place.access
    (folder / "known_hosts").unlink()
    with pytest.raises(DesiredStateError, match="expected the key known_hosts"):
        _ = place.access


SSH, HTTPS = "ssh://git@git.example.com:2222/a.git", "https://git.example.com/a.git"
INCOMPLETE: dict[str, tuple[str, dict[str, str], str]] = {
    "a key without known hosts": (
        SSH,
        {"identity": "x"},
        "there: expected the key known_hosts, got identity; `ssh-keyscan -p 2222 git.example.com` prints it",
    ),
    "known hosts without a key": (
        "git@git.example.com:a.git",
        {"known_hosts": "x"},
        "there: expected the key identity, got known",
    ),
    "a password for SSH": (SSH, {"username": "a", "password": "b"}, "there: expected the key identity, got password, username"),
    "a user without password": (HTTPS, {"username": "ada"}, "there: expected the key password, got username"),
    "a password without user": (
        HTTPS,
        {"password": "x", "ca.crt": "x"},
        "there: expected the key username, got ca.crt, password",
    ),
    "nothing": (HTTPS, {}, "there: expected the key username, got nothing"),
    "a certificate without its key": (HTTPS, {"tls.crt": "x"}, "there: expected the key tls.key, got tls.crt"),
    "a certificate's key with a passphrase": (
        HTTPS,
        {"tls.crt": "x", "tls.key": "-----BEGIN ENCRYPTED PRIVATE KEY-----"},
        "there: tls.key: expected a key without passphrase",
    ),
    "a header in a token": (HTTPS, {"bearerToken": "x\nX-Other: y"}, "there: bearerToken: expected one line"),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_access_that_cannot_work_names_what_is_missing(name: str) -> None:
    url, values, message = INCOMPLETE[name]
    with pytest.raises(ControllerError) as caught:
        access_from(values, url, origin="there")
    assert isinstance(caught.value, DesiredStateError)
    assert caught.value.reason == "SecretIncomplete"
    assert caught.value.message.startswith(message)


def test_a_url_never_starts_a_program(bare: Bare) -> None:
    trace = bare.folder / "trace"
    with pytest.raises(RefusedError, match="transport 'ext' not allowed"):
        bare.open(f"ext::sh -c touch%20{trace}").fetch("main")
    assert not trace.exists()


def test_a_look_without_news_is_one_question_for_the_refs_alone(bare: Bare) -> None:
    with git_server(bare.folder / "served") as server:
        repository = bare.open(server.url("origin.git"))
        commit = push(repository)
        server.asked.clear()
        assert repository.fetch("main") == commit
        assert [(method, path.split("/")[-1]) for method, path, _ in server.asked] == [
            ("GET", "refs?service=git-upload-pack"),
            ("POST", "git-upload-pack"),
        ]
        assert b"command=ls-refs" in server.asked[1][2]
        assert b"ref-prefix refs/heads/main" in server.asked[1][2]


def test_branches_that_are_watched_together_are_asked_for_together(bare: Bare) -> None:
    with git_server(bare.folder / "served") as server:
        repository, other = bare.open(server.url("origin.git"), poll_seconds=5), bare.open(server.url("origin.git"))
        first = push(other)
        assert (repository.fetch("main"), repository.fetch("ledger")) == (first, "")
        second = push(other, first, b"2")
        third = other.push(branch="ledger", parent="", changes={"b": b"1"}, message="x", at=AT)
        for branch in ("main", "ledger"):
            repository.stir(branch)
        server.asked.clear()
        assert repository.fetch("main") == second
        asked = sum(b"command=ls-refs" in body for _, _, body in server.asked)
        assert repository.fetch("ledger") == third
        listed = sum(b"command=ls-refs" in body for _, _, body in server.asked)
        # A branch that was not there before is asked for by itself.
        assert (asked, listed) == (1, 2)
        fourth = push(other, second, b"4")
        for branch in ("main", "ledger"):
            repository.stir(branch)
        server.asked.clear()
        assert (repository.fetch("ledger"), repository.fetch("main")) == (third, fourth)
        assert sum(b"command=ls-refs" in body for _, _, body in server.asked) == 1
        assert repository.fetch("main") == fourth
        fifth = push(other, fourth, b"5")
        assert (repository.fetch("main"), repository.fetch("main", fresh=True)) == (fourth, fifth)


def test_two_mirrors_in_one_place_do_not_get_in_each_others_way(bare: Bare) -> None:
    one, other = (GitRepository(str(bare.path), bare.folder / "shared", None) for _ in range(2))
    bare.opened += [one, other]
    first = push(one)
    assert other.fetch("main") == first
    second = push(other, first, b"2")
    assert one.fetch("main") == second
    assert one.read(second, "a") == b"2"
