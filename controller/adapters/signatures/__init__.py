"""Signatures of commits and tags, by SSH key, OpenPGP or Sigstore identity: what they say, before anybody trusts it.

Heavy libraries are imported when the first signature of their kind comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from controller.adapters import keys
from controller.adapters.signatures.gitsign import BEGIN as BEGIN_SIGSTORE
from controller.adapters.signatures.gitsign import Gitsign
from controller.adapters.signatures.openpgp import BEGIN as BEGIN_OPENPGP
from controller.adapters.signatures.openpgp import Certificates
from policies.terms.revision import Signature, TagFacts, TrustedKey

BEGINNINGS = (keys.BEGIN, *BEGIN_OPENPGP, BEGIN_SIGSTORE)
_IN_HEAD = re.compile(rb"(?m)^gpgsig(?:-sha256)? .*\n(?: .*\n)*")


class SignatureReader:
    """Reads signatures, and knows the OpenPGP certificates that it has come across.

    A commit's signer is named by the pin or by an ancestor, so whoever reads commits parents first has come across the
    certificate by then.

    Args:
        signers: Who is trusted first.
        list_of: Reads `spec.trust.signers` out of a `myelin.yaml`.
        sigstore_root: Trusted root of a Sigstore instance as JSON; empty: that of the public good one.
        own: `<identity> <issuer>` of the controller, and the trusted root that vouches for it and nobody else.
    """

    def __init__(
        self,
        signers: Iterable[TrustedKey] = (),
        *,
        list_of: Callable[[bytes], tuple[TrustedKey, ...]] = lambda _: (),
        sigstore_root: str = "",
        own: tuple[str, str] | None = None,
    ) -> None:
        self._list_of = list_of
        self._certificates, self._gitsign = Certificates(), Gitsign(sigstore_root)
        self._own_key = own[0] if own is not None else ""
        self._own_gitsign = Gitsign(own[1]) if own is not None else None
        self._learn(signers)

    def signers_of(self, text: bytes) -> tuple[TrustedKey, ...]:
        """The signers that a `myelin.yaml` names."""
        found = self._list_of(text)
        self._learn(found)
        return found

    def read(self, armored: str, data: bytes) -> Signature:
        """What an armored signature says of `data`."""
        start = armored.lstrip()
        if start.startswith(BEGIN_OPENPGP):
            return self._certificates.read(armored, data)
        if start.startswith(BEGIN_SIGSTORE):
            return self._read_sigstore(armored, data)
        return keys.read_signature(armored, data)

    def _read_sigstore(self, armored: str, data: bytes) -> Signature:
        if self._own_gitsign is not None:
            found = self._own_gitsign.read(armored, data)
            # Whoever runs the controller's instance could make it vouch for anybody, so it is asked about the controller alone.
            if found.key == self._own_key:
                return found
        return self._gitsign.read(armored, data)

    def read_tag(self, raw: bytes) -> TagFacts | None:
        """What an annotated tag says, as Git stores it; None where it is none."""
        head, _, _ = raw.partition(b"\n\n")
        fields: dict[bytes, str] = {}
        for line in head.split(b"\n"):
            name, _, value = line.partition(b" ")
            fields.setdefault(name, value.decode(errors="replace"))
        if not {b"object", b"type", b"tag"} <= set(fields):
            return None
        payload, armored = split_tag(raw)
        return TagFacts(
            name=fields[b"tag"],
            target=fields[b"object"],
            target_kind=fields[b"type"],
            at=instant_of(fields.get(b"tagger", "")),
            signature=self.read(armored, payload) if armored else None,
        )

    def _learn(self, signers: Iterable[TrustedKey]) -> None:
        for key in signers:
            if key.certificate:
                self._certificates.learn(key.certificate)


def split_tag(raw: bytes) -> tuple[bytes, str]:
    """What a tag's signature covers, and the signature; that is empty when there is none.

    As in Git, the signature is all from the last line on that begins one.
    """
    marks, at, start = tuple(mark.encode() for mark in BEGINNINGS), 0, -1
    for line in raw.split(b"\n"):
        if line.startswith(marks):
            start = at
        at += len(line) + 1
    if start < 0:
        return raw, ""
    head, apart, body = raw[:start].partition(b"\n\n")
    return _IN_HEAD.sub(b"", head + b"\n")[:-1] + apart + body, raw[start:].decode(errors="replace")


def instant_of(person: str) -> datetime:
    """When a committer or tagger says that it was, `Name <address> 1767225600 +0100`; 1970 where it cannot be read."""
    try:
        return datetime.fromtimestamp(int(person.rsplit(" ", 2)[1]), UTC)
    except (IndexError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
