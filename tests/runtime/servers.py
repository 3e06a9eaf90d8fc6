"""Model servers and proxies as processes on loopback, and how their callers talk to them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

QUESTION: dict[str, Any] = {"data": {"ndarray": [[1.0, 2.0]]}}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any, str]:
    """Status, JSON (or text) and version of an answer."""
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith("{") else text, answer.headers.get("Myelin-Version") or ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers.get("Myelin-Version") or ""


def multipart(*parts: tuple[str, str]) -> tuple[bytes, dict[str, str]]:
    """A multipart form of (headers after `form-data; `, content) parts, and its content type."""
    text = "".join(f"--cut\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n" for head, content in parts)
    return f"{text}--cut--\r\n".encode(), {"Content-Type": "multipart/form-data; boundary=cut"}


class Servers:
    """Programs of the runtime, started in a folder of users' modules, and ended together."""

    def __init__(self, folder: Path, **modules: str) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)

    def start(self, module: str, **env: str) -> str:
        return self.wait(self.launch(module, **env))

    def launch(self, module: str, **env: str) -> str:
        """Start a program without waiting for it; returns its address."""
        port = free_port()
        address, argv = f"127.0.0.1:{port}", [sys.executable, "-m", module]
        given = {"PATH": os.environ["PATH"], "PORT": str(port), **env}
        with (self.folder / f"{port}.err").open("wb") as log:
            self.running[address] = subprocess.Popen(argv, env=given, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=log)
        return address

    def wait(self, address: str) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                ask(f"http://{address}/health")
                return address
            except OSError:
                assert self.running[address].poll() is None, self.said(address)
                time.sleep(0.02)
        raise AssertionError(f"{address} never answered")

    def said(self, address: str) -> str:
        """What a program wrote on standard error."""
        return (self.folder / f"{address.rpartition(':')[2]}.err").read_text()

    def model(self, name: str, **env: str) -> str:
        return self.start("myelin.serve", MODEL_NAME=name, AXON_NAME="my-axon", **env)

    def models(self, *names: str) -> list[str]:
        """Several at once, which is quicker."""
        launched = [self.launch("myelin.serve", MODEL_NAME=name, AXON_NAME="my-axon", WHO=name) for name in names]
        return [self.wait(address) for address in launched]

    def proxy(self, config: dict[str, Any]) -> str:
        self.write(config)
        return self.start("myelin.proxy", MYELIN_CONFIG=str(self.folder / "config.json"))

    def write(self, config: dict[str, Any]) -> None:
        (self.folder / "config.new").write_text(json.dumps(config))
        os.replace(self.folder / "config.new", self.folder / "config.json")

    def wait_for(self, url: str, config: dict[str, Any]) -> None:
        """Until the proxy works by this configuration, and by no earlier one."""
        digest = f"sha256:{hashlib.sha256(json.dumps(config).encode()).hexdigest()}"
        until(lambda: ask(f"{url}/health")[1]["config"] == digest)

    def end(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(10)


def until(holds: Any, seconds: float = 10) -> None:
    """Look again and again until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
