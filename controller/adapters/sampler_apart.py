"""The sampler in a process of its own, which ends when nobody has asked for a while: its libraries take 150 MB that a
controller at rest need not hold.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from controller.adapters.sampler import BohbSampler
from policies.errors import SilentError
from policies.terms.trial import Experiment, Tell

REST_SECONDS = 30.0


class SamplerApart:
    """Implements `reconcilers.ports.Sampler`. Threads may share it.

    Args:
        rest_seconds: After so long without a question the process ends.
    """

    def __init__(self, *, rest_seconds: float = REST_SECONDS) -> None:
        self._rest_seconds = rest_seconds
        self._guard = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._ending: threading.Timer | None = None

    def suggest(
        self, experiment: Experiment, tells: Sequence[tuple[Tell, Mapping[str, Any]]], number: int
    ) -> tuple[Mapping[str, Any], str]:
        """Draw suggestion `number`.

        Raises:
            SilentError: The process died, for example of a lack of memory; the next question starts another.
        """
        plain = [(tell, dict(config)) for tell, config in tells]
        with self._guard:
            if self._ending is not None:
                self._ending.cancel()
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            try:
                return self._pool.submit(_suggest, experiment, plain, number).result()
            except BrokenProcessPool as error:
                self._end()
                raise SilentError("sampler: its process died; it is started again", reason="SamplerDied") from error
            finally:
                self._ending = threading.Timer(self._rest_seconds, self.close)
                self._ending.daemon = True
                self._ending.start()

    def close(self) -> None:
        """End the process, if one runs."""
        with self._guard:
            self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def _suggest(experiment: Experiment, tells: Any, number: int) -> tuple[Mapping[str, Any], str]:
    config, origin = BohbSampler().suggest(experiment, tells, number)
    return dict(config), origin
