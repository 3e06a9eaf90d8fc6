"""Git: one bare mirror for each repository, read at pinned commits, written by compare-and-swap. No work tree.

`program.py` is the door to GitPython.
"""

from controller.adapters.git.access import GitAccess, access_from, access_from_folder
from controller.adapters.git.clones import (
    clone,
    config_get,
    config_set,
    init_bare,
    origin_of,
    pull,
    top_of,
    would_commit,
)
from controller.adapters.git.pinned import OtherRepositories
from controller.adapters.git.repository import GitRepository
from controller.adapters.git.urls import mirror_name, shown

__all__ = [
    "GitAccess",
    "GitRepository",
    "OtherRepositories",
    "access_from",
    "access_from_folder",
    "clone",
    "config_get",
    "config_set",
    "init_bare",
    "mirror_name",
    "origin_of",
    "pull",
    "shown",
    "top_of",
    "would_commit",
]
