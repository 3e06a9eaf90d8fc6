"""The engine on one machine: detached processes, one folder a job, exit codes on disk."""

from controller.adapters.engine_local.engine import LocalEngine
from controller.adapters.engine_local.unpacked import Unpacked

__all__ = ["LocalEngine", "Unpacked"]
