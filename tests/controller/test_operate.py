"""The controller of a cluster, without one: whose Projects are followed, which of two comes first, what ends when it should."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import keyring, project
from controller.adapters.cluster import AXON, PROJECT, SECRET
from controller.adapters.keys import SshKey
from controller.follower import note_place
from controller.inbox import Desk
from controller.operate import Fleet, OperatorSettings, settings_from
from controller.wiring import ClusterSurroundings
from policies.errors import DesiredStateError, RefusedError, SilentError
from tests.fakes.cluster import START, FakeCluster

DEADLINE_SECONDS = 10.0
FORBIDDEN = RefusedError('cluster: projects is forbidden in "team-b"', reason="Forbidden")


def settings(folder: Path) -> OperatorSettings:
    return OperatorSettings(
        namespace="system", pod="", state=folder / "state", inbox="http://inbox", config=folder / "config.json"
    )


def spec_of(url: str = "http://git.test/team/digits", branch: str = "main", **more: Any) -> dict[str, Any]:
    return {"repository": {"url": url}, "branch": branch, "keys": {"secretName": "keys"}, **more}


def body(name: str, namespace: str = "team-a", *, made: str = "00", spec: Any = None, **more: Any) -> dict[str, Any]:
    """A Project with a registry repository of its own, unless its spec says otherwise."""
    at = f"2026-01-31T12:00:{made}Z"
    meta = {"name": name, "namespace": namespace, "uid": f"{namespace}/{name}", "creationTimestamp": at, "generation": 1, **more}
    own = {"registry": {"repository": f"registry.test/{namespace}/{name}"}}
    spec = {**own, **(spec_of() if spec is None else spec)} if spec != {} else {}
    return {"apiVersion": "myelin.io/v1alpha1", "kind": "Project", "metadata": meta, "spec": spec}


class World:
    """A fleet on a cluster in memory."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        self.cluster, self.told = FakeCluster(lambda: self.now), list[str]()
        self.fleet = Fleet(self.cluster, settings(folder), tell=self.told.append)  # type: ignore[arg-type]
        self.config = folder / "config.json"
        self.folder = folder

    def configure(self, value: Any) -> None:
        """Write the list of namespaces, as something that differs from what was there."""
        before = self.config.stat().st_mtime_ns if self.config.exists() else 0
        while not self.config.exists() or self.config.stat().st_mtime_ns == before:
            self.config.write_text(value if isinstance(value, str) else json.dumps(value))

    def put(self, name: str, namespace: str = "team-a", **more: Any) -> None:
        """Make a Project, younger than all before it."""
        self.now += timedelta(seconds=1)
        self.cluster.create(PROJECT, body(name, namespace, **more))

    def lead(self) -> None:
        """Lead, with nothing that a project needs but the cluster."""
        shared: Any = ClusterSurroundings(
            cluster=self.cluster,  # type: ignore[arg-type]
            desk=None,  # type: ignore[arg-type]
            inbox="http://inbox",
            state=self.folder / "state",
        )
        self.fleet.shared, self.fleet.leads = shared, lambda: True

    def condition(self, name: str, namespace: str = "team-a") -> tuple[str, str, str] | None:
        status = self.cluster.objects["Project", namespace, name].get("status", {})
        found = next((item for item in status.get("conditions", ()) if item["type"] == "Ready"), None)
        return (found["status"], found["reason"], found["message"]) if found else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.fleet.end()
    assert made.fleet.followers() == []
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name in ("turn", "turns")])


def wait_for(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Settings.


def test_settings_are_what_the_chart_says() -> None:
    environ = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "POD_NAME": "myelin-0",
        "POD_NAMESPACE": "system",
        "MYELIN_INBOX_URL": "http://10.0.0.7:8090",
        "MYELIN_STATE": "/state",
    }
    found = settings_from(environ)
    assert (found.namespace, found.pod, found.state, found.inbox) == (
        "system",
        "myelin-0",
        Path("/state"),
        "http://10.0.0.7:8090",
    )
    assert (found.host, found.port, found.kubeconfig) == ("0.0.0.0", 8090, None)
    assert found.config == Path("/etc/myelin/config.json")


def test_settings_say_what_is_not_said() -> None:
    found = settings_from({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "POD_NAMESPACE": "system", "MYELIN_INBOX_URL": ""})
    assert (found.pod, found.inbox) == ("", "http://myelin.system.svc:8090")
    outside = settings_from({"KUBECONFIG": "/k", "MYELIN_INBOX_HOST": "127.0.0.1", "MYELIN_INBOX_PORT": "0"})
    assert (outside.kubeconfig, outside.host, outside.port, outside.namespace) == (Path("/k"), "127.0.0.1", 0, "default")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "operate: expected to run in a pod of the chart, or with KUBECONFIG; `myelin run` needs no cluster"),
        ({"KUBECONFIG": ""}, "operate: expected to run in a pod of the chart"),
        # What Kubernetes itself puts there for a Service of the name myelin-inbox.
        ({"KUBECONFIG": "/k", "MYELIN_INBOX_PORT": "tcp://10.0.0.1:8090"}, "MYELIN_INBOX_PORT: expected a port"),
    ],
)
def test_settings_that_are_none_are_refused_in_words(environ: dict[str, str], words: str) -> None:
    with pytest.raises(RefusedError) as caught:
        settings_from(environ)
    assert caught.value.message.startswith(words)


# Namespaces.


def test_without_a_list_the_controllers_own_namespace_is_followed(world: World) -> None:
    assert world.fleet.namespaces() == ("system",)


def test_the_list_of_namespaces_is_read_again_when_it_changes(world: World) -> None:
    world.configure({"namespaces": ["team-b", "team-a"]})
    assert world.fleet.namespaces() == ("team-a", "team-b")
    world.configure({"namespaces": ["team-b", "team-c"]})
    assert world.fleet.namespaces() == ("team-b", "team-c")


def test_the_list_is_found_where_kubernetes_swaps_it(world: World) -> None:
    for name in ("one", "two"):
        (world.folder / name).mkdir()
        (world.folder / name / "config.json").write_text(json.dumps({"namespaces": [name]}))
    world.config.symlink_to(world.folder / "now" / "config.json")
    for name in ("one", "two"):
        (world.folder / "next").symlink_to(name)
        (world.folder / "next").replace(world.folder / "now")
        assert world.fleet.namespaces() == (name,)


BROKEN: dict[str, Any] = {
    "half a file": '{"namespaces": ["team',
    "an empty file": "",
    "no text": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    "another key": {"namespace": ["x"]},
    "another form": ["x"],
    "nothing": {"namespaces": None},
    "a number": {"namespaces": 7},
    "one name instead of a list": {"namespaces": "team-b"},
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
def test_while_the_list_cannot_be_read_the_last_one_counts(world: World, text: Any) -> None:
    world.configure({"namespaces": ["team-a"]})
    assert world.fleet.namespaces() == ("team-a",)
    world.configure(text)
    assert world.fleet.namespaces() == ("team-a",)
    world.config.unlink()
    assert world.fleet.namespaces() == ("team-a",)
    world.configure({"namespaces": ["team-c"]})
    assert world.fleet.namespaces() == ("team-c",)


def test_a_namespace_that_refuses_is_passed_over_and_told_of_once(world: World) -> None:
    world.configure({"namespaces": ["team-a", "team-b", "team-c"]})
    for _ in range(2):
        world.cluster.fail("list Project team-b", FORBIDDEN)
        world.cluster.fail("list Project team-c", SilentError("cluster: no answer"))
        assert world.fleet.reachable() == ("team-a", "team-c")
    (line,) = world.told
    assert line.startswith(f"namespace team-b: {FORBIDDEN.message}; it is passed over")
    assert world.fleet.reachable() == ("team-a", "team-b", "team-c")
    world.cluster.fail("list Project team-b", FORBIDDEN)
    world.fleet.reachable()
    assert len(world.told) == 2


# Of two that want the same, the older one comes first.

ME = ("me", "team-a")
RIVALS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "alone": ([], ""),
    "an older one in this namespace": ([body("other", made="10", spec=spec_of("http://git.test/b"))], "NamespaceTaken"),
    "a younger one in this namespace": ([body("other", made="30", spec=spec_of("http://git.test/b"))], ""),
    "an older one that is about to go": ([body("other", made="10", deletionTimestamp="2026-01-31T12:00:15Z")], ""),
    "an older one elsewhere, of another repository": (
        [body("other", "team-b", made="10", spec=spec_of("http://git.test/b"))],
        "",
    ),
    "an older one elsewhere, of this repository and branch": ([body("other", "team-b", made="10")], "RepositoryTaken"),
    "an older one elsewhere, of another branch": ([body("other", "team-b", made="10", spec=spec_of(branch="next"))], ""),
    "a younger one elsewhere, of this repository": ([body("other", "team-b", made="30")], ""),
    "an older one elsewhere, that writes the address otherwise": (
        [body("other", "team-b", made="10", spec=spec_of("http://ada@git.test/Team/digits.git/"))],
        "RepositoryTaken",
    ),
    "an older one elsewhere, on another port of this host": (
        [body("other", "team-b", made="10", spec=spec_of("http://git.test:3000/team/digits"))],
        "",
    ),
    "an older one elsewhere, over SSH": ([body("other", "team-b", made="10", spec=spec_of("git@git.test:team/digits"))], ""),
    "an older one elsewhere, of this registry repository": (
        [
            body(
                "other",
                "team-b",
                made="10",
                spec=spec_of("http://git.test/b", registry={"repository": "registry.test/team-a/me"}),
            )
        ],
        "RegistryTaken",
    ),
    "one of the same second whose name comes first": ([body("a", made="20")], "NamespaceTaken"),
    "one of the same second whose name comes later": ([body("z", made="20")], ""),
    "an older one in this namespace that cannot be read": (
        [body("other", made="10", spec={"repository": {"url": "--x"}})],
        "NamespaceTaken",
    ),
    "an older one elsewhere that cannot be read": ([body("other", "team-b", made="10", spec={"more": 1})], ""),
    "an older one elsewhere, of this repository, that is refused itself": (
        [
            body("first", "team-b", made="01", spec=spec_of("http://git.test/c")),
            body("other", "team-b", made="10"),
        ],
        "",
    ),
}


@pytest.mark.parametrize(("others", "reason"), RIVALS.values(), ids=list(RIVALS))
def test_of_two_that_want_the_same_the_older_one_is_followed(world: World, others: list[dict[str, Any]], reason: str) -> None:
    for item in (body(*ME, made="20"), *others):
        world.fleet.seen.put("Project", item)
    rival = world.fleet.rival("team-a", "me")
    assert (rival.reason if rival else "") == reason
    if rival is not None:
        first = min(others, key=lambda item: str(item["metadata"]["creationTimestamp"]))["metadata"]
        assert (rival.state, rival.subject) == ("stalled", "me")
        assert rival.message.startswith(f"Project {first['namespace']}/{first['name']} ")
        assert world.fleet.rival(first["namespace"], first["name"]) is None


def test_a_project_that_nobody_sees_has_no_rival(world: World) -> None:
    assert world.fleet.rival("team-a", "me") is None


projects = st.lists(
    st.builds(
        lambda name, namespace, made, url, place: body(
            name,
            namespace,
            made=made,
            spec=spec_of(f"http://git.test/{url}", registry={"repository": f"registry.test/{place}"}),
        ),
        st.sampled_from("abc"),
        st.sampled_from(["n-1", "n-2", "n-3"]),
        st.sampled_from(["01", "02", "03"]),
        st.sampled_from("xyz"),
        st.sampled_from("uvw"),
    ),
    max_size=7,
    unique_by=lambda item: str(item["metadata"]["uid"]),
)


@given(projects)
def test_no_two_that_are_followed_share_a_namespace_or_a_repository(found: Sequence[dict[str, Any]]) -> None:
    fleet = Fleet(FakeCluster(), settings(Path("nowhere")), tell=lambda _: None)  # type: ignore[arg-type]
    for item in found:
        fleet.seen.put("Project", item)
    followed = [item for item in found if fleet.rival(item["metadata"]["namespace"], item["metadata"]["name"]) is None]
    assert bool(followed) == bool(found)
    assert len({item["metadata"]["namespace"] for item in followed}) == len(followed)
    assert len({item["spec"]["repository"]["url"] for item in followed}) == len(followed)
    assert len({item["spec"]["registry"]["repository"] for item in followed}) == len(followed)
    # Who is refused is told of one that is followed.
    for item in found:
        rival = fleet.rival(item["metadata"]["namespace"], item["metadata"]["name"])
        named = rival.message.split()[1] if rival else ""
        assert not named or named in {f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in followed}


def refused_one_by_one(found: Sequence[dict[str, Any]]) -> dict[tuple[str, str], tuple[str, str]]:
    """The rule as it is told, each Project against all older ones: key -> reason, and who is named."""

    def key(item: dict[str, Any]) -> tuple[str, str]:
        return item["metadata"]["namespace"], item["metadata"]["name"]

    refused: dict[tuple[str, str], tuple[str, str]] = {}
    followed: list[dict[str, Any]] = []
    for item in sorted(found, key=lambda item: (item["metadata"]["creationTimestamp"], *key(item))):
        meta, spec = item["metadata"], item["spec"]
        for other in followed:
            if other["metadata"]["namespace"] == meta["namespace"]:
                reason = "NamespaceTaken"
            elif other["spec"]["repository"] == spec["repository"] and other["spec"]["branch"] == spec["branch"]:
                reason = "RepositoryTaken"
            elif other["spec"]["registry"] == spec["registry"]:
                reason = "RegistryTaken"
            else:
                continue
            refused[key(item)] = (reason, "/".join(key(other)))
            break
        else:
            if "deletionTimestamp" not in meta:
                followed.append(item)
    return refused


@given(st.lists(st.tuples(projects, st.sets(st.integers(0, 6)), st.booleans()), min_size=1, max_size=4))
def test_whatever_changes_who_is_refused_is_who_the_rule_refuses(
    steps: Sequence[tuple[Sequence[dict[str, Any]], set[int], bool]],
) -> None:
    fleet = Fleet(FakeCluster(), settings(Path("nowhere")), tell=lambda _: None)  # type: ignore[arg-type]
    now: dict[tuple[str, str], dict[str, Any]] = {}
    for found, going, is_listed in steps:
        for number, item in enumerate(found):
            if number in going:
                item["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:30Z"
            if is_listed:
                fleet.seen.tell("Project", item, is_gone=False)
            else:
                fleet.seen.put("Project", item)
            now[item["metadata"]["namespace"], item["metadata"]["name"]] = item
        gone = next(iter(now), None) if is_listed else None
        if gone is not None:
            fleet.seen.tell("Project", now.pop(gone), is_gone=True)
        wanted = refused_one_by_one(list(now.values()))
        for key in now:
            rival = fleet.rival(*key)
            assert ((rival.reason, rival.message.split()[1]) if rival else None) == wanted.get(key)


@pytest.mark.parametrize(("number", "seconds"), [(0, 5.0), (125, 5.0), (1000, 40.0)])
def test_the_more_projects_the_less_often_each_server_is_asked(world: World, number: int, seconds: float) -> None:
    for count in range(number):
        world.fleet.seen.put("Project", body("one", f"n-{count}"))
    assert world.fleet.poll_seconds() == seconds


# What is listed anew.


def test_a_list_finds_what_came_and_drops_what_went(world: World) -> None:
    world.put("one")
    world.put("two", "team-b", spec=spec_of("http://git.test/b"))
    world.cluster.create(AXON, {"metadata": {"name": "digits", "namespace": "team-a"}, "spec": {}})
    world.fleet.resync(["team-a", "team-b"])
    assert len(world.fleet.followers()) == 2
    assert world.fleet.seen.get("Axon", "team-a", "digits") is not None
    world.cluster.delete(PROJECT, "team-a", "one")
    world.cluster.delete(AXON, "team-a", "digits")
    world.fleet.resync(["team-a", "team-b"])
    assert [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in world.fleet.seen.all("Project")] == [
        ("team-b", "two")
    ]
    assert world.fleet.seen.get("Axon", "team-a", "digits") is None
    wait_for(lambda: len(world.fleet.followers()) == 1)


def test_a_namespace_that_is_followed_no_more_takes_its_projects_along(world: World) -> None:
    world.put("one")
    world.put("two", "team-b")
    world.fleet.resync(["team-a", "team-b"])
    assert world.fleet.rival("team-b", "two") is not None
    world.fleet.resync(["team-b"])
    assert world.fleet.seen.all("Project", "team-a") == []
    assert world.fleet.rival("team-b", "two") is None
    wait_for(lambda: len(world.fleet.followers()) == 1)


@pytest.mark.parametrize("kind", ["Axon", "Release", "Version", "Project"])
@pytest.mark.parametrize("error", [SilentError("cluster: no answer"), FORBIDDEN], ids=["silent", "forbidden"])
def test_what_cannot_be_listed_stays_as_it_was_and_the_others_are_listed(world: World, kind: str, error: Any) -> None:
    world.put("one")
    world.put("two", "team-b", spec=spec_of("http://git.test/b"))
    world.fleet.resync(["team-a", "team-b"])
    world.put("three", "team-b", spec=spec_of("http://git.test/c"))
    world.cluster.fail(f"list {kind} team-a", error)
    world.fleet.resync(["team-a", "team-b"])
    assert len(world.fleet.seen.all("Project", "team-a")) == 1
    assert len(world.fleet.seen.all("Project", "team-b")) == 2
    assert len(world.fleet.followers()) == 3


def test_what_watches_tell_while_all_is_listed_is_newer_than_the_list(world: World) -> None:
    told = world.fleet.callbacks()
    world.put("old")
    world.put("gone", "team-b")
    world.put("edited", "team-c", spec=spec_of("http://git.test/c"))
    gone, edited = (world.cluster.get(PROJECT, namespace, name) for namespace, name in (("team-b", "gone"), ("team-c", "edited")))
    assert gone is not None
    assert edited is not None
    world.cluster.meanwhile = {
        "list Project team-a": lambda: told.project(body("new"), False),
        "list Project team-b": lambda: told.project(gone, True),
        "list Project team-c": lambda: told.project({**edited, "spec": spec_of("http://git.test/d")}, False),
    }
    world.fleet.resync(["team-a", "team-b", "team-c"])
    assert {str(item["metadata"]["name"]) for item in world.fleet.seen.all("Project")} == {"old", "new", "edited"}
    now = world.fleet.seen.get("Project", "team-c", "edited")
    assert now is not None
    assert now["spec"]["repository"]["url"] == "http://git.test/d"
    assert len(world.fleet.followers()) == 3
    # The next list is the newest word again.
    world.fleet.resync(["team-a", "team-b", "team-c"])
    assert {str(item["metadata"]["name"]) for item in world.fleet.seen.all("Project")} == {"old", "gone", "edited"}


def test_one_that_is_being_deleted_is_not_followed(world: World) -> None:
    world.put("one", finalizers=["myelin.io/finalizer"])
    world.cluster.delete(PROJECT, "team-a", "one")
    world.fleet.resync(["team-a"])
    assert world.fleet.followers() == []


def test_watches_begin_and_end_the_following_of_a_project(world: World) -> None:
    told = world.fleet.callbacks()
    told.project(body("one"), False)
    (first,) = world.fleet.followers()
    told.project(body("one"), False)
    assert world.fleet.followers() == [first]
    told.removed("team-a", "one")
    assert world.fleet.followers() == []
    told.project(body("one"), True)
    assert world.fleet.seen.all("Project") == []
    told.project(body("one", made="10"), False)
    assert len(world.fleet.followers()) == 1
    (second,) = world.fleet.followers()
    told.project(body("one", made="10"), True)
    second.join(10)  # kopf's thread does not wait for it
    assert world.fleet.followers() == []
    told.removed("team-a", "one")


def test_at_the_end_nothing_is_followed_any_more_and_nothing_begins(world: World) -> None:
    told = world.fleet.callbacks()
    told.project(body("one"), False)
    told.project(body("two", "team-b"), False)
    world.fleet.end()
    assert world.fleet.followers() == []
    told.project(body("three", "team-c"), False)
    assert world.fleet.followers() == []


# What keeps a project from being opened.


def test_who_does_not_lead_says_nothing(world: World) -> None:
    world.put("one")
    world.fleet.resync(["team-a"])
    world.fleet.wake_all()
    assert not world.fleet.is_settled()
    world.fleet.end()
    assert world.condition("one") is None
    assert world.cluster.writes() == [call for call in world.cluster.writes() if call.startswith("create")]


def test_what_keeps_a_project_from_being_opened_is_in_its_conditions_and_stops_no_other(world: World) -> None:
    world.lead()
    fault: Any = RuntimeError("a fault of ours")
    world.cluster.fail("get Secret broken", *[fault] * 50)
    world.put("no-keys")
    world.put("broken", "team-b", spec={**spec_of("http://git.test/b"), "keys": {"secretName": "broken"}})
    world.put("bad", "team-c", spec={"more": 1})
    world.put("second", "team-d")
    world.fleet.resync(["team-a", "team-b", "team-c", "team-d"])
    wait_for(world.fleet.is_settled)
    wait_for(lambda: all(world.condition(name, of) for name, of in (("no-keys", "team-a"), ("second", "team-d"))))
    wait_for(lambda: all(world.condition(name, of) for name, of in (("broken", "team-b"), ("bad", "team-c"))))
    secret = "spec.keys.secretName: expected Secret team-a/keys, there is none; create it"
    assert world.condition("no-keys") == ("False", "SecretMissing", f"no-keys: {secret}")
    assert world.condition("broken", "team-b") == (
        "False",
        "Bug",
        "broken: a fault in Myelin itself: RuntimeError: a fault of ours",
    )
    assert (world.condition("bad", "team-c") or ("",) * 3)[:2] == ("False", "Invalid")
    assert (world.condition("second", "team-d") or ("",) * 3)[:2] == ("False", "RepositoryTaken")
    assert world.fleet.is_alive()
    assert f"team-a/no-keys: stalled  no-keys: SecretMissing: {secret}" in world.told


def test_a_project_is_looked_at_again_when_its_object_changes(world: World) -> None:
    world.lead()
    world.put("one", spec={})
    world.fleet.resync(["team-a"])
    wait_for(lambda: world.condition("one"))
    assert (world.condition("one") or ("",) * 3)[1] == "RepositoryMissing"
    for _ in range(12):  # it is asked less and less often by itself
        world.fleet.wake_all()
    changed = world.cluster.edit(PROJECT, "team-a", "one", {"spec": body("one")["spec"]})
    world.fleet.callbacks().project(changed, False)
    wait_for(lambda: (world.condition("one") or ("",) * 3)[1] == "SecretMissing")
    status = world.cluster.objects["Project", "team-a", "one"]["status"]
    assert status["observedGeneration"] == 2


def test_who_waited_for_a_repository_gets_it_when_it_is_free(world: World) -> None:
    world.lead()
    world.put("one")
    world.put("two", "team-b")
    world.fleet.resync(["team-a", "team-b"])
    wait_for(lambda: (world.condition("two", "team-b") or ("",) * 3)[1] == "RepositoryTaken")
    gone = world.cluster.get(PROJECT, "team-a", "one")
    world.cluster.delete(PROJECT, "team-a", "one")
    assert gone is not None
    world.fleet.callbacks().project(gone, True)
    wait_for(lambda: (world.condition("two", "team-b") or ("",) * 3)[1] == "SecretMissing")


def test_the_fleet_is_not_settled_before_it_knows_all_projects(world: World) -> None:
    world.lead()
    assert not world.fleet.is_settled()
    # An inbox that took nobody's secret for a wrong one would lose what jobs bring.
    world.cluster.fail("list Axon team-a", SilentError("cluster: no answer"))
    world.fleet.resync(["team-a"])
    assert not world.fleet.is_settled()
    world.fleet.resync(["team-a"])
    assert world.fleet.is_settled()


def test_no_secret_is_told(world: World, tmp_path: Path) -> None:
    world.lead()
    keyring.make(tmp_path / "keys")
    data = {name: (tmp_path / "keys" / name).read_bytes() for name in ("controller", "image.pem")}
    data["controller"] = b"hunter2 is no key"
    world.put("one")
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    world.cluster.create(SECRET, {"metadata": {"name": "keys", "namespace": "team-a"}, "data": encoded})
    world.fleet.resync(["team-a"])
    wait_for(lambda: world.condition("one"))
    assert (world.condition("one") or ("",) * 3)[1] == "NoKey"
    said = json.dumps(world.cluster.objects["Project", "team-a", "one"]) + "".join(world.told)
    assert "hunter2" not in said


# One that hangs, and one that is followed.


class Held(FakeCluster):
    """An API server that keeps who asks for one Secret waiting."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.asked, self.answers = name, threading.Event(), threading.Event()

    def get(self, kind: Any, namespace: str, name: str) -> dict[str, Any] | None:
        if name == self.name:
            self.asked.set()
            assert self.answers.wait(DEADLINE_SECONDS)
        return super().get(kind, namespace, name)


def test_one_that_hangs_holds_up_no_other_and_the_end_waits_for_it(world: World) -> None:
    held = world.fleet.cluster = world.cluster = Held("slow")  # type: ignore[assignment]
    world.lead()
    world.put("hangs", spec={**spec_of("http://git.test/a"), "keys": {"secretName": "slow"}})
    others = [f"team-{number}" for number in range(30)]
    for of in others:
        world.put("one", of, spec=spec_of(f"http://git.test/{of}"))
    world.fleet.resync(["team-a", *others])
    assert held.asked.wait(DEADLINE_SECONDS)
    wait_for(lambda: all(world.condition("one", of) for of in others))
    assert world.condition("hangs") is None
    assert not world.fleet.is_settled()
    ending = threading.Thread(target=world.fleet.end)
    ending.start()
    wait_for(lambda: len(world.fleet.followers()) == 1)
    assert ending.is_alive()
    held.answers.set()
    ending.join(DEADLINE_SECONDS)
    assert world.fleet.followers() == []


def test_a_project_is_followed_pass_by_pass_until_it_ends(world: World) -> None:
    """With a real repository, and a registry that nobody needs to ask as there is nothing to build."""
    place = project.make(world.folder / "p", now=START)
    pusher = SshKey.load(world.folder / "p.myelin" / "signer")
    project.push_as(place, pusher, {"axons/digits/axon.yaml": None}, "Empty it\n", now=START)
    keyring.make(world.folder / "keys")
    data = {name: base64.b64encode((world.folder / "keys" / name).read_bytes()).decode() for name in ("controller", "image.pem")}
    world.cluster.create(SECRET, {"metadata": {"name": "keys", "namespace": "team-a"}, "data": data})
    trust = {"signers": [{"name": "you", "ssh": pusher.public()}]}
    world.put("one", spec=spec_of(place.url, registry={"repository": "127.0.0.1:9/p"}, trust=trust))
    desk = Desk("127.0.0.1", 0, is_ready=lambda: True, is_alive=lambda: True)
    world.lead()
    world.fleet.shared = replace(world.fleet.shared, desk=desk)  # type: ignore[type-var]
    try:
        world.fleet.resync(["team-a"])
        wait_for(lambda: world.condition("one"))
        assert (world.condition("one") or ("",) * 3)[:2] == ("True", "AsDesired")
        (one,) = world.fleet.followers()
        left = world.folder / "state" / "team-a" / "one" / "status.json"
        wait_for(lambda: one.passes >= 1 and left.exists())
        seen, passes = left.read_bytes(), one.passes
        one.wake()
        wait_for(lambda: one.passes > passes)
        assert left.read_bytes() == seen, "nothing changed, so nothing was written"
        project.push_as(place, pusher, {"notes.txt": b"hello"}, "Note\n", now=START)
        one.wake()
        wait_for(lambda: left.read_bytes() != seen)
        # Another generation of the object: it is opened anew, by the same follower.
        secret = world.cluster.edit(PROJECT, "team-a", "one", {"spec": {"keys": {"secretName": "others"}}})
        world.fleet.callbacks().project(secret, False)
        wait_for(lambda: (world.condition("one") or ("",) * 3)[1] == "SecretMissing")
        back = world.cluster.edit(PROJECT, "team-a", "one", {"spec": {"keys": {"secretName": "keys"}}})
        world.fleet.callbacks().project(back, False)
        wait_for(lambda: (world.condition("one") or ("",) * 3)[1] == "AsDesired")
        assert world.fleet.followers() == [one]
        assert world.fleet.is_alive()
        # Who was replaced lets go of all that it holds, and takes it up again when it leads again.
        world.fleet.leads = lambda: False
        world.fleet.wake_all()
        wait_for(lambda: not one.is_settled)
        world.fleet.leads = lambda: True
        world.fleet.wake_all()
        wait_for(lambda: one.is_settled)
        assert world.fleet.callbacks().removed("team-a", "one")
        assert world.fleet.followers() == []
    finally:
        desk.close()


# What the commands in the controller's pod find.


def test_commands_in_the_pod_find_the_projects_that_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYELIN_STATE", str(tmp_path))
    note_place(tmp_path / "team-a" / "digits", "http://ada:x@git.test:3000/team/digits.git", "main", {"signers": []})
    found = project.find(".")
    assert project.find("team-a/digits") == found
    state = tmp_path / "team-a" / "digits"
    assert (found.url, found.state, found.trust, found.branch) == (str(state / "git"), state, state / "trust.yaml", "main")
    note_place(tmp_path / "team-b" / "other", "git@git.test:team/other", "next", {"signers": []})
    assert project.find("team-b/other").branch == "next"
    with pytest.raises(DesiredStateError) as caught:
        project.find(".")
    assert caught.value.message.endswith("expected --repo with one of team-a/digits, team-b/other")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://ada:secret@git.test/team/a.git", "http://git.test/team/a.git"),
        ("http://ada:secret@git.test:3000/team/a", "http://git.test:3000/team/a"),
        ("https://git.test/a?token=secret", "https://git.test/a"),
        ("ssh://git@git.test:22/a", "ssh://git.test:22/a"),
        ("git@git.test:team/a", "git@git.test:team/a"),
        ("/srv/a.git", "/srv/a.git"),
    ],
)
def test_the_address_of_a_repository_is_noted_without_its_credentials(tmp_path: Path, url: str, shown: str) -> None:
    note_place(tmp_path, url, "main", {})
    text = (tmp_path / "place.json").read_text()
    assert json.loads(text)["of"] == shown
    assert "secret" not in text
