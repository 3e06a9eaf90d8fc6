"""A Sigstore of the controller's own, for a team that has none: it signs as its project, without asking anybody.

What it signs is in the formats of every other Sigstore: whoever has its trusted root verifies it, offline, with any client. It
gives other programs certificates only through `served`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from controller.adapters.clock import SystemClock
from controller.adapters.sigstore.authority import VALID_SECONDS, Authority, SigningKey, is_plain, pem
from controller.adapters.sigstore.leaves import Leaves
from controller.adapters.sigstore.log import Log
from policies.canonical import canonical
from policies.errors import RefusedError, TrustError

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
TRUSTED_ROOT = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
TRUST_CONFIG = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
SIGNING_CONFIG = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
ISSUER = "https://myelin/embedded"
"""Who vouches for the controller's own identity: nobody but its own authority, and no token ever names it."""
SLOT_SECONDS = VALID_SECONDS // 2
"""A key of its own for each stretch: its certificate holds for at least as long again."""


class Embedded:
    """Signs as one project, with an authority and a log of its own.

    Signing the same within one stretch of time gives the same signature and certificate, also after a restart; so what was
    interrupted leaves nothing behind in the log when it is done again.

    Args:
        authority: Its keys.
        leaves: What the log has taken in.
        identity: Whom its certificates name; see `identity_of`.
        now: The clock.

    Raises:
        RefusedError: No certificate can name that identity.
    """

    def __init__(
        self, authority: Authority, leaves: Leaves, *, identity: str, now: Callable[[], datetime] = SystemClock().now
    ) -> None:
        if not is_plain(identity, ISSUER):
            raise RefusedError("identity: expected an address or a URI in ASCII without spaces, got another", reason="NoIdentity")
        self.authority, self._identity, self._now = authority, identity, now
        self.log = Log(leaves, authority.log.sign, log_id=authority.log.key_id, origin=_origin(authority), now=now)
        self._lock = threading.Lock()
        self._slot = -1
        self._key: SigningKey | None = None
        self._certificate = b""

    @property
    def identity(self) -> tuple[str, str]:
        """Whom the certificates name, and who vouches for that."""
        return self._identity, ISSUER

    def sign_artifact(self, data: bytes) -> dict[str, Any]:
        """Sign bytes: a bundle with the signature of their digest.

        Raises:
            OutsideError: The log cannot keep it now; signing again is right.
            TrustError: The log is another one than before.
        """
        key, certificate = self._ready()
        digest, signature = hashlib.sha256(data).digest(), key.sign(data)
        (logged,) = self.log.add([artifact_body(digest, signature, certificate)])
        signed = {"messageDigest": {"algorithm": "SHA2_256", "digest": _text64(digest)}, "signature": _text64(signature)}
        return {**_bundle(certificate, logged.in_bundle()), "messageSignature": signed}

    def sign_statement(self, statement: bytes) -> bytes:
        """Sign an in-toto statement: a bundle with an envelope around exactly these bytes.

        Raises:
            OutsideError: The log cannot keep it now; signing again is right.
            TrustError: It is no such statement, or the log is another one than before.
        """
        return self.sign_statements([statement])[0]

    def sign_statements(self, statements: Sequence[bytes]) -> tuple[bytes, ...]:
        """Sign several statements that the log takes in together: with the ledger's branch far away, that saves pushes.

        Raises:
            OutsideError: As `sign_statement`.
            TrustError: As `sign_statement`.
        """
        for statement in statements:
            _check_statement(statement)
        key, certificate = self._ready()
        envelopes = [envelope_of(statement, key.sign(envelope_data(IN_TOTO, statement))) for statement in statements]
        logged = self.log.add([envelope_body(envelope, certificate) for envelope in envelopes])
        return tuple(
            canonical({**_bundle(certificate, entry.in_bundle()), "dsseEnvelope": envelope})
            for envelope, entry in zip(envelopes, logged, strict=True)
        )

    def trusted_root(self) -> str:
        """What whoever verifies has to know, as JSON."""
        return root_of(self.authority)

    def trust_config(self, url: str, log_url: str = "") -> str:
        """What whoever signs here has to know: the trusted root, and where authority and log are served.

        Args:
            url: Where the authority is; clients ask `/api/v2/signingCert` there, and pass over a path that it has.
            log_url: Where the log is; empty: at the same place.
        """
        began = {"start": _instant(self.authority.since)}

        def served(at: str) -> list[dict[str, Any]]:
            return [{"url": at, "majorApiVersion": 1, "validFor": began, "operator": "myelin"}]

        services = {
            "mediaType": SIGNING_CONFIG,
            "caUrls": served(url),
            "oidcUrls": served(url),
            "rekorTlogUrls": served(log_url or url),
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [],
            "tsaConfig": {"selector": "ANY"},
        }
        root = _trusted_root(self.authority)
        return canonical({"mediaType": TRUST_CONFIG, "trustedRoot": root, "signingConfig": services}).decode()

    def _ready(self) -> tuple[SigningKey, bytes]:
        """The key of this stretch of time, and its certificate (DER)."""
        with self._lock:
            slot = int(self._now().timestamp()) // SLOT_SECONDS
            if self._key is None or slot != self._slot:
                key = self.authority.short_lived(slot)
                # The first stretch begins before the authority does.
                began = max(datetime.fromtimestamp(slot * SLOT_SECONDS, UTC), self.authority.since)
                self._certificate = self.authority.issue(key.public_der, self._identity, ISSUER, began)
                self._key, self._slot = key, slot
            return self._key, self._certificate


def identity_of(namespace: str, project: str) -> str:
    """Whom the certificates of a project's controller name."""
    return f"https://myelin/{namespace}/{project}"


def root_of(authority: Authority) -> str:
    """What whoever verifies what it vouched for has to know: the trusted root, as JSON."""
    return canonical(_trusted_root(authority)).decode()


def merged_roots(root: str, *older: str) -> str:
    """A trusted root that also trusts what older ones vouched for: after an authority was renewed.

    Raises:
        TrustError: One is no trusted root.
    """
    try:
        whole = json.loads(root)
        for text in older:
            for name, items in json.loads(text).items():
                if isinstance(items, list):
                    whole[name] = [*whole.get(name, []), *(item for item in items if item not in whole.get(name, []))]
    except (ValueError, AttributeError, TypeError) as error:
        raise TrustError("sigstore: expected trusted roots as JSON, got another text", reason="NoRoot") from error
    return canonical(whole).decode()


def artifact_body(digest: bytes, signature: bytes, certificate: bytes) -> bytes:
    """The log's entry (`hashedrekord`) for the signature of a SHA-256 digest."""
    spec = {
        "data": {"hash": {"algorithm": "sha256", "value": digest.hex()}},
        "signature": {"content": _text64(signature), "publicKey": {"content": _shown(certificate)}},
    }
    return canonical({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec})


def envelope_body(envelope: Mapping[str, Any], certificate: bytes, raw: bytes = b"") -> bytes:
    """The log's entry (`dsse`) for an envelope.

    Args:
        envelope: The envelope.
        certificate: Of who signed it, as DER.
        raw: Its bytes as they came; empty: those of its canonical form.
    """
    spec = {
        "envelopeHash": _sha256(raw or canonical(envelope)),
        "payloadHash": _sha256(base64.b64decode(envelope["payload"])),
        "signatures": [{"signature": item["sig"], "verifier": _shown(certificate)} for item in envelope["signatures"]],
    }
    return canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})


def envelope_data(kind: str, payload: bytes) -> bytes:
    """What is signed of an envelope: the pre-authentication encoding of DSSE."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def envelope_of(statement: bytes, signature: bytes) -> dict[str, Any]:
    """A signed statement's envelope."""
    return {"payload": _text64(statement), "payloadType": IN_TOTO, "signatures": [{"sig": _text64(signature)}]}


def _check_statement(statement: bytes) -> None:
    try:
        said = json.loads(statement)
        is_one = said["_type"] == STATEMENT and bool(said["subject"]) and isinstance(said["predicateType"], str)
    except (ValueError, KeyError, TypeError):
        is_one = False
    if not is_one:
        raise TrustError("the statement: expected an in-toto statement with a subject, got something else", reason="NoStatement")


def _bundle(certificate: bytes, entry: Mapping[str, Any]) -> dict[str, Any]:
    material = {"certificate": {"rawBytes": _text64(certificate)}, "tlogEntries": [entry]}
    return {"mediaType": BUNDLE, "verificationMaterial": material}


def _trusted_root(authority: Authority) -> dict[str, Any]:
    began = {"start": _instant(authority.since)}

    def log(public_der: bytes, url: str) -> dict[str, Any]:
        public = {"rawBytes": _text64(public_der), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": began}
        named = {"keyId": _text64(hashlib.sha256(public_der).digest())}
        return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": named}

    held = {
        "subject": {"organization": "Myelin", "commonName": f"authority {authority.name}"},
        "uri": f"https://authority-{authority.name}.myelin",
        "certChain": {"certificates": [{"rawBytes": _text64(authority.certificate_der)}]},
        "validFor": began,
    }
    return {
        "mediaType": TRUSTED_ROOT,
        "tlogs": [log(authority.log.public_der, f"https://{_origin(authority)}")],
        "certificateAuthorities": [held],
        "ctlogs": [log(authority.certificate_log_der, f"https://certificates-{authority.name}.myelin")],
        "timestampAuthorities": [],
    }


def _origin(authority: Authority) -> str:
    """What the log is called. It is no address: a name that stays whatever address it is served at."""
    return f"log-{authority.name}.myelin"


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sha256(data: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}


def _shown(certificate: bytes) -> str:
    return _text64(pem(certificate, "CERTIFICATE").encode())


def _text64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
