"""HTTP around the user's class: /predict, /send-feedback, /health, /metrics."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from myelin.serve.calls import Caller, TimedOut
from myelin.serve.message import BadRequest, decode
from myelin.serve.model import Model
from myelin.serve.plain import ModelFault
from myelin.serve.settings import NotServed, Settings, read_settings
from myelin.serve.wire import LARGEST_BODY_BYTES, failure, read_message

_to_json = partial(json.dumps, allow_nan=False)


class ModelServer:
    """Serves one model.

    Args:
        model: What answers.
        timeout_seconds: Bound of one call; None: none.
    """

    def __init__(self, model: Model, *, timeout_seconds: float | None = None) -> None:
        self._model = model
        self.calls = Caller(side_by_side=model.is_thread_safe, timeout_seconds=timeout_seconds)
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "myelin_model_requests", "Requests by route and status", ["route", "code"], registry=self._registry
        )
        self._seconds = Histogram("myelin_model_seconds", "Time of the user's code", ["route"], registry=self._registry)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=LARGEST_BODY_BYTES)
        for method in ("GET", "POST"):
            application.router.add_route(method, "/predict", self._predict)
            application.router.add_route(method, "/send-feedback", self._feedback)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _predict(self, request: web.Request) -> web.Response:
        return await self._answer("/predict", request, self._model.predict)

    async def _feedback(self, request: web.Request) -> web.Response:
        return await self._answer("/send-feedback", request, self._model.feedback)

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"strData": "OK"})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        body = generate_latest(self._registry) + self._model.exposition()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _answer(self, route: str, request: web.Request, work: Callable[[Any], Any]) -> web.Response:
        code, text = 200, ""
        try:
            message = await read_message(request)
            with self._seconds.labels(route).time():
                answer = await self.calls.call(route, lambda: work(message))
            return web.json_response(answer, dumps=_to_json)
        except BadRequest as error:
            code, text = 400, str(error)
        except web.HTTPRequestEntityTooLarge:
            code, text = 413, f"expected at most {LARGEST_BODY_BYTES} bytes"
        except TimedOut as error:
            code, text = 504, str(error)
        except ModelFault as error:
            code, text = 500, str(error)
        finally:
            self._requests.labels(route, str(code)).inc()
        return failure(code, text)


def load(settings: Settings) -> Model:
    """Import the user's class and make its object.

    Raises:
        NotServed: There is none, or it raised.
    """
    name = settings.model
    if not name:
        raise NotServed("MODEL_NAME: expected the name of a module and of the class in it, it is not set")
    sys.path.insert(0, os.getcwd())
    decode({"data": {"ndarray": []}})  # brings numpy in where it is, so that no caller waits for that
    try:
        return Model(getattr(importlib.import_module(name), name)(), settings.axon)
    except ModelFault as error:
        raise NotServed(f"model {name}: {error}") from error
    except Exception as error:
        raise NotServed(f"model {name}: {type(error).__name__}: {error}") from error


def main() -> int:
    """Load and serve until told to stop; 1 when nothing can be served."""
    started = time.monotonic()
    try:
        settings = read_settings(os.environ)
        for note in settings.notes:
            print(note, file=sys.stderr)
        model = load(settings)
    except NotServed as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    # Turned off by `__main__`; what is there by now is not looked at any more.
    gc.freeze()
    gc.enable()
    print(f"model {settings.model} loaded in {time.monotonic() - started:.2f} s")
    server = ModelServer(model, timeout_seconds=settings.timeout_seconds)
    host, port = settings.host, settings.port
    web.run_app(server.application(), host=host, port=port, print=None, access_log=None, shutdown_timeout=3.0)
    if server.calls.is_busy:
        # A call that never comes back would keep this process for ever.
        sys.stdout.flush()
        os._exit(0)
    return 0
