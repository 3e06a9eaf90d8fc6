"""Canonical JSON (RFC 8785) and the digests of values.

Law: equal values give equal bytes on any machine, whatever the order of their keys. This is the one file that
imports `rfc8785`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import rfc8785

from policies.terms.digest import Digest, digest_of

CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


def canonical(value: Any) -> bytes:
    """Write a JSON value in its one canonical form.

    Args:
        value: Mappings with string keys, lists or tuples, strings, booleans, None, finite floats and integers
            within +-(2**53 - 1).
    Raises:
        ValueError: A value JSON cannot carry exactly.
    """
    try:
        return rfc8785.dumps(_plain(value))
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"expected a value that JSON can carry exactly: {error}") from error


def parse(text: bytes) -> Any:
    """Read JSON so that its canonical form is the one it came from: a whole number beyond 2**53 is a float.

    Raises:
        ValueError: Not JSON.
    """
    return json.loads(text, parse_int=_whole)


def _whole(text: str) -> int | float:
    return int(text) if len(text) < 17 and abs(int(text)) < 2**53 else float(text)


def digest_value(value: Any) -> Digest:
    """Name a JSON value by the digest of its canonical form."""
    return digest_of(canonical(value))


def short_name(digest: Digest, *, length: int = 10) -> str:
    """Shorten a digest to Crockford base32, lower case, for names that people read.

    Args:
        digest: The digest to shorten.
        length: Characters, 1 to 51; each carries 5 bits.
    """
    bits = int(digest.removeprefix("sha256:"), 16)
    return "".join(CROCKFORD[(bits >> (256 - 5 * (i + 1))) & 31] for i in range(length))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
