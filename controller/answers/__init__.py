"""What the commands answer, as JSON values: read from Git, the ledger, the store and the last pass's status."""

from controller.answers.differing import diff
from controller.answers.foreseeing import plan
from controller.answers.history import history
from controller.answers.linting import lint
from controller.answers.present import endpoint, logs, releases, status
from controller.answers.verifying import verify
from controller.answers.why import why

__all__ = ["diff", "endpoint", "history", "lint", "logs", "plan", "releases", "status", "verify", "why"]
