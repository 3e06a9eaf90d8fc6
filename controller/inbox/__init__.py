"""The inbox: REST triggers, results and metrics that programs send by HTTP, the controller's own metrics, and what it
knows of runs and deployed models, to be read.
"""

from controller.inbox.desk import Desk
from controller.inbox.local import HOW_TO_ENTER, fire, leave_address, serve, webhooks
from controller.inbox.parsing import group_labels, number, result_line
from controller.inbox.receivers import LARGEST_RESULT_BYTES, Admitted, Receivers

__all__ = [
    "HOW_TO_ENTER",
    "LARGEST_RESULT_BYTES",
    "Admitted",
    "Desk",
    "Receivers",
    "fire",
    "group_labels",
    "leave_address",
    "number",
    "result_line",
    "serve",
    "webhooks",
]
