"""What Git and its servers say, as recorded, and what we make of it."""

from __future__ import annotations

import pytest

from controller.adapters.git.refusals import outside, pushed
from policies.errors import ConflictError, OutsideError, RefusedError, SilentError

URL = "https://git.example.com/team/shop.git"


def told(status: str, *remote: str) -> str:
    """What a push with `--porcelain` says, in the words that GitPython puts around it."""
    said = "".join(f"remote: {line}\n" for line in remote)
    return (
        f"\n  stderr: '{said}error: failed to push some refs to '{URL}'\n'"
        f"\n  stdout: 'To {URL}\n!\t0123456789abcdef:refs/heads/main\t{status}\nDone\n'"
    )


PUSHES: dict[str, tuple[str, type[OutsideError], str]] = {
    "git: our own Git saw that the branch moved": (told("[rejected] (stale info)"), ConflictError, "Conflict"),
    "git: the branch moved while we sent": (
        told("[remote rejected] (failed to update ref)", "error: cannot lock ref 'refs/heads/main': is at aa but expected bb"),
        ConflictError,
        "Conflict",
    ),
    "git: the branch moved, newer wording": (
        told("[remote rejected] (incorrect old value provided)"),
        ConflictError,
        "Conflict",
    ),
    "git: somebody made the branch first": (told("[remote rejected] (reference already exists)"), ConflictError, "Conflict"),
    "GitHub: the branch moved while we sent": (
        told("[remote rejected] (cannot lock ref 'refs/heads/main': is at 77ab02 but expected 9f3c51)"),
        ConflictError,
        "Conflict",
    ),
    "JGit: the branch moved while we sent": (told("[remote rejected] (failed to lock)"), ConflictError, "Conflict"),
    "git: a hook says no": (
        told("[remote rejected] (pre-receive hook declined)", "not on this branch"),
        RefusedError,
        "PushRefused",
    ),
    "git: nobody rewrites branches here": (
        told("[remote rejected] (non-fast-forward)", "error: denying non-fast-forward refs/heads/main (you should pull first)"),
        RefusedError,
        "RewriteRefused",
    ),
    "git: a work tree has the branch": (
        told("[remote rejected] (branch is currently checked out)", "error: refusing to update checked out branch"),
        RefusedError,
        "PushRefused",
    ),
    "Gitea: a protected branch": (
        told("[remote rejected] (pre-receive hook declined)", "", "error: Not allowed to push to protected branch main"),
        RefusedError,
        "BranchProtected",
    ),
    "GitHub: a protected branch": (
        told(
            "[remote rejected] (protected branch hook declined)",
            "error: GH006: Protected branch update failed for refs/heads/main.",
            "error: Changes must be made through a pull request.",
        ),
        RefusedError,
        "BranchProtected",
    ),
    "GitHub: a ruleset": (
        told(
            "[remote rejected] (push declined due to repository rule violations)",
            "error: GH013: Repository rule violations found for refs/heads/main.",
            "",
            "- Changes must be made through a pull request.",
        ),
        RefusedError,
        "BranchProtected",
    ),
    "GitLab: a protected branch": (
        told(
            "[remote rejected] (pre-receive hook declined)",
            "GitLab: You are not allowed to push code to protected branches on this project.",
        ),
        RefusedError,
        "BranchProtected",
    ),
    "GitLab: in trouble itself": (
        told("[remote rejected] (pre-receive hook declined)", "GitLab: Internal API unreachable"),
        SilentError,
        "Silent",
    ),
    "Bitbucket: branch permissions": (
        told(
            "[remote rejected] (pre-receive hook declined)",
            "Branch refs/heads/main can only be modified through pull requests.",
            "Check your branch permissions configuration with the project administrator.",
        ),
        RefusedError,
        "BranchProtected",
    ),
    "Bitbucket: a person may not": (
        told("[remote rejected] (pre-receive hook declined)", "Pushing to refs/heads/main is not permitted"),
        RefusedError,
        "PushRefused",
    ),
    "Azure: a branch policy": (
        told(
            "[remote rejected] (TF402455: Pushes to this branch are not permitted; "
            "you must use a pull request to update this branch.)"
        ),
        RefusedError,
        "BranchProtected",
    ),
    "GitHub: broken for a moment": (told("[remote rejected] (Internal Server Error)"), SilentError, "Silent"),
    "git: the server's disk is broken": (
        told("[remote rejected] (unpacker error)", "error: unable to create temporary object directory"),
        SilentError,
        "Silent",
    ),
    "git: the answer never came": (told("[remote failure] (remote failed to report status)"), SilentError, "Silent"),
    "HTTP: this login may not push": (
        f"\n  stderr: 'fatal: unable to access '{URL}/': The requested URL returned error: 403'",
        RefusedError,
        "PushRefused",
    ),
    "HTTP: no such login": (f"\n  stderr: 'fatal: Authentication failed for '{URL}/''", RefusedError, "LoginRefused"),
    "HTTP: too many requests": (
        f"\n  stderr: 'fatal: unable to access '{URL}/': The requested URL returned error: 429'",
        SilentError,
        "Silent",
    ),
    "HTTP: a gateway gives up": (
        "\n  stderr: 'error: RPC failed; HTTP 504 curl 22 The requested URL returned error: 504\n"
        "send-pack: unexpected disconnect while reading sideband packet\nfatal: the remote end hung up unexpectedly'",
        SilentError,
        "Silent",
    ),
    "GitHub by SSH: a key that may only read": (
        "\n  stderr: 'ERROR: The key you are authenticating with has been marked as read only.\n"
        "fatal: Could not read from remote repository.'",
        RefusedError,
        "PushRefused",
    ),
    "GitHub by SSH: somebody else's repository": (
        "\n  stderr: 'ERROR: Permission to team/shop.git denied to robot.\nfatal: Could not read from remote repository.'",
        RefusedError,
        "PushRefused",
    ),
    "GitLab by SSH: a deploy key that may only read": (
        "\n  stderr: 'remote: \nremote: ====\nremote: \nremote: This deploy key does not have write access to this project.\n"
        "remote: \nfatal: Could not read from remote repository.'",
        RefusedError,
        "PushRefused",
    ),
    "SSH: no such key": (
        "\n  stderr: 'git@git.example.com: Permission denied (publickey).\nfatal: Could not read from remote repository.'",
        RefusedError,
        "LoginRefused",
    ),
    "the disk is full here": ("\n  stderr: 'fatal: write error: No space left on device'", SilentError, "DiskFull"),
}


@pytest.mark.parametrize("name", PUSHES)
def test_a_push_that_did_not_work_is_lost_refused_or_silent(name: str) -> None:
    text, kind, reason = PUSHES[name]
    error = pushed("main", "9f3c51aa", URL, text)
    assert (type(error), error.reason) == (kind, reason), error.message
    assert error.message.startswith("push to main")
    assert "stderr" not in error.message
    assert ("spec.writeBack.mode: pull-request" in error.message) == (reason in ("BranchProtected", "PushRefused"))


def test_a_refusal_says_what_the_server_said() -> None:
    error = pushed("main", "", URL, PUSHES["GitLab: a protected branch"][0])
    assert "you are not allowed to push code to protected branches on this project" in error.message
    error = pushed("main", "", URL, PUSHES["git: a hook says no"][0])
    assert error.message.startswith(f"push to main of {URL}: refused: not on this branch; let this user push there, or set")


FETCHES: dict[str, tuple[str, type[OutsideError], str]] = {
    "HTTP: there is none": (f"fatal: repository '{URL}/' not found", RefusedError, "RepositoryGone"),
    "GitHub by SSH: there is none": ("ERROR: Repository not found.\nfatal: Could not read", RefusedError, "RepositoryGone"),
    "GitLab by SSH: there is none": (
        "remote: ERROR: The project you were looking for could not be found or you don't have permission to view it.",
        RefusedError,
        "RepositoryGone",
    ),
    "SSH: a path without repository": (
        "fatal: '/srv/none.git' does not appear to be a git repository\nfatal: Could not read from remote repository.",
        RefusedError,
        "RepositoryGone",
    ),
    "SSH: nobody was told of this host": (
        "No ED25519 host key is known for [127.0.0.1]:2222 and you have requested strict checking.\n"
        "Host key verification failed.\nfatal: Could not read from remote repository.",
        RefusedError,
        "HostKeyUnknown",
    ),
    "SSH: another host answers": (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
        RefusedError,
        "HostKeyChanged",
    ),
    "SSH: the key is not known there": ("git@host: Permission denied (publickey,password).", RefusedError, "LoginRefused"),
    "SSH: not installed": ("error: cannot run ssh: No such file or directory", RefusedError, "ProgramMissing"),
    "SSH: no answer": ("ssh: connect to host x port 22: Connection refused", SilentError, "Silent"),
    "HTTP: no such host": (f"fatal: unable to access '{URL}/': Could not resolve host: git.example.com", SilentError, "Silent"),
    "TLS: an authority of their own, GnuTLS": (
        "fatal: unable to access 'x': server certificate verification failed. CAfile: none CRLfile: none",
        RefusedError,
        "CertificateUnknown",
    ),
    "TLS: an authority of their own, OpenSSL": (
        "fatal: unable to access 'x': SSL certificate problem: unable to get local issuer certificate",
        RefusedError,
        "CertificateUnknown",
    ),
    "HTTP: in trouble": (f"fatal: unable to access '{URL}/': The requested URL returned error: 503", SilentError, "Silent"),
    "HTTP: forbidden": (f"fatal: unable to access '{URL}/': The requested URL returned error: 403", RefusedError, "Refused"),
}


@pytest.mark.parametrize("name", FETCHES)
def test_a_fetch_that_did_not_work_is_refused_or_silent(name: str) -> None:
    text, kind, reason = FETCHES[name]
    error = outside("fetch of main", f"\n  stderr: '{text}'", scan="`ssh-keyscan -p 2222 127.0.0.1`")
    assert (type(error), error.reason) == (kind, reason), error.message
    assert "\n" not in error.message
    assert ("ssh-keyscan -p 2222 127.0.0.1" in error.message) == (reason == "HostKeyUnknown")


def test_no_password_of_a_url_is_told() -> None:
    text = "\n  stderr: 'fatal: unable to access 'https://ada:hunter2@git.example.com/x/': Could not resolve host'"
    assert "hunter2" not in outside("fetch of main", text).message + pushed("main", "", URL, text).message
