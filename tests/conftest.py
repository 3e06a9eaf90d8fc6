"""Fixtures of more than one folder."""

from tests.forge.fixtures import gitea as gitea
