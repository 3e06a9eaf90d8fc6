"""What Git and its servers say when something does not work -> our errors, each server's own wording told apart.

Pure: text in, error out. The recorded wordings are in `tests/controller/test_git_wordings.py`.
"""

from __future__ import annotations

import re

from policies.errors import ConflictError, OutsideError, RefusedError, SilentError

_STATUS = re.compile(r"^\W*!\s.*\[(remote rejected|rejected|remote failure)\](?: .*?)?\s*\(([^\n]*)\)[' ]*$", re.MULTILINE)
"""One ref's line in what a push says: whose `no` it is, and why."""
_LOST = (
    "fetch first",
    "stale info",
    "cannot lock ref",
    "incorrect old value",
    "failed to update ref",
    "failed to lock",
    "lock_failure",
    "reference already exists",
    "remote ref updated since checkout",
)
"""Somebody wrote first: the words of Git itself, GitHub, and servers made with JGit."""
_PROTECTED = (
    "protected branch",  # GitHub, Gitea, Forgejo, GitLab
    "gh006",
    "gh013",
    "repository rule violations",
    "not allowed to push code to protected branches",  # GitLab
    "not allowed to force push code to a protected branch",
    "permission to update branch",  # Bitbucket: "you do not have permission to update branch", "is not permitted"
    "branch permissions",
    "pushes to this branch are not permitted",  # Azure
    "can only be modified through pull requests",  # Bitbucket
    "must use a pull request",
)
_TROUBLE = (
    "internal server error",
    "internal api unreachable",
    "unpacker error",
    "unable to migrate objects",
    "try again",
    "timed out",
    "timeout",
    "returned error: 5",
    "returned error: 429",
)
_LOGIN = (
    "authentication failed",
    "returned error: 401",
    "could not read username",
    "could not read password",
    "permission denied (",  # SSH; what is in the brackets is how one could have logged in
    "too many authentication failures",
    "incorrect passphrase",
    "bad certificate",
    "certificate required",
    "certificate is required",
    "invalid username or token",
)
_NO = (
    "remote rejected",
    "hook declined",
    "denied",
    "not allowed",
    "not permitted",
    "permission",
    "read only",
    "read-only",
    "write access",
    "returned error: 403",
)
_GONE = (
    "does not appear to be a git repository",
    "repository not found",
    "project you were looking for could not be found",
    "cannot find repository",
    "no such repository",
    "does not exist or you do not have permission",
)
_NOISE = re.compile(r"(error: )?(gitlab: )?(resolving deltas|processing|counting|compressing|enumerating|total|create a pull)")
_WAYS_OUT = "let this user push there, or set spec.writeBack.mode: pull-request"
_UNKNOWN_CERTIFICATE = ("certificate verification failed", "ssl certificate problem", "certificate signer not trusted")


def outside(what: str, text: str, *, scan: str = "`ssh-keyscan HOST`") -> OutsideError:
    """Why something else than a push did not work.

    Args:
        what: What was tried, the message's subject.
        text: What Git said.
        scan: The command that prints the server's host keys.
    """
    if (found := _known(what, text, scan)) is not None:
        return found
    if not any(word in text.lower() for word in _TROUBLE) and any(word in text.lower() for word in _NO):
        return RefusedError(f"{what}: {last_words(text)}")
    return SilentError(f"{what}: {last_words(text)}")


def pushed(branch: str, expected: str, url: str, text: str, *, scan: str = "`ssh-keyscan HOST`") -> OutsideError:
    """Why a push did not work.

    Args:
        branch: The branch that was to be moved.
        expected: The tip that it was believed to have; empty for none.
        url: The repository, as it may be shown.
        text: What Git said.
        scan: The command that prints the server's host keys.
    """
    what = f"push to {branch} of {url}"
    lowered = text.lower()
    lost = ConflictError(f"push to {branch}: remote moved from {expected[:12] or 'nothing'} while we wrote; looking again")
    said = _STATUS.search(_plain(text))
    if said is None and (found := _known(what, text, scan)) is not None:
        return found
    if said is not None:
        whose, why = said[1], said[2].lower()
        if whose == "remote failure":
            return SilentError(f"{what}: {why}")
        if whose == "rejected" or any(word in why for word in _LOST):
            return lost
        if "non-fast-forward" in why:
            text = f"{what}: refused: the server lets nobody rewrite a branch; allow it for branches below myelin/"
            return RefusedError(text, reason="RewriteRefused")
    elif any(word in lowered for word in _LOST):
        return lost
    if any(word in lowered for word in _PROTECTED):
        words = f"{what}: refused, the branch is protected: {_remote_words(text)}"
        return RefusedError(
            f"{words}; let this user push there, or set spec.writeBack.mode: pull-request", reason="BranchProtected"
        )
    if any(word in lowered for word in _TROUBLE):
        return SilentError(f"{what}: {_remote_words(text)}")
    if said is not None or any(word in lowered for word in _NO):
        words = f"{what}: refused: {_remote_words(text)}"
        return RefusedError(f"{words}; {_WAYS_OUT}", reason="PushRefused")
    return SilentError(f"{what}: {last_words(text)}")


def _known(what: str, text: str, scan: str) -> OutsideError | None:
    """What means the same wherever it comes up."""
    lowered = text.lower()
    if "no space left" in lowered and "remote:" not in lowered:
        return SilentError(f"{what}: no space left on the disk", reason="DiskFull")
    if "cannot run ssh" in lowered or "ssh: not found" in lowered:
        return RefusedError(f"{what}: expected the program ssh on this machine, there is none", reason="ProgramMissing")
    if "host identification has changed" in lowered:
        words = "the server shows another host key than the one in known_hosts: somebody may stand in between"
        return RefusedError(f"{what}: {words}; if its owner changed it, take out the old one", reason="HostKeyChanged")
    if "host key verification failed" in lowered or "host key is known for" in lowered:
        words = "the server's host key is not in known_hosts"
        return RefusedError(
            f"{what}: {words}; {scan} prints it, compare it with what its owner tells before you add it", reason="HostKeyUnknown"
        )
    if any(word in lowered for word in _UNKNOWN_CERTIFICATE):
        words = "the server's certificate is signed by no authority that is known here"
        return RefusedError(f"{what}: {words}; give its authority as ca.crt", reason="CertificateUnknown")
    if re.search(r"repository '.*' not found", lowered) or any(word in lowered for word in _GONE):
        return RefusedError(f"{what}: there is no such repository, or no access to it", reason="RepositoryGone")
    if any(word in lowered for word in _LOGIN):
        return RefusedError(f"{what}: the server refuses this login; look at user, password and key", reason="LoginRefused")
    return None


def _remote_words(text: str) -> str:
    """What the server itself said, in its words; else the first line that says something."""
    lines = [line.strip().removeprefix("remote:").strip(" =-*!") for line in _plain(text).splitlines() if "remote:" in line]
    noise = re.compile(
        r"^(error: )?(gitlab: )?(resolving deltas|processing|counting|compressing|enumerating|total|create a pull).*"
    )
    useful = [line for line in lines if line.lower().strip() not in ("", "error:") and not noise.match(line.lower())]
    return useful[0][:300].lower().removeprefix("error: ") if useful else last_words(text)


def last_words(text: str) -> str:
    """The first line that says something, without anybody's password."""
    lines = [line.strip().removeprefix("fatal: ") for line in _plain(text).splitlines()]
    useful = [line for line in lines if line and not line.startswith(("cmdline:", "stdout:", "hint:", "Done", "To "))]
    return (useful[0] if useful else "no answer")[:300].rstrip("'").lower()


def _plain(text: str) -> str:
    # GitPython puts what the program said into quotes behind a word of its own.
    return re.sub(r"(?m)^\s*(stderr|stdout): '", "", re.sub(r"\w+://[^@\s/]*@", "", text))
