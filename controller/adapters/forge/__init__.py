"""Forges: pull requests and commit statuses on Gitea and Forgejo, GitHub and GitLab."""

from __future__ import annotations

from typing import assert_never

from controller.adapters.forge.address import address_of
from controller.adapters.forge.forge import RestForge
from policies.terms.project import Forge
from policies.terms.secret import Secret

__all__ = ["RestForge", "forge_of"]


def forge_of(settings: Forge, repository_url: str, token: Secret, *, poll_seconds: float = 10.0, ca: str = "") -> RestForge:
    """The forge of a repository; nothing is asked yet.

    Args:
        settings: The project's `spec.writeBack.forge`.
        repository_url: The repository, from which is taken what the settings do not say; HTTP, SSH or `host:path`.
        token: Of the user to act as.
        poll_seconds: How old an answer to `find` may be.
        ca: Certificates in PEM that may vouch for the forge, besides the system's.
    Raises:
        DesiredStateError: Neither settings nor URL say where the forge is, or the token cannot be one.
    """
    address = address_of(settings, repository_url)
    root, repository = address.root, address.repository
    match settings.type:
        case "gitea":
            from controller.adapters.forge.gitea import GiteaForge

            return GiteaForge(root, repository, token, poll_seconds=poll_seconds, ca=ca)
        case "github":
            from controller.adapters.forge.github import GitHubForge

            return GitHubForge(root, repository, token, poll_seconds=poll_seconds, ca=ca)
        case "gitlab":
            from controller.adapters.forge.gitlab import GitLabForge

            return GitLabForge(root, repository, token, poll_seconds=poll_seconds, ca=ca)
        case _:
            assert_never(settings.type)
