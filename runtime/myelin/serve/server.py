"""HTTP around the user's class: /predict, /send-feedback, /health, /metrics."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from myelin.serve.message import BadRequest, decode, encode

LARGEST_BODY_BYTES = 16 << 20
KINDS = ("COUNTER", "GAUGE", "TIMER")


class ModelServer:
    """Serves one object of the user's class.

    Args:
        model: With `predict(X, feature_names)`; optionally send_feedback, tags, metrics, class_names, predict_rest,
            send_feedback_rest.
        axon: Suffix of its metrics' names.
    """

    def __init__(self, model: Any, axon: str) -> None:
        self._model, self._axon = model, axon
        self._lock = asyncio.Lock()
        self._registry = CollectorRegistry()
        self._own: dict[str, Any] = {}
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
        return await self._answer("/predict", request, self._predicted)

    async def _feedback(self, request: web.Request) -> web.Response:
        return await self._answer("/send-feedback", request, self._fed_back)

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"strData": "OK"})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _answer(self, route: str, request: web.Request, work: Callable[[Any], Awaitable[Any]]) -> web.Response:
        code = 200
        try:
            message = await read_message(request)
            with self._seconds.labels(route).time():
                answer = await work(message)
            return web.json_response(answer)
        except (BadRequest, web.HTTPRequestEntityTooLarge) as error:
            code = 400 if isinstance(error, BadRequest) else 413
            text = str(error) if code == 400 else f"expected at most {LARGEST_BODY_BYTES} bytes"
            return failure(code, text)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything, and the server goes on
            code = 500
            traceback.print_exc()
            return failure(500, f"{type(error).__name__}: {error}")
        finally:
            self._requests.labels(route, str(code)).inc()

    async def _call(self, name: str, *args: Any) -> Any:
        """The user's code in a thread, one call at a time unless it says that it may run side by side."""
        function = getattr(self._model, name)
        if getattr(self._model, "thread_safe", False):
            return await asyncio.to_thread(function, *args)
        async with self._lock:
            return await asyncio.to_thread(function, *args)

    async def _predicted(self, message: Any) -> Any:
        if hasattr(self._model, "predict_rest"):
            return await self._call("predict_rest", message)
        values, names, encoding = decode(message)
        answer = await self._call("predict", values, names)
        result = encode(answer, encoding, self._class_names())
        return {**result, "meta": await self._meta()}

    async def _fed_back(self, message: Any) -> Any:
        if hasattr(self._model, "send_feedback_rest"):
            await self._call("send_feedback_rest", message)
        elif not hasattr(self._model, "send_feedback"):
            raise BadRequest("this model takes no feedback")
        else:
            if not isinstance(message, Mapping) or "request" not in message:
                raise BadRequest("expected `request`, and `truth` or `reward`")
            values, names, _ = decode(message["request"])
            truth = decode(message["truth"])[0] if message.get("truth") else None
            await self._call("send_feedback", values, names, message.get("reward", 0.0), truth)
        await self._meta()
        return {}

    async def _meta(self) -> dict[str, Any]:
        tags = await self._call("tags") if hasattr(self._model, "tags") else {}
        metrics = list(await self._call("metrics")) if hasattr(self._model, "metrics") else []
        for item in metrics:
            self._export(item)
        return {"tags": tags, "metrics": metrics}

    def _export(self, item: Mapping[str, Any]) -> None:
        key, value, kind = item.get("key"), item.get("value"), item.get("type")
        if kind not in KINDS or not isinstance(key, str) or not isinstance(value, (int, float)):
            raise ValueError(f"metrics(): expected key, numeric value and type of {', '.join(KINDS)}, got {dict(item)}")
        name = f"{key}_{self._axon}".replace("-", "__")
        if name not in self._own:
            make = {"COUNTER": Counter, "GAUGE": Gauge, "TIMER": Histogram}[kind]
            self._own[name] = make(name, f"{key}, from the model's metrics()", registry=self._registry)
        metric = self._own[name]
        if kind == "GAUGE":
            metric.set(value)
        elif kind == "COUNTER":
            metric.inc(value)
        else:
            metric.observe(value / 1000)  # Seldon's timers are in milliseconds

    def _class_names(self) -> list[str] | None:
        names = getattr(self._model, "class_names", None)
        names = names() if callable(names) else names
        return [str(name) for name in names] if names is not None else None


async def read_message(request: web.Request) -> Any:
    """The message of a request: form field, query parameter or bare JSON, whatever the content type says.

    Raises:
        BadRequest: None of them.
    """
    text = request.query.get("json")
    if text is None and request.content_type.startswith("multipart/"):
        form = await request.post()
        found = form.get("json")
        text = found if isinstance(found, str) else None
    if text is None:
        raw = await request.read()
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise BadRequest("expected UTF-8") from error
        if text.startswith("json="):
            from urllib.parse import parse_qs

            text = parse_qs(text)["json"][0]
    if not text.strip():
        raise BadRequest("expected a message: form field or query parameter `json`, or a JSON body")
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRequest(f"expected JSON: {error}") from error


def failure(code: int, text: str) -> web.Response:
    """An error as the earlier server gave it."""
    reason = {400: "BadRequest", 404: "NotFound", 413: "TooLarge", 500: "ModelError"}.get(code, "Unavailable")
    status = {"code": code, "info": " ".join(text.split())[:500], "reason": reason, "status": "FAILURE"}
    return web.json_response({"status": status}, status=code)


def main() -> int:
    """Load and serve until told to stop."""
    name = os.environ.get("MODEL_NAME", "")
    sys.path.insert(0, os.getcwd())
    started = time.monotonic()
    try:
        model = getattr(importlib.import_module(name), name)()
    except Exception as error:  # noqa: BLE001  whatever the user's class raises is the answer
        print(f"model {name or '(MODEL_NAME is not set)'}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"model {name} loaded in {time.monotonic() - started:.2f} s")
    server = ModelServer(model, os.environ.get("AXON_NAME", ""))
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "5000"))
    web.run_app(server.application(), host=host, port=port, print=None, access_log=None, shutdown_timeout=3.0)
    return 0
