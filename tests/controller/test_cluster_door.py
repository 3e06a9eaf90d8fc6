"""The door to the cluster over real HTTP: what is asked and how, what becomes of each answer, and what of none."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from controller.adapters import cluster as door
from controller.adapters.cluster import (
    AXON,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    JOB,
    LEASE,
    POD,
    PROJECT,
    RELEASE,
    SECRET,
    SERVICE,
    VERSION,
    Cluster,
    Kind,
)
from policies.errors import ConflictError, ControllerError, RefusedError, SilentError
from tests.fakes.cluster import FakeCluster

TOKEN = "a-token-that-nobody-may-see"
KINDS = (JOB, POD, DEPLOYMENT, SERVICE, CONFIG_MAP, SECRET, EVENT, LEASE, PROJECT, AXON, RELEASE, VERSION)
PATHS = {(f"apis/{kind.api}" if "/" in kind.api else f"api/{kind.api}", kind.plural): kind for kind in KINDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """In lower case."""
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said to it."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    """How many bytes of the body are sent before the line goes dead; None: all."""


def said(status: int, message: str = "", **more: Any) -> Answer:
    """An answer as an API server words it."""
    value = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status, **more}
    return Answer(status=status, body=json.dumps(value).encode())


class Server:
    """An API server on loopback: it says what it was told to say, else what its objects say."""

    def __init__(self) -> None:
        self.objects = FakeCluster()
        self.asked: list[Asked] = []
        self.answers: list[Answer | Callable[[], Answer]] = []
        """Used up one by one."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = urlsplit(self.path)
                asked = Asked(
                    method=self.command,
                    path=parts.path,
                    query=dict(parse_qsl(parts.query)),
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=json.loads(data) if data else None,
                )
                server.asked.append(asked)
                given = server.answers.pop(0) if server.answers else server.look(asked)
                answer = given if isinstance(given, Answer) else given()
                if answer.status == 0:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body[: answer.sent])
                self.close_connection = answer.sent is not None

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is what some tests are about."""

        self._http = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def look(self, asked: Asked) -> Answer:
        """What the objects say."""
        try:
            found = self._found(asked)
        except ConflictError as error:
            return said(409, error.message)
        except RefusedError as error:
            return said(422, error.message)
        if isinstance(found, str):
            return Answer(body=found.encode())
        return Answer(body=json.dumps(found).encode()) if found is not None else said(404, "not found")

    def _found(self, asked: Asked) -> Any:
        parts = asked.path.strip("/").split("/")
        count = 2 if parts[0] == "api" else 3
        root, rest = "/".join(parts[:count]), [unquote(part) for part in parts[count:]]
        namespace, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" else ("", rest)
        kind = PATHS[root, rest[0]]
        name, part = (*rest[1:], "", "")[:2]
        match asked.method, part:
            case "GET", "log":
                lines, previous = int(asked.query["tailLines"]), asked.query.get("previous") == "true"
                return self.objects.logs(namespace, name, last_lines=lines, previous=previous)
            case "GET", _ if name:
                return self.objects.get(kind, namespace, name)
            case "GET", _:
                chosen = asked.query.get("labelSelector", ""), asked.query.get("fieldSelector", "")
                return {"metadata": {}, "items": self.objects.list(kind, namespace, chosen[0], fields=chosen[1])}
            case "PATCH", "status":
                return self.objects.apply_status(kind, namespace, name, asked.body["status"])
            case "PATCH", _ if "apply" in asked.headers["content-type"]:
                return self.objects.apply(kind, asked.body)
            case "PATCH", _:
                return self.objects.merge(kind, namespace, name, asked.body)
            case "POST", _:
                return self.objects.create(kind, asked.body)
            case "PUT", _ if self.objects.get(kind, namespace, name) is not None:
                return self.objects.replace(kind, asked.body)
            case "DELETE", _ if self.objects.get(kind, namespace, name) is not None:
                self.objects.delete(kind, namespace, name)
                return {}
        return None


def kubeconfig(folder: Path, url: str) -> Path:
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(json.dumps(value))
    return folder / "kubeconfig"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def cluster(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Cluster(kubeconfig(tmp_path, server.url))
    yield made
    made._http.close()


MANIFEST = {"metadata": {"name": "digits", "namespace": "team-a"}, "spec": {"tasks": []}}
JSON = "application/json"
PROJECTS, ONE = (
    "/apis/myelin.io/v1alpha1/namespaces/team-a/projects",
    "/apis/myelin.io/v1alpha1/namespaces/team-a/projects/digits",
)
Call = Callable[[Cluster], Any]
CALLS: dict[str, tuple[Call, str, str, dict[str, str], str, Any]] = {
    "get": (lambda c: c.get(PROJECT, "team-a", "digits"), "GET", ONE, {}, "", None),
    "get of the core": (lambda c: c.get(SECRET, "team-a", "s"), "GET", "/api/v1/namespaces/team-a/secrets/s", {}, "", None),
    "list": (lambda c: c.list(PROJECT, "team-a"), "GET", PROJECTS, {"limit": "500"}, "", None),
    "list of all namespaces": (
        lambda c: c.list(PROJECT, ""),
        "GET",
        "/apis/myelin.io/v1alpha1/projects",
        {"limit": "500"},
        "",
        None,
    ),
    "list by label and field": (
        lambda c: c.list(EVENT, "team-a", "a in (b,c),d", fields="involvedObject.name=j"),
        "GET",
        "/api/v1/namespaces/team-a/events",
        {"limit": "500", "labelSelector": "a in (b,c),d", "fieldSelector": "involvedObject.name=j"},
        "",
        None,
    ),
    "apply": (
        lambda c: c.apply(PROJECT, MANIFEST),
        "PATCH",
        ONE,
        {"fieldManager": "myelin", "force": "true", "fieldValidation": "Strict"},
        "application/apply-patch+yaml",
        {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", **MANIFEST},
    ),
    "apply of a status": (
        lambda c: c.apply_status(PROJECT, "team-a", "digits", {"reason": "ünïcode"}),
        "PATCH",
        f"{ONE}/status",
        {"fieldManager": "myelin", "force": "true"},
        "application/apply-patch+yaml",
        {
            "apiVersion": "myelin.io/v1alpha1",
            "kind": "Project",
            "metadata": MANIFEST["metadata"],
            "status": {"reason": "ünïcode"},
        },
    ),
    "merge": (
        lambda c: c.merge(PROJECT, "team-a", "digits", {"metadata": {"labels": {"a": None}}}),
        "PATCH",
        ONE,
        {"fieldManager": "myelin"},
        "application/merge-patch+json",
        {"metadata": {"labels": {"a": None}}},
    ),
    "create": (
        lambda c: c.create(PROJECT, MANIFEST),
        "POST",
        PROJECTS,
        {"fieldManager": "myelin"},
        JSON,
        {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", **MANIFEST},
    ),
    "replace": (
        lambda c: c.replace(PROJECT, MANIFEST),
        "PUT",
        ONE,
        {"fieldManager": "myelin"},
        JSON,
        {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", **MANIFEST},
    ),
    "delete": (
        lambda c: c.delete(PROJECT, "team-a", "digits"),
        "DELETE",
        ONE,
        {},
        JSON,
        {"propagationPolicy": "Background"},
    ),
    "delete at once": (
        lambda c: c.delete(PROJECT, "team-a", "digits", grace_seconds=0),
        "DELETE",
        ONE,
        {},
        JSON,
        {"propagationPolicy": "Background", "gracePeriodSeconds": 0},
    ),
    "logs": (
        lambda c: c.logs("team-a", "p-1", last_lines=7),
        "GET",
        "/api/v1/namespaces/team-a/pods/p-1/log",
        {"tailLines": "7"},
        "",
        None,
    ),
    "logs of an earlier container": (
        lambda c: c.logs("team-a", "p-1", last_lines=7, previous=True),
        "GET",
        "/api/v1/namespaces/team-a/pods/p-1/log",
        {"tailLines": "7", "previous": "true"},
        "",
        None,
    ),
}


@pytest.mark.parametrize(("call", "method", "path", "query", "content", "body"), CALLS.values(), ids=list(CALLS))
def test_each_call_asks_what_the_api_says(
    cluster: Cluster, server: Server, call: Call, method: str, path: str, query: dict[str, str], content: str, body: Any
) -> None:
    server.answers.append(Answer())
    call(cluster)
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.query, asked.body) == (method, path, query, body)
    assert asked.headers.get("content-type", "") == content
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["accept"].startswith(JSON)
    assert cluster.calls == 1


def test_a_name_never_leaves_its_place_in_the_path(cluster: Cluster, server: Server) -> None:
    server.answers += [said(404)] * 2
    cluster.get(SECRET, "team-a", "a/b?c#d")
    cluster.get(SECRET, "team-a/secrets/x", "y")
    assert [asked.path for asked in server.asked] == [
        "/api/v1/namespaces/team-a/secrets/a%2Fb%3Fc%23d",
        "/api/v1/namespaces/team-a%2Fsecrets%2Fx/secrets/y",
    ]
    assert [asked.query for asked in server.asked] == [{}, {}]


WORDS = "jobs.batch is\nforbidden: User cannot list"
WHAT = "cluster: GET apis/myelin.io/v1alpha1/namespaces/team-a/projects: "
REFUSALS: dict[str, tuple[Answer, type[ControllerError], str, str]] = {
    "401, who are you": (said(401, "Unauthorized"), RefusedError, "Forbidden", "Unauthorized"),
    "403, you may not": (said(403, WORDS), RefusedError, "Forbidden", "jobs.batch is forbidden: User cannot list"),
    "404, there is no such kind": (
        said(404, "the server could not find it"),
        RefusedError,
        "NotFound",
        "the server could not find it",
    ),
    "409, somebody wrote since": (
        said(409, "the object has been modified"),
        ConflictError,
        "Conflict",
        "the object has been modified",
    ),
    "410, the rest of a list is too old": (
        said(410, "the provided continue parameter is too old"),
        SilentError,
        "Silent",
        "the provided",
    ),
    "422, this cannot be": (said(422, "spec.x: Invalid value"), RefusedError, "Invalid", "spec.x: Invalid value"),
    "400, this cannot be read": (said(400, "unknown field"), RefusedError, "Invalid", "unknown field"),
    "413, too much": (said(413, "Request entity too large"), RefusedError, "Invalid", "Request entity too large"),
    "429, not so fast": (said(429, "too many requests"), SilentError, "Silent", "too many requests"),
    "500, a fault": (said(500, "etcdserver: leader changed"), SilentError, "Silent", "etcdserver: leader changed"),
    "503, not now": (Answer(status=503, body=b"upstream\nconnect error"), SilentError, "Silent", "upstream connect error"),
    "504, too late": (said(504, "Timeout"), SilentError, "Silent", "Timeout"),
    "a refusal without words": (Answer(status=403, body=b""), RefusedError, "Forbidden", "403"),
    "a refusal that is no object": (Answer(status=403, body=b'["no"]'), RefusedError, "Forbidden", '["no"]'),
    "a refusal that is no text": (Answer(status=500, body=b"\xff\xfe"), SilentError, "Silent", "��"),
    "an address elsewhere, where our token must not go": (
        Answer(status=307, headers={"Location": "http://127.0.0.1:1/"}, body=b""),
        RefusedError,
        "Invalid",
        "307",
    ),
}


@pytest.mark.parametrize(("answer", "kind", "reason", "words"), REFUSALS.values(), ids=list(REFUSALS))
def test_each_refusal_is_translated_once(
    cluster: Cluster, server: Server, answer: Answer, kind: type[ControllerError], reason: str, words: str
) -> None:
    server.answers.append(answer)
    with pytest.raises(ControllerError) as caught:
        cluster.list(PROJECT, "team-a")
    assert isinstance(caught.value, kind)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(WHAT + words)
    assert TOKEN not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert len(server.asked) == 1


def test_a_long_refusal_is_cut(cluster: Cluster, server: Server) -> None:
    server.answers.append(said(422, "x" * 5000))
    with pytest.raises(RefusedError) as caught:
        cluster.list(PROJECT, "team-a")
    assert len(caught.value.message) < 600


MISSING: dict[str, tuple[Call, Any]] = {
    "get": (lambda c: c.get(PROJECT, "team-a", "digits"), None),
    "a status": (lambda c: c.apply_status(PROJECT, "team-a", "digits", {}), None),
    "merge": (lambda c: c.merge(PROJECT, "team-a", "digits", {}), None),
    "delete": (lambda c: c.delete(PROJECT, "team-a", "digits"), None),
    "logs": (lambda c: c.logs("team-a", "p", last_lines=1), ""),
}


@pytest.mark.parametrize(("call", "expected"), MISSING.values(), ids=list(MISSING))
def test_what_is_gone_is_no_error_where_it_may_be_gone(cluster: Cluster, server: Server, call: Call, expected: Any) -> None:
    server.answers.append(said(404, "not found"))
    assert call(cluster) == expected


@pytest.mark.parametrize("call", [CALLS[name][0] for name in ("apply", "create", "replace")])
def test_what_is_written_must_have_a_place(cluster: Cluster, server: Server, call: Call) -> None:
    server.answers.append(said(404, 'namespaces "team-a" not found'))
    with pytest.raises(RefusedError) as caught:
        call(cluster)
    assert caught.value.reason == "NotFound"


BROKEN: dict[str, Answer] = {
    "no answer at all": Answer(status=0),
    "half an answer": Answer(body=b'{"items": []}', sent=5),
    "an answer that is no JSON": Answer(body=b"<html>sign in</html>"),
    "an empty answer": Answer(body=b""),
    "an answer that is no object": Answer(body=b"[1]"),
    "an answer that is a number": Answer(body=b"7"),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=list(BROKEN))
def test_an_answer_that_is_none_is_silence(cluster: Cluster, server: Server, answer: Answer) -> None:
    server.answers.append(answer)
    with pytest.raises(SilentError) as caught:
        cluster.list(PROJECT, "team-a")
    assert caught.value.message.startswith("cluster: ")
    assert TOKEN not in f"{caught.value!r} {caught.value.__cause__!r}"
    # The connection that broke is not used again.
    assert cluster.list(PROJECT, "team-a") == []


@pytest.mark.parametrize("name", ["apply", "apply of a status", "merge", "create", "replace", "delete"])
def test_a_write_whose_answer_is_lost_is_not_sent_twice(cluster: Cluster, server: Server, name: str) -> None:
    server.answers.append(Answer(status=0))
    with pytest.raises(SilentError):
        CALLS[name][0](cluster)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_silence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        cluster = Cluster(kubeconfig(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(SilentError):
            cluster.get(PROJECT, "team-a", "digits")


def test_a_server_that_never_answers_is_waited_for_so_long_and_no_longer(
    cluster: Cluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "READ_SECONDS", 0.2)
    over = threading.Event()

    def stuck() -> Answer:
        over.wait(30)
        return Answer()

    server.answers.append(stuck)
    began_at = time.monotonic()
    with pytest.raises(SilentError):
        cluster.get(PROJECT, "team-a", "digits")
    assert time.monotonic() - began_at < 10
    over.set()


def test_no_question_lasts_for_ever() -> None:
    assert 0 < door.CONNECT_SECONDS <= 5
    assert 0 < door.READ_SECONDS <= 30


def test_a_long_list_is_read_page_by_page(cluster: Cluster, server: Server) -> None:
    pages = [
        {"metadata": {"continue": "one &=?"}, "items": [{"n": 1}, {"n": 2}]},
        {"metadata": {"continue": "two"}, "items": []},
        {"metadata": {"resourceVersion": "7", "continue": ""}, "items": [{"n": 3}]},
    ]
    server.answers += [Answer(body=json.dumps(page).encode()) for page in pages]
    assert cluster.list(PROJECT, "team-a", "a=b") == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert [asked.query.get("continue", "") for asked in server.asked] == ["", "one &=?", "two"]
    assert {(asked.query["limit"], asked.query["labelSelector"]) for asked in server.asked} == {("500", "a=b")}


def test_a_list_that_breaks_off_is_no_list(cluster: Cluster, server: Server) -> None:
    server.answers += [Answer(body=b'{"metadata": {"continue": "c"}, "items": [{"n": 1}]}'), said(500, "gone")]
    with pytest.raises(SilentError):
        cluster.list(PROJECT, "team-a")


@pytest.mark.parametrize("body", [b"{}", b'{"items": null}', b'{"items": [], "metadata": {}}'])
def test_an_empty_list_is_empty_however_it_is_written(cluster: Cluster, server: Server, body: bytes) -> None:
    server.answers.append(Answer(body=body))
    assert cluster.list(PROJECT, "team-a") == []


LOGS: dict[str, tuple[Answer, str]] = {
    "what was printed": (Answer(body="ein Wort\nünd".encode()), "ein Wort\nünd"),
    "what is no text": (Answer(body=b"a\xffb"), "a�b"),
    "a container that has not started": (said(400, 'container "main" in pod "p" is waiting to start'), ""),
    "a pod that is gone": (said(404, 'pods "p" not found'), ""),
}


@pytest.mark.parametrize(("answer", "expected"), LOGS.values(), ids=list(LOGS))
def test_logs_are_text_and_none_where_there_are_none(cluster: Cluster, server: Server, answer: Answer, expected: str) -> None:
    server.answers.append(answer)
    assert cluster.logs("team-a", "p", last_lines=9) == expected


def test_logs_that_cannot_be_had_now_are_not_taken_for_none(cluster: Cluster, server: Server) -> None:
    server.answers.append(said(500, "no"))
    with pytest.raises(SilentError):
        cluster.logs("team-a", "p", last_lines=9)


def test_threads_share_a_door(cluster: Cluster, server: Server) -> None:
    for number in range(6):
        server.objects.create(PROJECT, {"metadata": {"name": f"p-{number}", "namespace": "team-a"}, "spec": {}})
    found: list[str] = []

    def ask(number: int) -> None:
        for _ in range(5):
            answer = cluster.get(PROJECT, "team-a", f"p-{number}")
            assert answer is not None
            found.append(str(answer["metadata"]["name"]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == sorted(f"p-{number}" for number in range(6) for _ in range(5))
    assert cluster.calls == 30


CONFIGS: dict[str, str | None] = {
    "no file": None,
    "an empty file": "",
    "no cluster": "apiVersion: v1\nkind: Config\ncurrent-context: x\n",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=list(CONFIGS))
def test_a_configuration_that_is_none_is_refused_in_words(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(RefusedError) as caught:
        Cluster(tmp_path / "kubeconfig")
    assert caught.value.reason == "NoCluster"
    assert caught.value.message.startswith(
        f"cluster: expected a service account or kubeconfig in {tmp_path / 'kubeconfig'}, got "
    )


def test_outside_of_a_pod_there_is_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(RefusedError) as caught:
        Cluster()
    assert caught.value.message.startswith("cluster: expected a service account or kubeconfig in this pod, got ")


# The same of the fake, and of the door with the fake behind it.


@pytest.fixture(params=["fake", "door"])
def api(request: pytest.FixtureRequest) -> Any:
    if request.param == "fake":
        return FakeCluster()
    return request.getfixturevalue("cluster")


def here(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team-a", **more.pop("metadata", {})}, **more}


def test_what_is_applied_is_there_with_what_the_server_notes(api: Any) -> None:
    made = api.apply(AXON, here("digits", spec={"tasks": [1]}))
    assert (made["apiVersion"], made["kind"], made["spec"]) == ("myelin.io/v1alpha1", "Axon", {"tasks": [1]})
    assert made["metadata"]["generation"] == 1
    assert {"uid", "resourceVersion", "creationTimestamp"} <= made["metadata"].keys()
    assert api.get(AXON, "team-a", "digits") == made
    assert api.get(AXON, "team-b", "digits") is None
    assert api.apply(AXON, here("digits", spec={"tasks": [1]})) == made
    again = api.apply(AXON, here("digits", spec={"tasks": [2]}))
    assert (again["metadata"]["generation"], again["metadata"]["uid"]) == (2, made["metadata"]["uid"])


def test_an_apply_takes_back_what_it_does_not_say_any_more_and_leaves_what_others_said(api: Any) -> None:
    api.apply(CONFIG_MAP, here("c", metadata={"labels": {"a": "1", "b": "2"}}, data={"x": "1"}))
    api.merge(CONFIG_MAP, "team-a", "c", {"metadata": {"labels": {"theirs": "3"}}, "data": {"y": "2"}})
    after = api.apply(CONFIG_MAP, here("c", metadata={"labels": {"a": "1"}}, data={"x": "2"}))
    assert after["metadata"]["labels"] == {"a": "1", "theirs": "3"}
    assert after["data"] == {"x": "2", "y": "2"}


def test_a_status_is_written_by_its_own_call_alone(api: Any) -> None:
    api.apply(AXON, here("digits", spec={}, status={"reason": "x"}))
    assert "status" not in api.get(AXON, "team-a", "digits")
    made = api.apply_status(AXON, "team-a", "digits", {"reason": "Running", "message": "m"})
    assert (made["status"], made["metadata"]["generation"]) == ({"reason": "Running", "message": "m"}, 1)
    api.apply_status(AXON, "team-a", "digits", {"reason": "AsDesired"})
    after = api.apply(AXON, here("digits", spec={"tasks": []}))
    assert (after["status"], after["metadata"]["generation"]) == ({"reason": "AsDesired"}, 2)
    assert api.apply_status(AXON, "team-a", "nobody", {}) is None


def test_who_makes_what_is_there_and_who_replaces_what_was_written_since_are_told(api: Any) -> None:
    made = api.create(LEASE, here("l", spec={"holderIdentity": "a"}))
    with pytest.raises(ConflictError):
        api.create(LEASE, here("l", spec={"holderIdentity": "b"}))
    api.replace(LEASE, {**made, "spec": {"holderIdentity": "c"}})
    with pytest.raises(ConflictError):
        api.replace(LEASE, {**made, "spec": {"holderIdentity": "b"}})
    assert api.get(LEASE, "team-a", "l")["spec"] == {"holderIdentity": "c"}
    with pytest.raises(RefusedError):
        api.replace(LEASE, here("l", spec={}))
    with pytest.raises(RefusedError):
        api.replace(LEASE, here("other", metadata={"resourceVersion": "1"}, spec={}))


def test_a_merge_changes_some_fields_and_takes_away_others(api: Any) -> None:
    api.create(POD, here("p", metadata={"labels": {"a": "1", "b": "2"}}, spec={"x": 1}))
    after = api.merge(POD, "team-a", "p", {"metadata": {"labels": {"a": None, "c": "3"}}})
    assert after["metadata"]["labels"] == {"b": "2", "c": "3"}
    assert after["spec"] == {"x": 1}
    assert api.merge(POD, "team-a", "nobody", {}) is None


def test_objects_are_listed_by_namespace_label_and_field(api: Any) -> None:
    for name, labels in (("a", {"k": "job", "n": "1"}), ("b", {"k": "proxy", "n": "1"}), ("c", {"k": "job"}), ("d", {})):
        api.create(EVENT, here(name, metadata={"labels": labels}, involvedObject={"name": name}))
    assert [item["metadata"]["name"] for item in api.list(EVENT, "team-a")] == ["a", "b", "c", "d"]
    assert [item["metadata"]["name"] for item in api.list(EVENT, "", "k in (job,proxy),n")] == ["a", "b"]
    assert [item["metadata"]["name"] for item in api.list(EVENT, "team-a", "k=job")] == ["a", "c"]
    assert [item["metadata"]["name"] for item in api.list(EVENT, "team-a", fields="involvedObject.name=b")] == ["b"]
    assert api.list(EVENT, "team-b") == []


def test_what_is_deleted_is_gone_and_who_has_a_finalizer_goes_later(api: Any) -> None:
    api.create(PROJECT, here("p", spec={}))
    api.create(PROJECT, here("kept", metadata={"finalizers": ["myelin.io/finalizer"]}, spec={}))
    for name in ("p", "kept", "nobody"):
        api.delete(PROJECT, "team-a", name)
    assert api.get(PROJECT, "team-a", "p") is None
    assert "deletionTimestamp" in api.get(PROJECT, "team-a", "kept")["metadata"]


def test_what_is_given_back_is_a_copy(api: Any) -> None:
    api.create(PROJECT, here("p", spec={"branch": "main"}))["spec"]["branch"] = "x"
    api.get(PROJECT, "team-a", "p")["spec"]["branch"] = "y"
    api.list(PROJECT, "team-a")[0]["spec"]["branch"] = "z"
    assert api.get(PROJECT, "team-a", "p")["spec"] == {"branch": "main"}


def test_every_kind_has_an_address_of_its_own() -> None:
    kinds: tuple[Kind, ...] = KINDS
    assert len(PATHS) == len(kinds)
