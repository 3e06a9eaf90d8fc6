"""The ledger: a write-ahead log on local disk, fsynced before anything acts on it, pushed in segments to a branch.

The branch is the truth. What else lies on this disk only saves reading the branch again.
"""

from controller.adapters.ledger.branch import BRANCH, lines_of
from controller.adapters.ledger.copy import read_folder
from controller.adapters.ledger.writing import GitLedger

__all__ = ["BRANCH", "GitLedger", "lines_of", "read_folder"]
