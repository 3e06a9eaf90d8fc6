"""Webhooks over real HTTP: who is heard, what wakes, and what a flood, or a caller who says nothing, can do."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller import inbox
from controller.adapters import gauges
from controller.adapters.spool import Spool
from controller.inbox import front
from controller.inbox.hooks import LARGEST_BODY_BYTES, MOST_DELIVERIES, Calm
from controller.inbox.strangers import ALL_BURST, EACH_BURST, EACH_PER_SECOND, MOST_ADDRESSES, Strangers
from policies.admin import ANY_PROJECT
from policies.errors import SilentError
from policies.hooks import KINDS, hook_text
from policies.terms.axon import Axon
from policies.terms.desired import DesiredAxon, DesiredState
from policies.terms.observed import Observed, Recorded
from policies.terms.project import Metadata, Project
from policies.terms.revision import Revision
from policies.terms.secret import Secret
from tests.fakes.hooks import EVENT, NOTES, SOURCE, proof, push
from tests.forge.gitea import Gitea

SECRETS = {name: Secret(hook_text(name.encode() * 8)) for name in ("red", "blue")}
LOOK = (
    DesiredState(
        revision=Revision(branch="main", commit="c" * 40, at=datetime(2026, 1, 1, tzinfo=UTC)),
        tip="c" * 40,
        project=Project(metadata=Metadata(name="red")),
    ),
    Observed(recorded=Recorded()),
)


class Clock:
    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251  what is signed must be near the inbox's own clock


def eventually(held: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not held():
        assert time.monotonic() < until, "waited 10 s in vain"
        time.sleep(0.005)


class Served:
    """A desk of two projects, and what they heard."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.look: Any = LOOK
        self.heard: list[tuple[str, str]] = []
        self.desk = inbox.Desk("127.0.0.1", 0, is_ready=lambda: True, is_alive=lambda: True, **more)
        for name, secret in SECRETS.items():
            self.desk.admit(name, self.receivers(name, folder), token=f"t-{name}", programs=f"p-{name}", hook=secret)
        self.port = self.desk.start()

    def receivers(self, name: str, folder: Path) -> inbox.Receivers:
        return inbox.Receivers(
            spool=Spool(folder / name),
            clock=Clock(),
            wake=lambda: self.heard.append((name, "woken")),
            stirred=lambda what: self.heard.append((name, what)),
            report=lambda *_: None,
            push=lambda *_: None,
            newest=lambda: self.look,
            place=lambda *_: "",
            namespace="default",
        )

    def ask(self, path: str, body: bytes | None, headers: dict[str, str], method: str = "POST") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            value = json.loads(answer.read())
            return answer.status, value.get("message", value)
        finally:
            connection.close()

    def hook(
        self, kind: str, value: Any, *, event: str = "", to: str = "red", by: str = "red", body: bytes | None = None, **more: str
    ) -> tuple[int, Any]:
        body = json.dumps(value).encode() if body is None else body
        headers = proof(kind, SECRETS[by], body, at=Clock().now()) | {"content-type": "application/json"}
        headers |= {EVENT[kind.split()[0]]: event} if event else {}
        headers |= {name.replace("_", "-"): item for name, item in more.items()}
        return self.ask(f"/hooks/{to}/{kind.split()[0]}", body, headers)

    def raw(self, sent: bytes) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        made.sendall(sent)
        return made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.desk.close()


def counted(name: str, **labels: str) -> float:
    samples = gauges.parse_exposition(gauges.render().decode())
    return sum(value for found, value in samples if found["__name__"] == name and labels.items() <= found.items())


@pytest.mark.parametrize(
    ("kind", "event", "value"),
    [
        ("github", "push", push(SOURCE)),
        ("gitlab", "Push Hook", push(SOURCE, object_kind="push")),
        ("gitlab signed", "Push Hook", push(SOURCE, object_kind="push")),
        ("gitea", "push", push(SOURCE)),
        ("gitea by another name", "push", push(SOURCE)),
        ("bitbucket", "repo:push", {"push": {"changes": [{"new": {"type": "branch", "name": "main"}}]}}),
        ("generic", "", {"branch": "main"}),
    ],
)
def test_a_push_stirs_and_wakes_its_project_and_no_other(kind: str, event: str, value: Any, served: Served) -> None:
    served.look = None
    assert served.hook(kind, value, event=event) == (200, {"woke": True, "why": "push to main"})
    eventually(lambda: served.heard == [("red", "push"), ("red", "woken")])


def test_forgejo_is_an_address_too(served: Served) -> None:
    body = json.dumps(push(SOURCE)).encode()
    headers = proof("gitea by another name", SECRETS["red"], body, at=Clock().now()) | {"x-forgejo-event": "push"}
    served.look = None
    assert served.ask("/hooks/red/forgejo", body, headers)[0] == 200


def test_an_empty_generic_hook_wakes(served: Served) -> None:
    assert served.hook("generic", None, body=b"") == (200, {"woke": True, "why": "push to main"})


def test_a_review_is_told_as_one(served: Served) -> None:
    assert served.hook("github", {"pull_request": {"base": {"ref": "main"}}}, event="pull_request")[1]["woke"] is True
    eventually(lambda: served.heard == [("red", "review"), ("red", "woken")])


@pytest.mark.parametrize(
    ("event", "value", "why"),
    [
        ("ping", {"zen": "x"}, "heard; pushes and reviews wake"),
        ("push", push(SOURCE, ref="refs/heads/dev"), "branch: expected main, got dev"),
        ("push", push(NOTES), "none of the changed paths is read by this project"),
        ("star", {}, "event star: expected a push, a pull request or a comment"),
    ],
)
def test_what_concerns_nobody_is_heard_and_wakes_nobody(event: str, value: Any, why: str, served: Served) -> None:
    assert served.hook("github", value, event=event) == (200, {"woke": False, "why": why})
    assert served.heard == []


def test_a_delivery_that_came_before_does_not_wake_again(served: Served) -> None:
    served.look = None
    assert served.hook("github", push(SOURCE), event="push", x_github_delivery="one")[1]["woke"] is True
    assert served.hook("github", push(SOURCE), event="push", x_github_delivery="one") == (
        200,
        {"woke": False, "why": "this delivery came before"},
    )
    assert served.hook("github", push(SOURCE), event="push", x_github_delivery="two")[1]["woke"] is True


def test_what_is_remembered_of_deliveries_is_bounded(served: Served) -> None:
    hooks = served.desk.hooks_of("red")
    assert hooks is not None
    for number in range(MOST_DELIVERIES + 1):
        assert "before" not in hooks.take("github", {"x-github-delivery": str(number)}, b"{}")["why"]
    assert "before" in hooks.take("github", {"x-github-delivery": "1"}, b"{}")["why"]
    assert "before" not in hooks.take("github", {"x-github-delivery": "0"}, b"{}")["why"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_proof_is_counted_and_learns_nothing(kind: str, served: Served) -> None:
    before = counted("myelin_wrong_hooks_total", kind=kind)
    wrong = served.hook(kind, {}, by="blue")
    assert wrong[0] == 401
    assert wrong == served.hook(kind, {}, to="green", by="blue") == served.ask(f"/hooks/red/{kind}", b"{}", {})
    assert wrong == served.hook(kind, {}, to="", by="blue")
    assert counted("myelin_wrong_hooks_total", kind=kind) == before + 4
    assert served.heard == []


def test_a_stale_generic_hook_is_refused(served: Served) -> None:
    assert served.ask("/hooks/red/generic", b"{}", proof("generic", SECRETS["red"], b"{}", at=LOOK[0].revision.at))[0] == 401


def test_a_large_body_is_checked_as_a_small_one(served: Served) -> None:
    served.look = None
    large = json.dumps(push(SOURCE, note="x" * 200_000)).encode()
    assert served.hook("github", None, body=large, event="push")[1]["woke"] is True
    assert served.hook("github", None, body=large, event="push", by="blue")[0] == 401


def test_a_body_over_a_mebibyte_is_refused_before_it_comes(served: Served) -> None:
    for length in (f"Content-Length: {LARGEST_BODY_BYTES + 1}", "Transfer-Encoding: chunked", "Content-Length: x", "X: y"):
        head = f"POST /hooks/red/github HTTP/1.1\r\nHost: x\r\n{length}\r\nX-Hub-Signature-256: sha256={'0' * 64}\r\n\r\n"
        with served.raw(head.encode()) as sender:
            assert sender.recv(13) == b"HTTP/1.1 413 "
    assert served.hook("generic", None, body=b" " * (LARGEST_BODY_BYTES - 2) + b"{}")[0] == 200


def test_an_address_that_is_none_is_not_found(served: Served) -> None:
    for path in ("/hooks/red/svn", "/hooks/red", "/hooks", "/hooks/red/github/more"):
        assert served.ask(path, b"{}", {})[0] == 404
    assert served.ask("/hooks/red/github", None, {}, method="GET")[0] == 404


def test_a_genuine_body_that_is_no_webhook_is_refused(served: Served) -> None:
    assert served.hook("github", None, body=b"[]", event="push") == (400, "expected a JSON object")
    assert served.hook("github", None, body=b"[" * 100_000, event="push")[0] == 400
    assert served.hook("github", push(SOURCE), event="push", Origin="https://elsewhere.example")[0] == 403


def test_without_a_secret_no_webhook_is_genuine(served: Served, tmp_path: Path) -> None:
    served.desk.admit("red", served.receivers("red", tmp_path), token="t-red", programs="p-red")
    headers = {"x-gitlab-token": ""}
    assert served.ask("/hooks/red/gitlab", b"{}", headers)[0] == 401
    assert served.hook("github", {}, event="push")[0] == 401


def test_while_a_controller_starts_a_hook_is_to_come_again(served: Served) -> None:
    served.desk.is_settled = lambda: False
    assert served.hook("github", {}, event="push", to="green")[0] == 503
    served.desk.dismiss("red")
    assert served.hook("github", {}, event="push")[0] == 503
    served.desk.is_settled = lambda: True
    assert served.hook("github", {}, event="push")[0] == 401


def test_a_flood_of_genuine_hooks_becomes_a_few_wakes(served: Served) -> None:
    served.look = None
    begun = time.monotonic()
    for number in range(100):
        assert served.hook("github", push(SOURCE), event="push", x_github_delivery=str(number))[1]["woke"] is True
    lasted = time.monotonic() - begun
    eventually(lambda: served.heard.count(("red", "woken")) >= 2)
    assert served.heard.count(("red", "woken")) <= 3 + lasted


def test_what_happens_while_it_is_calm_is_passed_on_at_its_end_and_nothing_is_lost() -> None:
    told: list[frozenset[str]] = []
    calm = Calm(told.append, rest_seconds=0.2)
    for what in ("push", "review", "push"):
        calm.tell(what)
    assert told == [frozenset({"push"})]
    eventually(lambda: len(told) == 2)
    assert told[1] == {"review", "push"}
    calm.tell("push")
    calm.close()
    calm.tell("push")
    assert len(told) == 2


def test_callers_who_say_nothing_hold_nobody_up(served: Served) -> None:
    before = counted("myelin_inbox_turned_away_total", why="too many")
    with ExitStack() as closing:
        for number in range(front.MOST_OPEN + 50):
            sent = b"" if number % 2 else b"POST /hooks/red/github HTTP/1.1\r\nX-Hub-"
            closing.enter_context(served.raw(sent))
        served.look = None
        begun = time.monotonic()
        assert served.hook("github", push(SOURCE), event="push")[1]["woke"] is True
        assert served.ask("/health", None, {}, method="GET") == (200, {"status": "OK"})
        assert time.monotonic() - begun < 5
        assert sum(thread.name == "inbox-worker" for thread in threading.enumerate()) <= front.MOST_WORKERS
    assert counted("myelin_inbox_turned_away_total", why="too many") >= before + 50


def test_a_slow_head_and_a_slow_body_are_closed(tmp_path: Path) -> None:
    served = Served(tmp_path, patience_seconds=0.3)
    head = b"POST /hooks/red/github HTTP/1.1\r\nContent-Length: 99\r\nX-Hub-Signature-256: sha256=" + b"0" * 64
    large = head.replace(b"99", b"99999")
    for sent in (head, head + b"\r\n\r\nhalf", large + b"\r\n\r\nhalf"):
        with served.raw(sent) as sender:
            assert sender.recv(1) == b""
    served.desk.close()


def test_who_sends_byte_by_byte_is_heard(served: Served) -> None:
    body = b"{}"
    (name, value), *_ = proof("github", SECRETS["red"], body, at=Clock().now()).items()
    sent = (
        f"POST /hooks/red/github HTTP/1.1\r\nContent-Length: 2\r\nx-github-event: ping\r\n{name}: {value}\r\n\r\n".encode() + body
    )
    with served.raw(b"") as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in sent:
            sender.sendall(bytes([byte]))
        assert sender.recv(13) == b"HTTP/1.1 200 "


def test_a_head_that_never_ends_is_refused(served: Served) -> None:
    with served.raw(b"GET / HTTP/1.1\r\nX: " + b"x" * front.LARGEST_HEAD_BYTES) as sender:
        assert sender.recv(13) == b"HTTP/1.1 431 "


def test_strangers_are_heard_for_a_while_and_senders_with_a_secret_always(served: Served) -> None:
    codes = [served.ask("/nothing", None, {}, method="GET")[0] for _ in range(int(EACH_BURST) + 60)]
    assert set(codes) == {404, 429}
    for _ in range(20):
        assert served.ask("/sensors/red/a/b", b"{}", {"Authorization": "Bearer t-red"})[0] in (202, 404)
        assert served.hook("github", {}, event="ping")[0] == 200
        assert served.hook("github", {}, event="ping", by="blue")[0] == 401
        assert served.ask("/health", None, {}, method="GET")[0] == 200


def test_a_stranger_gets_one_answer_a_connection_and_who_is_known_more(served: Served) -> None:
    stranger = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    with served.raw(stranger * 3) as sender:
        answers = sender.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 ") == 1
    known = b"POST /sensors/red/a/b HTTP/1.1\r\nAuthorization: Bearer t-red\r\nContent-Length: 2\r\n\r\n{}"
    with served.raw(known + known + stranger + known) as sender:
        answers = sender.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 ") == 3


def test_each_address_has_a_bucket_and_all_have_one() -> None:
    strangers = Strangers()
    assert sum(strangers.may("a", 1000.0) for _ in range(1000)) == EACH_BURST
    assert sum(strangers.may("a", 1001.0) for _ in range(1000)) == EACH_PER_SECOND
    late = 5000.0
    assert sum(strangers.may(str(number), late) for number in range(MOST_ADDRESSES + 1000)) == ALL_BURST
    assert sum(strangers.may("a", late + 100) for _ in range(1000)) == EACH_BURST


def test_a_desk_on_one_machine_keeps_its_hook_secret_and_tells_how_to_enter_it(tmp_path: Path) -> None:
    with pytest.raises(SilentError, match="start `myelin run`"):
        inbox.webhooks(tmp_path)
    told = []
    for _ in range(2):
        receivers = Served.receivers(_heard := _Heard(), "red", tmp_path)
        server, address = inbox.serve(tmp_path, receivers, port=None)
        try:
            found = inbox.webhooks(tmp_path)
            told.append(found["secret"])
            assert found["urls"]["github"] == f"{address.split('/programs')[0]}/hooks/{ANY_PROJECT}/github"
            for name in (ANY_PROJECT, "red"):
                connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
                body = b"{}"
                connection.request(
                    "POST", f"/hooks/{name}/github", body, proof("github", Secret(found["secret"]), body, at=Clock().now())
                )
                assert connection.getresponse().status == 200
                connection.close()
        finally:
            server.shutdown()
            server.server_close()
    assert told[0] == told[1] != ""
    assert os.stat(tmp_path / "address.json").st_mode & 0o077 == 0
    assert inbox.webhooks(tmp_path, base="https://hooks.example.com/")["urls"]["gitea"] == (
        "https://hooks.example.com/hooks/project/gitea"
    )


def test_what_a_real_gitea_sends(served: Served, gitea: Gitea) -> None:
    document = Axon.model_validate({"apiVersion": "myelin.io/v1alpha1", "kind": "Axon", "metadata": {"name": "a"}, "spec": {}})
    axon = DesiredAxon(name="a", file="a/axon.yaml", document=document, digest="", trees={"src": ""})
    served.look = (replace(LOOK[0], axons={"a": axon}), LOOK[1])
    repository = gitea.repository()
    told = {name: counted("myelin_hooks_total", kind="gitea", came_to=name) for name in ("woke", "passed over")}
    wrong = counted("myelin_wrong_hooks_total", kind="gitea")

    def came_to(name: str) -> int:
        return int(counted("myelin_hooks_total", kind="gitea", came_to=name) - told[name])

    url = f"http://127.0.0.1:{served.port}/hooks"
    repository.hook(f"{url}/red/gitea", SECRETS["red"].reveal())
    repository.hook(f"{url}/blue/forgejo", "a wrong secret", ("push",))
    repository.commit("main", {"README": "hello\n"}, by="owner")
    eventually(lambda: served.heard == [("red", "push"), ("red", "woken")] and came_to("woke") == 1)
    repository.commit("main", {"src/train.py": "print()\n"}, by="owner")
    eventually(lambda: came_to("woke") == 2)
    repository.commit("main", {"notes.txt": "nothing that is read\n"}, by="owner")
    eventually(lambda: came_to("passed over") == 1)
    repository.commit("elsewhere", {"src/train.py": "print(2)\n"}, by="owner")
    eventually(lambda: came_to("passed over") >= 2)
    assert came_to("woke") == 2
    eventually(lambda: counted("myelin_wrong_hooks_total", kind="gitea") - wrong >= 4)
    repository.approve(repository.make_pull("elsewhere"))
    eventually(lambda: came_to("woke") == 4 and ("red", "review") in served.heard)
    assert {name for name, _ in served.heard} == {"red"}


class _Heard:
    look: Any = LOOK
    heard: list[Any]

    def __init__(self) -> None:
        self.heard = []
