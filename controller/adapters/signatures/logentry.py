"""A transparency log's entry as gitsign embeds it: the protobuf message `TransparencyLogEntry` of Sigstore's `rekor/v1`.

It only reads and writes the fields; whether they hold is checked elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

Fields = dict[int, list[int | bytes]]


def entry_json(message: bytes, body: bytes) -> dict[str, Any]:
    """The entry as JSON, as a Sigstore bundle has it.

    Args:
        message: The protobuf message.
        body: The canonical body of the entry, which gitsign leaves out because it can be made again.

    Raises:
        ValueError: It is no such message, or lacks a part without which it cannot be checked offline.
    """
    entry = _fields(message)
    kind, promise, proof = (_fields(_bytes(entry, number)) for number in (3, 5, 6))
    if not _bytes(promise, 1):
        raise ValueError("the log entry has no signed timestamp")
    if not proof:
        raise ValueError("the log entry has no proof of inclusion")
    return {
        "logIndex": str(_number(entry, 1)),
        "logId": {"keyId": _text64(_bytes(_fields(_bytes(entry, 2)), 1))},
        "kindVersion": {"kind": _bytes(kind, 1).decode(), "version": _bytes(kind, 2).decode()},
        "integratedTime": str(_number(entry, 4)),
        "inclusionPromise": {"signedEntryTimestamp": _text64(_bytes(promise, 1))},
        "inclusionProof": {
            "logIndex": str(_number(proof, 1)),
            "rootHash": _text64(_bytes(proof, 2)),
            "treeSize": str(_number(proof, 3)),
            "hashes": [_text64(item) for item in proof.get(4, []) if isinstance(item, bytes)],
            "checkpoint": {"envelope": _bytes(_fields(_bytes(proof, 5)), 1).decode()},
        },
        "canonicalizedBody": _text64(body),
    }


def _fields(message: bytes) -> Fields:
    """Number of a field -> its values, in order."""
    found: Fields = {}
    for number, value in _walk(message):
        found.setdefault(number, []).append(value)
    return found


def _walk(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("the log entry is cut short")
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError("the log entry is of another shape")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("the log entry is cut short")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if not message[at - 1] & 0x80:
            return value, at
    raise ValueError("the log entry holds too large a number")


def _bytes(fields: Fields, number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError("the log entry is of another shape")
    return value


def _number(fields: Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError("the log entry is of another shape")
    return value


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def entry_message(entry: Mapping[str, Any]) -> bytes:
    """The protobuf message of an entry that a Sigstore bundle holds as JSON, without its body, as gitsign embeds it.

    Raises:
        KeyError: It lacks a part without which it cannot be checked offline.
    """
    proof, kind = entry["inclusionProof"], entry["kindVersion"]
    index, log = int(entry.get("logIndex", 0)), base64.b64decode(entry["logId"]["keyId"])
    promise = base64.b64decode(entry["inclusionPromise"]["signedEntryTimestamp"])
    inclusion = _number_field(1, int(proof.get("logIndex", 0))) + _field(2, base64.b64decode(proof["rootHash"]))
    inclusion += _number_field(3, int(proof["treeSize"]))
    inclusion += b"".join(_field(4, base64.b64decode(item)) for item in proof.get("hashes", ()))
    inclusion += _field(5, _field(1, proof["checkpoint"]["envelope"].encode()))
    return (
        _number_field(1, index)
        + _field(2, _field(1, log))
        + _field(3, _field(1, kind["kind"].encode()) + _field(2, kind["version"].encode()))
        + _number_field(4, int(entry["integratedTime"]))
        + _field(5, _field(1, promise))
        + _field(6, inclusion)
    )


def _field(number: int, value: bytes) -> bytes:
    return _packed(number << 3 | 2) + _packed(len(value)) + value


def _number_field(number: int, value: int) -> bytes:
    # Zero is what an absent field means, and is not written.
    return _packed(number << 3) + _packed(value) if value else b""


def _packed(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])
