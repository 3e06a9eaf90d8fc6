"""The model server as its callers and users' classes meet it: over real HTTP, and its pure parts one by one."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from copy import copy
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from myelin.serve.calls import Caller, TimedOut
from myelin.serve.message import BadRequest, decode, decode_feedback, encode
from myelin.serve.model import Model
from myelin.serve.plain import ModelFault, plain
from myelin.serve.settings import NotServed, read_settings
from tests.runtime.servers import FORM, JSON, QUESTION, Servers, ask, multipart

MODULES = {
    "Toy": """
import sys
class Toy:
    class_names = ["no", "yes"]
    def __init__(self):
        self.rewards = []
    def predict(self, X, names):
        if X[0][0] == 13:
            raise RuntimeError("unlucky")
        if X[0][0] == 14:
            raise StopIteration
        if X[0][0] == 15:
            sys.exit("enough")
        return X
    def send_feedback(self, X, names, reward, truth):
        self.rewards.append((len(X), reward, len(truth)))
    def metrics(self):
        return [{"key": "deploy_accuracy", "type": "GAUGE", "value": len(self.rewards) / 10}]
    def tags(self):
        return {"rewards": self.rewards}
""",
    "Silent": """
class Silent:
    def predict(self, X, names, meta=None):
        return [[float(meta["puid"]), 0.0 if names is None else len(names)]]
""",
    "Slow": """
import os, time
class Slow:
    def predict(self, X, names):
        while X[0][0] and not os.path.exists("go"):
            time.sleep(0.01)
        return X
""",
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory.mktemp("models"), **MODULES)
    yield made
    made.end()


@pytest.fixture(scope="module")
def toy(servers: Servers) -> str:
    return f"http://{servers.model('Toy')}"


def post(url: str, text: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    return ask(url, text.encode(), headers or JSON)[:2]


def why(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["status"]["info"]


TEXT = json.dumps(QUESTION)
WAYS = {
    "a JSON body": (TEXT.encode(), JSON),
    "a JSON body with curl's default content type": (TEXT.encode(), FORM),
    "a form": (urllib.parse.urlencode({"json": TEXT}).encode(), FORM),
    "a form with other fields first": (urllib.parse.urlencode({"isDefault": "true", "json": TEXT}).encode(), FORM),
    "a part of a multipart form": multipart(('name="json"', TEXT)),
    "a part with its own content type": multipart(('name="json"\r\nContent-Type: application/json', TEXT)),
    "a file": multipart(('name="other"', "1"), ('name="json"; filename="q.json"', TEXT)),
    "a file with its own content type": multipart(('name="json"; filename="q.json"\r\nContent-Type: application/json', TEXT)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_message_is_read_from(way: str, toy: str) -> None:
    code, answer, _ = ask(f"{toy}/predict", *WAYS[way])
    assert (code, answer["data"]) == (200, {"names": ["no", "yes"], "ndarray": [[1.0, 2.0]]})


def test_the_message_is_read_from_the_query(toy: str) -> None:
    assert ask(f"{toy}/predict?" + urllib.parse.urlencode({"json": TEXT}))[1]["data"]["ndarray"] == [[1.0, 2.0]]


BAD = {
    "no message": (b"", JSON, "expected a message: form field or query parameter `json`, or a JSON body"),
    "an empty field": (b"json=", FORM, "expected a message: form field or query parameter `json`, or a JSON body"),
    "a multipart form without the field": (*multipart(('name="x"', "1")), "expected a message: form field or query"),
    "a multipart form without a boundary": (b"x", {"Content-Type": "multipart/form-data"}, "expected a multipart form: bound"),
    "a broken multipart form": (b"x", multipart()[1], "expected a multipart form"),
    "a multipart form with a broken header": (*multipart(("x\r\nno header", TEXT)), "expected a multipart form: 400, message:"),
    "a part in an unknown encoding": (
        *multipart(('name="json"\r\nContent-Transfer-Encoding: odd', TEXT)),
        "expected a multipart form: unknown content transfer encoding",
    ),
    "no JSON": (b"{x", JSON, "expected JSON: Expecting property name"),
    "no UTF-8": (b'"\xff"', JSON, "expected UTF-8"),
    "JSON that is nested too deeply": (b"[" * 100_000, JSON, "expected JSON, got a document that is nested too deeply"),
    "a join that is nested too deeply": (b'{"a":' * 900 + b"{}" + b"}" * 900, JSON, "expected "),
    "a list": (b"[1]", JSON, "expected a JSON object with `data`, `binData` or `strData`, got a list"),
    "nothing known": (b"{}", JSON, "expected `data` with `ndarray` or `tensor`, `binData` or `strData`"),
    "binData that is a number": (b'{"binData": 5}', JSON, "binData: expected base64"),
    "strData that is a number": (b'{"strData": 5}', JSON, "strData: expected a text, got a number"),
    "an ndarray that is none": (b'{"data": {"ndarray": 5}}', JSON, "data.ndarray: expected a list, got a number"),
    "names that are none": (b'{"data": {"ndarray": [1], "names": 5}}', JSON, "data.names: expected a list of names, got a num"),
    "a tensor that is none": (b'{"data": {"tensor": [1]}}', JSON, "data.tensor: expected lists `shape` and `values`"),
    "a tensor of rows": (b'{"data": {"tensor": {"shape": [2], "values": [[1], [2, 3]]}}}', JSON, "data.tensor.values: expected"),
    "a tensor of another size": (b'{"data": {"tensor": {"shape": [3], "values": [1]}}}', JSON, "data.tensor: expected 3 values"),
    "a tensor of negative size": (b'{"data": {"tensor": {"shape": [-1], "values": [1]}}}', JSON, "data.tensor.shape: expected"),
    "a tensor of 99 dimensions": (
        json.dumps({"data": {"tensor": {"shape": [1] * 99, "values": [1]}}}).encode(),
        JSON,
        "data.tensor.shape: ",
    ),
    "one bad message in a join": (b'{"A": {"strData": "x"}, "B": {"binData": 5}}', JSON, "B: binData: expected base64"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence_and_no_trace_for(case: str, toy: str, servers: Servers) -> None:
    body, headers, expected = BAD[case]
    before = servers.said(toy)
    code, answer, _ = ask(f"{toy}/predict", body, headers)
    assert (code, answer["status"]["code"], answer["status"]["reason"]) == (400, 400, "BadRequest")
    assert answer["status"]["info"].startswith(expected)
    assert servers.said(toy) == before


def test_too_large_a_body_is_refused(toy: str) -> None:
    assert why(post(f"{toy}/predict", " " * ((16 << 20) + 1))) == (413, "expected at most 16777216 bytes")


def test_what_the_users_class_raises_is_said_and_the_server_goes_on(toy: str, servers: Servers) -> None:
    before = servers.said(toy).count("Traceback")
    for number, said in ((13, "RuntimeError: unlucky"), (14, "StopIteration: "), (15, "SystemExit: enough")):
        assert why(post(f"{toy}/predict", json.dumps({"data": {"ndarray": [[number]]}}))) == (500, said.strip())
    errors = servers.said(toy)
    assert errors.count("Traceback") == before + 3
    assert 'raise RuntimeError("unlucky")' in errors
    assert post(f"{toy}/predict", TEXT)[0] == 200


def test_feedback_may_be_a_reward_alone_and_shows_in_the_metrics_that_alerts_read(toy: str) -> None:
    both = json.dumps({"request": QUESTION, "truth": QUESTION, "reward": 1.0})
    for text in (both, json.dumps({"reward": 0.5}), json.dumps({"request": QUESTION})):
        assert post(f"{toy}/send-feedback", text) == (200, {})
    assert ask(f"{toy}/send-feedback", urllib.parse.urlencode({"json": both}).encode(), FORM)[:2] == (200, {})
    assert post(f"{toy}/predict", TEXT)[1]["meta"]["tags"]["rewards"] == [[1, 1.0, 1], [0, 0.5, 0], [1, None, 0], [1, 1.0, 1]]
    assert "deploy_accuracy_my__axon 0.4" in ask(f"{toy}/metrics")[1]
    assert why(post(f"{toy}/send-feedback", TEXT)) == (400, "expected a JSON object with `request`, `truth` or `reward`")
    assert why(post(f"{toy}/send-feedback", '{"request": {"strData": 5}}'))[1].startswith("request: strData: expected")


def test_a_class_without_feedback_takes_any_and_meta_is_passed_where_it_is_taken(servers: Servers) -> None:
    url = f"http://{servers.model('Silent')}"
    assert post(f"{url}/send-feedback", '{"reward": 1}') == (200, {})
    told = {"data": {"ndarray": [[1]], "names": ["a", "b"]}, "meta": {"puid": 7}}
    assert post(f"{url}/predict", json.dumps(told)) == (
        200,
        {"data": {"names": ["t:0", "t:1"], "ndarray": [[7.0, 2.0]]}, "meta": {"tags": {}, "metrics": []}},
    )
    assert post(f"{url}/predict", '{"data": {"ndarray": [[1]]}, "meta": {"puid": 7}}')[1]["data"]["ndarray"] == [[7.0, 0.0]]


def test_a_call_is_bounded_and_the_next_waits_for_its_turn(servers: Servers) -> None:
    address = servers.model("Slow", TIMEOUT="1", NUM_WORKERS="2")
    url, fast, slow = f"http://{address}/predict", '{"data": {"ndarray": [[0]]}}', '{"data": {"ndarray": [[1]]}}'
    assert servers.said(address) == "NUM_WORKERS: got 2; more than 1 is not built yet, 1 serves\n"
    assert post(url, fast)[0] == 200
    assert why(post(url, slow)) == (504, "/predict: no answer within 1 s (TIMEOUT)")
    assert why(post(url, fast)) == (504, "/predict: an earlier call has not come back for 1 s (TIMEOUT)")
    process = servers.running[address]
    process.terminate()  # a call that never comes back does not keep the process
    assert process.wait(10) == 0


def test_a_call_that_comes_back_late_gives_its_turn_to_the_next() -> None:
    async def both() -> None:
        caller, gate = Caller(side_by_side=False, timeout_seconds=1), threading.Event()
        with pytest.raises(TimedOut):
            await caller.call("late", partial(gate.wait, 20))
        assert caller.is_busy
        gate.set()
        assert await caller.call("next", lambda: 5) == 5
        assert not caller.is_busy

    asyncio.run(both())


REFUSED = {
    "API_TYPE": ("GRPC", "API_TYPE: expected REST, got GRPC; nothing else is built yet"),
    "SERVICE_TYPE": ("ROUTER", "SERVICE_TYPE: expected MODEL, got ROUTER; nothing else is built yet"),
    "PERSISTENCE": ("1", "PERSISTENCE: expected 0, got 1; nothing else is built yet"),
    "NUM_WORKERS": ("many", "NUM_WORKERS: expected a number, got many"),
    "TIMEOUT": ("-1", "TIMEOUT: expected seconds of at least 0, got -1"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_built_is_refused(key: str) -> None:
    value, expected = REFUSED[key]
    with pytest.raises(NotServed, match=expected):
        read_settings({"MODEL_NAME": "M", key: value})


def test_what_the_earlier_environments_say_is_accepted() -> None:
    usual = {"MODEL_NAME": "M", "API_TYPE": "REST", "SERVICE_TYPE": "MODEL", "PERSISTENCE": "0", "NUM_WORKERS": "1"}
    assert read_settings({**usual, "TIMEOUT": "120"}).timeout_seconds == 120
    settings = read_settings(usual)
    assert (settings.port, settings.timeout_seconds, settings.notes) == (5000, None, ())


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"MODEL_NAME": "Toy", "API_TYPE": "GRPC"}, "API_TYPE: expected REST, got GRPC; nothing else is built yet\n"),
        ({}, "MODEL_NAME: expected the name of a module and of the class in it, it is not set\n"),
        ({"MODEL_NAME": "Gone"}, "model Gone: ModuleNotFoundError: No module named 'Gone'\n"),
        ({"MODEL_NAME": "Idle"}, "model Idle: class Idle: expected a method `predict`\n"),
    ],
)
def test_a_server_that_cannot_serve_says_so_in_one_line(env: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in {**MODULES, "Idle": "class Idle: pass"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    given = {"PATH": os.environ["PATH"], **env}
    argv = [sys.executable, "-m", "myelin.serve"]
    done = subprocess.run(argv, env=given, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (1, said)


class Fixed:
    """Answers with what it was made with."""

    def __init__(self, answer: Any, **parts: Any) -> None:
        self.answer = answer
        for name, value in parts.items():
            setattr(self, name, partial(copy, value))

    def predict(self, X: Any, names: Any) -> Any:
        return self.answer


def ask_model(answer: Any, message: Any = QUESTION, **parts: Any) -> Any:
    answered = Model(Fixed(answer, **parts), "a").predict(message)
    json.dumps(answered, allow_nan=False)
    return answered


TENSOR = {"data": {"tensor": {"shape": [1], "values": [1]}}}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (np.array([[1, 2]]), [[1, 2]]),
        (np.float32(0.5), 0.5),
        ([np.array([1.5]), np.array([2.5])], [[1.5], [2.5]]),
        ((np.array([1, 2]), np.int64(3)), [[1, 2], 3]),
        (np.array([1.0, np.nan, np.inf]), [1.0, None, None]),
        ([{"score": np.float64("nan"), np.int64(4): (True, None)}], [{"score": None, "4": [True, None]}]),
        (np.array([b"one", b"two"]), ["one", "two"]),
        (np.array([["title", 0.5]], dtype=object), [["title", 0.5]]),
        (np.array([True]), [True]),
        (np.longdouble(2), 2.0),
        (range(3), [0, 1, 2]),
        ({"a": np.arange(2)}, {"a": [0, 1]}),
        (None, None),
    ],
)
def test_any_answer_comes_as_json_carries_it(answer: Any, expected: Any) -> None:
    assert ask_model(answer)["data"]["ndarray"] == expected


@pytest.mark.parametrize(
    ("answer", "shape", "values"),
    [
        (5, [], [5]),
        (np.float32(2), [], [2.0]),
        ([1, 2], [2], [1, 2]),
        ([[1, 2], [3, 4]], [2, 2], [1, 2, 3, 4]),
        (np.zeros((0, 3)), [0, 3], []),
        (np.arange(8).reshape(2, 2, 2), [2, 2, 2], list(range(8))),
        (np.array([np.inf]), [1], [None]),
    ],
)
def test_a_tensor_is_answered_with_one(answer: Any, shape: list[int], values: list[Any]) -> None:
    assert ask_model(answer, TENSOR)["data"]["tensor"] == {"shape": shape, "values": values}


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "rows of different lengths, as a tensor": (lambda: ask_model([[1], [2, 3]], TENSOR), "expected an answer of equal rows"),
    "objects in a tensor": (lambda: ask_model([{"a": 1}], TENSOR), "expected an answer of plain values to a tensor question"),
    "a set": (lambda: ask_model({1}), "expected a value that JSON can carry, got one of type set"),
    "a complex number": (lambda: ask_model(np.array([1j])), "expected a value that JSON can carry, got one of type complex"),
    "bytes that are no text": (lambda: ask_model([b"\xff"]), "expected bytes inside of an answer to be UTF-8"),
    "tags that are no mapping": (lambda: ask_model(1, tags=[1]), r"tags\(\): expected a mapping, got list"),
    "metrics that are no list": (lambda: ask_model(1, metrics={"key": 1}), r"metrics\(\): expected a list, got dict"),
    "metrics of texts": (lambda: ask_model(1, metrics=["a"]), r"metrics\(\): expected objects with key, value and type, got str"),
    "a metric of unknown type": (
        lambda: ask_model(1, metrics=[{"key": "a", "value": 1, "type": "SUM"}]),
        r"metrics\(\): expected key, numeric value and type of COUNTER, GAUGE, TIMER, got key 'a', value 1, type 'SUM'",
    ),
    "a metric that is a text": (lambda: ask_model(1, metrics=[{"key": "a", "value": "1", "type": "GAUGE"}]), "value '1'"),
    "a metric that is a boolean": (lambda: ask_model(1, metrics=[{"key": "a", "value": True, "type": "GAUGE"}]), "value True"),
    "a metric of two numbers": (
        lambda: ask_model(1, metrics=[{"key": "a", "value": np.arange(2), "type": "GAUGE"}]),
        "value arr",
    ),
    "a counter that falls": (lambda: ask_model(1, metrics=[{"key": "a", "value": -1, "type": "COUNTER"}]), r"metrics\(\): a: "),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_users_class_is_told_of(case: str) -> None:
    call, expected = FAULTS[case]
    with pytest.raises(ModelFault, match=expected):
        call()


def test_an_answer_that_holds_itself_is_a_fault() -> None:
    answer: list[Any] = []
    answer.append(answer)
    for message in (QUESTION, TENSOR):
        with pytest.raises(ModelFault, match="nested too deeply"):
            ask_model(answer, message)


def test_numpy_in_tags_and_metrics_and_one_key_of_two_types() -> None:
    told = [
        {"key": "x", "type": "GAUGE", "value": np.float32(0.5)},
        {"key": "x", "type": "COUNTER", "value": np.int64(2)},
        {"key": "x", "type": "TIMER", "value": 500},
        {"key": "nothing", "type": "GAUGE", "value": np.nan},
        {"key": "exact", "type": "GAUGE", "value": Decimal("1.5")},
    ]
    model = Model(Fixed([1], tags={"at": np.array([1]), "who": np.str_("me")}, metrics=told), "my-axon")
    meta = model.predict(QUESTION)["meta"]
    assert meta["tags"] == {"at": [1], "who": "me"}
    assert [item["value"] for item in meta["metrics"]] == [0.5, 2, 500, None, 1.5]
    text = model.exposition().decode()
    for line in ("x_my__axon 0.5", "x_my__axon_total 2.0", "x_my__axon_sum 0.5", "nothing_my__axon NaN", "exact_my__axon 1.5"):
        assert f"\n{line}\n" in text


def test_raw_hooks_are_given_the_message_and_answer_for_themselves() -> None:
    class Raw:
        seen: Any = None

        def predict_rest(self, message: Any) -> Any:
            return {"mine": np.array([message["x"]])}

        def send_feedback_rest(self, message: Any) -> Any:
            self.seen = message

    user = Raw()
    model = Model(user, "a")
    assert model.predict({"x": 1}) == {"mine": [1]}
    assert model.feedback({"any": "thing"}) == {}
    assert user.seen == {"any": "thing"}


def test_a_join_is_one_dict_whatever_its_models_are_called() -> None:
    answer = {"data": {"names": [], "ndarray": [[1]]}, "meta": {}}
    for name in ("data", "strData", "binData", "meta", "A"):
        values = decode({name: answer, "INPUT": {"strData": "hello"}}).values
        assert (values[name].tolist(), values["INPUT"]) == ([[1]], "hello")
        assert decode({name: answer}).values[name].tolist() == [[1]]
    assert decode({"data": {"ndarray": [1]}, "meta": {"a": 1}}).meta == {"a": 1}


def test_other_encodings_and_feedback_decode() -> None:
    assert decode({"binData": base64.b64encode(b"\x00").decode()}).values == b"\x00"
    assert decode({"data": {"tensor": {"shape": [], "values": [5]}}}).values.tolist() == 5
    assert decode({"data": {"tensor": {"shape": [2, 0], "values": []}}}).values.shape == (2, 0)
    assert decode({"data": {"ndarray": ["one", "two"]}}).values.tolist() == ["one", "two"]
    assert decode({"data": {"ndarray": [[1], [2, 3]]}}).values.tolist() == [[1], [2, 3]]
    assert (encode(b"\x00", "ndarray", None), encode("x", "tensor", None)) == ({"binData": "AA=="}, {"strData": "x"})
    given = decode_feedback({"request": {"A": {"strData": "x"}}, "truth": {"data": {}}})
    assert (given.question.values, given.reward, given.truth.tolist()) == ({"A": "x"}, None, [])
    with pytest.raises(BadRequest, match="truth: expected a JSON object"):
        decode_feedback({"truth": [[1]]})


def test_without_numpy_lists_are_used(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('there is none')")
    code = """
from myelin.serve.message import decode, encode
ask = lambda shape, values: decode({"data": {"tensor": {"shape": shape, "values": values}}}).values
assert ask([2, 2], [1, 2, 3, 4]) == [[1, 2], [3, 4]]
assert ask([], [5]) == 5
assert ask([2, 0], []) == [[], []]
assert ask([0, 2], []) == []
assert decode({"data": {"ndarray": [[1], [2, 3]]}}).values == [[1], [2, 3]]
assert encode([[1, 2]], "tensor", None)["data"]["tensor"] == {"shape": [1, 2], "values": [1, 2]}
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=20)


def test_frameworks_arrays_are_taken_by_their_protocol() -> None:
    class Eager:
        def __array__(self, *_: Any, **__: Any) -> Any:
            return np.array([[1.0]])

    assert plain(Eager()) == [[1.0]]
    assert encode(Eager(), "tensor", None)["data"]["tensor"] == {"shape": [1, 1], "values": [1.0]}


def test_large_arrays_are_turned_into_lists_quickly() -> None:
    big = np.ones((1000, 1000))
    started = time.process_time()
    assert len(plain(big)) == 1000
    assert time.process_time() - started < 2
