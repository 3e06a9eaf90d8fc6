"""Routes by traffic and by version, runs graphs, mirrors to the shadow; its configuration may change at any time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, FormData, TCPConnector, web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from myelin.serve.message import BadRequest
from myelin.serve.wire import LARGEST_BODY_BYTES, failure, read_message

HEADER = "Myelin-Version"
LOOK_SECONDS = 0.1
LATE = (TimeoutError, asyncio.TimeoutError)
"""Two classes before Python 3.11."""


class Unanswered(Exception):
    """A backend gave no answer."""


class Proxy:
    """Routes requests of one deployer.

    Args:
        config: Path of the configuration.
        chance: Where weights are drawn from.
    """

    def __init__(self, config: Path, chance: random.Random | None = None) -> None:
        self._path, self._chance = config, chance or random.Random()
        self._config: dict[str, Any] = {"axon": "", "versions": {}, "traffic": [], "shadow": ""}
        self._stamp: tuple[int, int] = (0, 0)
        self._digest = ""
        self._session: ClientSession | None = None
        self._mirrors: set[asyncio.Task[None]] = set()
        self._registry = CollectorRegistry()
        labels = ["version", "route", "code"]
        self._requests = Counter(
            "myelin_proxy_requests", "Requests by version, route and status", labels, registry=self._registry
        )
        self._seconds = Histogram("myelin_proxy_seconds", "Time to the answer", ["version"], registry=self._registry)
        self._added = Histogram("myelin_proxy_added_seconds", "Time that the proxy itself took", registry=self._registry)
        self._shadowed = Counter(
            "myelin_proxy_shadow", "Mirrored requests by whether the answers agree", ["agrees"], registry=self._registry
        )
        self._refused = Counter("myelin_proxy_refused_configs", "Configurations that could not be read", registry=self._registry)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=LARGEST_BODY_BYTES)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_route("*", "/{place:.*}", self._route)
        application.cleanup_ctx.append(self._follow)
        return application

    def load(self) -> None:
        """Read the configuration if it changed; one that cannot be read leaves the old one."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            text = self._path.read_bytes()
            config = json.loads(text)
            for version in config["versions"].values():
                assert isinstance(version["routes"], list)
                assert isinstance(version["models"], dict)
            assert isinstance(config["traffic"], list)
            assert isinstance(config["axon"], str)
        except (OSError, ValueError, KeyError, AssertionError, AttributeError, TypeError) as error:
            self._refused.inc()
            print(f"configuration refused: {type(error).__name__}: {error}", file=sys.stderr)
            return
        self._config, self._digest = config, f"sha256:{hashlib.sha256(text).hexdigest()}"

    async def _follow(self, application: web.Application) -> Any:
        del application
        self._session = ClientSession(connector=TCPConnector(limit=0, keepalive_timeout=30))
        self.load()

        async def look() -> None:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                self.load()

        task = asyncio.create_task(look())
        yield
        task.cancel()
        await self._session.close()

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"strData": "OK", "versions": len(self._config["versions"]), "config": self._digest})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _route(self, request: web.Request) -> web.Response:
        started, config = time.monotonic(), self._config
        parts = request.path.strip("/").split("/")
        asked = request.headers.get(HEADER, "")
        if parts[0] != config["axon"]:
            return failure(404, f"expected a path under /{config['axon']}/, got {request.path}")
        parts = parts[1:]
        if len(parts) > 2 and parts[0] == "versions":
            asked, parts = parts[1], parts[2:]
        if asked and asked not in config["versions"]:
            return failure(404, f"version {asked}: not served here; there are {', '.join(sorted(config['versions'])) or 'none'}")
        version = asked or self._choose([(item["version"], item["share"]) for item in config["traffic"]])
        if not version:
            return failure(503, "no version has traffic and is ready")
        path = "/" + "/".join(parts)
        routes = config["versions"][version]["routes"]
        route = next((item for item in routes if item["path"].rstrip("/") == path.rstrip("/")), None)
        if route is None:
            return failure(404, f"route {path}: expected one of {', '.join(sorted(item['path'] for item in routes))}")
        code, waited = 200, 0.0
        try:
            message = await read_message(request)
            before = time.monotonic()
            answer = await asyncio.wait_for(self._graph(config["versions"][version], route, message), route["timeoutSeconds"])
            waited = time.monotonic() - before
            if config["shadow"] and not asked:
                self._mirror(config, route["path"], message, answer)
            response = web.json_response(answer)
        except BadRequest as error:
            code, response = 400, failure(400, str(error))
        except RecursionError:
            code, response = 400, failure(400, "expected a message, got one that is nested too deeply")
        except web.HTTPRequestEntityTooLarge:
            code, response = 413, failure(413, f"expected at most {LARGEST_BODY_BYTES} bytes")
        except LATE:
            code, response = 504, failure(504, f"route {path}: no answer within {route['timeoutSeconds']:g} s")
        except Unanswered as error:
            code, status = error.args[0], error.args[1]
            response = web.json_response(status, status=code) if isinstance(status, dict) else failure(code, status)
        response.headers[HEADER] = version
        self._requests.labels(version, route["path"], str(code)).inc()
        self._seconds.labels(version).observe(time.monotonic() - started)
        self._added.observe(time.monotonic() - started - waited)
        return response

    async def _graph(self, version: Mapping[str, Any], route: Mapping[str, Any], message: Any) -> Any:
        """Run a route's nodes, each as soon as those that it depends on have answered; the last node's answer counts."""
        nodes = {node["model"]: node for node in route["dag"]}
        tasks: dict[str, asyncio.Task[Any]] = {}

        async def run(name: str) -> Any:
            node = nodes[name]
            if not node["dependencies"]:
                return await self._call(version, node, message)
            answers = await asyncio.gather(*(answer_of(other) for other in node["dependencies"]))
            joined = dict(zip(node["dependencies"], answers, strict=True))
            if node["includeInput"]:
                joined["INPUT"] = message
            return await self._call(version, node, joined)

        def answer_of(name: str) -> asyncio.Task[Any]:
            if name not in tasks:
                tasks[name] = asyncio.ensure_future(run(name))
            return tasks[name]

        used = {other for node in nodes.values() for other in node["dependencies"]}
        ends = [name for name in nodes if name not in used] or list(nodes)
        try:
            answers = await asyncio.gather(*(answer_of(name) for name in ends))
        finally:
            for task in tasks.values():
                task.cancel()
        return answers[0] if len(ends) == 1 else dict(zip(ends, answers, strict=True))

    async def _call(self, version: Mapping[str, Any], node: Mapping[str, Any], message: Any) -> Any:
        assert self._session is not None
        url = node.get("fullPath")
        if not url:
            backends = version["models"].get(node["model"], [])
            address = self._choose([(item["address"], item["weight"]) for item in backends])
            url = f"http://{address}{node['path']}"
        timeout = ClientTimeout(total=node.get("timeoutSeconds") or None)
        try:
            async with self._session.post(url, timeout=timeout, **_body(node, message)) as got:
                body = await got.json(content_type=None)
                if got.status != 200:
                    raise Unanswered(got.status, body)
                return body
        except LATE:
            raise Unanswered(504, f"model {node['model']}: no answer within {timeout.total:g} s") from None
        except (ClientError, OSError, ValueError, RecursionError) as error:
            raise Unanswered(502, f"model {node['model']}: {type(error).__name__}") from error

    def _mirror(self, config: Mapping[str, Any], path: str, message: Any, answer: Any) -> None:
        """Send what the live version was asked to the shadow as well; its answer is compared, if asked for, and dropped."""
        version = config["versions"].get(config["shadow"])
        route = next((item for item in version["routes"] if item["path"] == path), None) if version else None
        if route is None:
            return

        async def send() -> None:
            try:
                other = await asyncio.wait_for(self._graph(version, route, message), route["timeoutSeconds"])
                agrees = str(_content(other) == _content(answer)).lower() if config.get("explainShadow", True) else "uncompared"
                self._shadowed.labels(agrees).inc()
            except (*LATE, Unanswered):
                self._shadowed.labels("failed").inc()

        task = asyncio.create_task(send())
        self._mirrors.add(task)
        task.add_done_callback(self._mirrors.discard)

    def _choose(self, weighted: Sequence[tuple[str, int]]) -> str:
        live = [(name, weight) for name, weight in weighted if weight > 0]
        return self._chance.choices([name for name, _ in live], [weight for _, weight in live])[0] if live else ""


def _body(node: Mapping[str, Any], message: Any) -> dict[str, Any]:
    """A message as a node takes it: JSON, or the field `json` of a multipart form, which is all that Seldon's servers read."""
    if not node.get("form"):
        return {"json": message}
    return {"data": FormData([("json", json.dumps(message))], default_to_multipart=True)}


def _content(answer: Any) -> Any:
    return {key: value for key, value in answer.items() if key != "meta"} if isinstance(answer, dict) else answer


def main() -> int:
    """Route until told to stop."""
    proxy = Proxy(Path(os.environ["MYELIN_CONFIG"]))
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8080"))
    web.run_app(proxy.application(), host=host, port=port, print=None, access_log=None, shutdown_timeout=3.0)
    return 0
