"""The registries that contracts are checked on: the one in memory, and Debian's docker-registry behind all kinds of doors."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.oci.access import Access
from controller.adapters.oci.registry import Registry
from policies.terms.secret import Secret
from tests.contracts.certificates import Authority
from tests.contracts.registry_server import (
    PASSWORD,
    USER,
    Gateway,
    RegistryServer,
    registry_server,
    why_no_registry,
    with_passwords,
)
from tests.contracts.registry_tokens import tls, token_server
from tests.fakes.registry import FakeRegistry, Host

KINDS = ("fake", "fake-referrers", "fake-passwords", "real", "real-passwords", "real-tokens", "real-private-ca")


class Fake:
    """The registry in memory."""

    def __init__(self, *, needs: bool = False, lists_referrers: bool = False) -> None:
        self.host = Host(needs=(USER, PASSWORD) if needs else None, lists_referrers=lists_referrers)
        self.secret = (USER, PASSWORD) if needs else ("", "")
        self.number = 0

    def access(self, path: str) -> Access:
        user, password = self.secret
        return Access(repository=f"{self.host.name}/{path}", username=user, password=Secret(password), origin="Secret a/b")

    def path(self) -> str:
        """A repository that nobody used yet."""
        self.number += 1
        return f"team-a/digits{self.number}"

    def open(self, access: Access) -> Any:
        return FakeRegistry(self.host, access)

    def counted(self, path: str) -> tuple[Any, Callable[[], int], Callable[[], int]]:
        """A repository, how many requests were answered there or on its host, and how many bytes of blobs were sent."""
        return self.open(self.access(path)), lambda: self.host.requests, lambda: self.host.received

    def silent(self) -> Any:
        return FakeRegistry(Host(is_silent=True), self.access("x"))

    def tamper(self, path: str, digest: str, change: Callable[[bytes], bytes] = lambda data: b"x" + data[1:]) -> None:
        """Change a blob's or manifest's bytes behind the registry's back."""
        held = self.host.repositories[path]
        store = held.blobs if digest in held.blobs else held.manifests
        store[digest] = change(store[digest])

    def forget(self, path: str, digest: str) -> None:
        """Remove a blob or manifest, as a clean-up would."""
        self.host.repositories[path].blobs.pop(digest, None)
        self.host.repositories[path].manifests.pop(digest, None)

    def close(self) -> None:
        pass


class Real(Fake):
    """docker-registry. All tests of one kind share a process; each has its own repositories."""

    def __init__(self, server: RegistryServer, *, needs: bool = False, authority: Authority | None = None) -> None:
        super().__init__(needs=needs)
        self.server, self.authority = server, authority
        self.opened: list[Registry] = []
        self.between: Gateway | None = None

    def access(self, path: str) -> Access:
        made = replace(super().access(path), repository=f"{self.server.address}/{path}")
        return replace(made, ca=self.authority.pem) if self.authority else replace(made, unsafe_plain_http=True)

    def open(self, access: Access) -> Any:
        registry = Registry(access, sleep=lambda _: None)
        self.opened.append(registry)
        return registry

    def counted(self, path: str) -> tuple[Any, Callable[[], int], Callable[[], int]]:
        if self.between is None:
            trusted = ssl.create_default_context(cadata=self.authority.pem) if self.authority else None
            self.between = Gateway(self.server.address, trusted=trusted)
        between, access = self.between, self.access(path)
        # Each client with a password or token begins with a question that is not answered.
        return (
            self.open(replace(access, repository=f"{between.address}/{path}", ca="", unsafe_plain_http=True)),
            lambda: len([text for text in between.asked if not text.endswith(" 401")]),
            lambda: between.received,
        )

    def close(self) -> None:
        for registry in self.opened:
            registry.close()
        if self.between:
            self.between.close()

    def silent(self) -> Any:
        # Nothing listens at port 1.
        return self.open(replace(self.access("x"), repository="127.0.0.1:1/x"))

    def tamper(self, path: str, digest: str, change: Callable[[bytes], bytes] = lambda data: b"x" + data[1:]) -> None:
        place = self.server.blob(digest)
        place.write_bytes(change(place.read_bytes()))

    def forget(self, path: str, digest: str) -> None:
        self.server.forget(path, digest)


@contextmanager
def opened_place(kind: str, folder: Path) -> Iterator[Fake]:
    """A registry of one of the `KINDS`, as long as the block lasts."""
    if kind.startswith("fake"):
        yield Fake(needs=kind == "fake-passwords", lists_referrers=kind == "fake-referrers")
        return
    if why_no_registry():
        pytest.skip(why_no_registry())
    settings, authority = None, None
    with ExitStack() as closing:
        if kind == "real-passwords":
            settings = with_passwords(folder)
        elif kind == "real-tokens":
            settings = closing.enter_context(token_server(Authority(folder))).settings()
        elif kind == "real-private-ca":
            authority = Authority(folder)
            settings = tls(authority, folder)
        server = closing.enter_context(registry_server(folder, settings))
        real = Real(server, needs=kind == "real-passwords", authority=authority)
        closing.callback(real.close)
        yield real
