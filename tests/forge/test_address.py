"""Where the forge of a repository is."""

from __future__ import annotations

import pytest

from controller.adapters.forge.address import address_of
from policies.errors import DesiredStateError
from policies.terms.project import Forge

PLACES = {
    "by HTTPS": ("gitea", "", "", "https://git.example.com/team/digits.git", "https://git.example.com", "team/digits"),
    "with a user and a port": (
        "gitea",
        "",
        "",
        "https://u@git.example.com:3000/team/digits",
        "https://git.example.com:3000",
        "team/digits",
    ),
    "a password is dropped": (
        "gitea",
        "",
        "",
        "http://u:p@git.example.com/team/digits/",
        "http://git.example.com",
        "team/digits",
    ),
    "by SSH, whose port is its own": (
        "gitea",
        "",
        "",
        "ssh://git@git.example.com:2222/team/digits.git",
        "https://git.example.com",
        "team/digits",
    ),
    "as SSH writes it": ("github", "", "", "git@github.com:team/digits.git", "https://github.com", "team/digits"),
    "without a user": ("gitea", "", "", "git.example.com:team/digits", "https://git.example.com", "team/digits"),
    "behind a firewall": ("github", "", "", "ssh://git@ssh.github.com:443/team/digits.git", "https://github.com", "team/digits"),
    "an address of IPv6": ("gitea", "", "", "http://[::1]:3000/team/digits", "http://[::1]:3000", "team/digits"),
    "groups of GitLab": ("gitlab", "", "", "git@gitlab.com:a/b/c/digits.git", "https://gitlab.com", "a/b/c/digits"),
    "below a path": ("gitea", "", "", "https://example.com/git/team/digits.git", "https://example.com/git", "team/digits"),
    "below a path that is said": (
        "gitlab",
        "https://example.com/git/",
        "",
        "https://example.com/git/a/b/digits",
        "https://example.com/git",
        "a/b/digits",
    ),
    "below a path that SSH does not know": (
        "gitea",
        "https://example.com/git",
        "",
        "git@example.com:team/digits",
        "https://example.com/git",
        "team/digits",
    ),
    "somewhere else": (
        "gitea",
        "http://gitea.forge.svc:3000",
        "",
        "ssh://git@mirror.example/team/digits",
        "http://gitea.forge.svc:3000",
        "team/digits",
    ),
    "all is said": (
        "gitea",
        "https://git.example.com",
        "team/digits",
        "/srv/git/mirror.git",
        "https://git.example.com",
        "team/digits",
    ),
    "another name there": ("gitlab", "", "x/y/z", "https://git.example.com/a/b", "https://git.example.com", "x/y/z"),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_it_is(case: str) -> None:
    kind, url, name, repository, root, path = PLACES[case]
    found = address_of(Forge.model_validate({"type": kind, "url": url, "repository": name}), repository)
    assert (found.root, found.repository) == (root, path)


NOWHERE = {
    "a path": ("gitea", "", "", "/srv/git/digits.git"),
    "a file": ("gitea", "", "team/digits", "file:///srv/git/digits.git"),
    "one name only": ("gitea", "", "", "https://git.example.com/digits.git"),
    "groups where there are none": ("github", "", "a/b/c", "https://git.example.com/a/b"),
    "a user in the URL": ("gitea", "https://u:p@git.example.com", "", "https://git.example.com/a/b"),
    "another protocol": ("gitea", "ssh://git.example.com", "", "https://git.example.com/a/b"),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_where_it_is_not_said(case: str) -> None:
    kind, url, name, repository = NOWHERE[case]
    with pytest.raises(DesiredStateError, match=r"^spec\.writeBack\.forge: expected") as caught:
        address_of(Forge.model_validate({"type": kind, "url": url, "repository": name}), repository)
    assert "u:p" not in caught.value.message
