"""What the commands answer, as JSON values: read from Git, the ledger, the store and the last pass's status."""

from controller.answers.audit import history, verify, why
from controller.answers.foreseeing import plan
from controller.answers.linting import lint
from controller.answers.present import endpoint, logs, releases, status

__all__ = ["endpoint", "history", "lint", "logs", "plan", "releases", "status", "verify", "why"]
