"""What the environment (`.s2i/environment` and the engine) says -> how a model is served, or why it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

BUILT = {"API_TYPE": "REST", "SERVICE_TYPE": "MODEL", "PERSISTENCE": "0"}
"""The one value of each key that is built."""


class NotServed(Exception):
    """Nothing can be served as the environment asks; the text is for the person who wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is served."""

    model: str
    """Its module and class."""
    axon: str
    """Suffix of its metrics' names."""
    host: str
    port: int
    timeout_seconds: float | None
    """Bound of one call of the user's code; None: none."""
    notes: tuple[str, ...] = ()
    """What was asked for, is not built, and does not stop us."""


def read_settings(env: Mapping[str, str]) -> Settings:
    """Read the environment.

    Raises:
        NotServed: It asks for something that is not built, or for nothing that can be understood.
    """
    for key, built in BUILT.items():
        got = env.get(key, "").strip()
        if got and got.upper() != built:
            raise NotServed(f"{key}: expected {built}, got {got}; nothing else is built yet")
    workers = _number(env, "NUM_WORKERS", 1.0)
    if workers < 1 or not workers.is_integer():
        raise NotServed(f"NUM_WORKERS: expected a whole number of at least 1, got {env['NUM_WORKERS']}")
    notes = (f"NUM_WORKERS: got {workers:g}; more than 1 is not built yet, 1 serves",) if workers > 1 else ()
    timeout, port = _number(env, "TIMEOUT", 0.0), _number(env, "PORT", 5000.0)
    if timeout < 0:
        raise NotServed(f"TIMEOUT: expected seconds of at least 0, got {timeout:g}")
    return Settings(
        model=env.get("MODEL_NAME", "").strip(),
        axon=env.get("AXON_NAME", ""),
        host=env.get("HOST", "127.0.0.1"),
        port=int(port),
        timeout_seconds=timeout or None,
        notes=notes,
    )


def _number(env: Mapping[str, str], key: str, default: float) -> float:
    text = env.get(key, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise NotServed(f"{key}: expected a number, got {text}")
    return value
