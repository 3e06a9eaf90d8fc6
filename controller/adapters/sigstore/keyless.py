"""The second door to Sigstore: signs with a certificate for minutes in place of a key for years, and verifies such signatures.

Signing asks a certificate authority (Fulcio) and a transparency log (Rekor). Verifying asks nobody. Neither ever shows the token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from controller.adapters.clock import SystemClock
from controller.adapters.signatures.gitsign import trusted_root
from policies.errors import ControllerError, OutsideError, RefusedError, SilentError, TrustError

if TYPE_CHECKING:
    from sigstore.models import Bundle, ClientTrustConfig
    from sigstore.sign import Signer, SigningContext
    from sigstore.verify import Verifier
    from sigstore.verify.policy import VerificationPolicy

IN_TOTO = "application/vnd.in-toto+json"
ANSWER_SECONDS = 30.0
"""How long Fulcio or Rekor may be silent; sigstore-python itself would wait for ever."""
RENEWED_SECONDS = 60
"""A certificate is not used in its last minute: the log's clock decides whether it still counts."""
LARGEST_BUNDLE_BYTES = 16 << 20
LARGEST_CONFIG_BYTES = 1 << 20
SAN, ISSUER, ISSUER_OLD = "2.5.29.17", "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.1"
"""Extensions that say whom a certificate names, and who vouched for that."""
IN_CLUSTER = (".svc", ".svc.cluster.local")
"""Names that only pods of the same cluster reach: there, http will do."""
PASSING = (408, 425, 429)
"""Statuses below 500 that another try may get over."""
CONFIG = ("sigstore", "a client trust configuration as JSON")
"""What a configuration is to be."""
HOW_TO_GET_A_TOKEN = "give an identity token for the audience `sigstore` that has not ended"


class Keyless:
    """Signs by a Sigstore instance, as whoever the identity token says.

    One certificate serves until its last minute. Then a token is asked for anew, so it may be a file that somebody rotates.

    Args:
        config: The instance, as a ClientTrustConfig in JSON; empty: the public good one, whose addresses come by TUF.
        token: Gives an OpenID Connect identity token for the audience `sigstore`.
        now: The clock.
    """

    def __init__(self, config: str, token: Callable[[], str], *, now: Callable[[], datetime] = SystemClock().now) -> None:
        self._config, self._token, self._now = config, token, now
        self._lock = threading.Lock()
        self._made: _Made | None = None

    def __repr__(self) -> str:
        return "Keyless(***)"

    @property
    def identity(self) -> tuple[str, str]:
        """Whom the certificate names, and who vouched for that; a certificate is asked for where there is none yet.

        Raises:
            OutsideError: There is no certificate to be had.
            TrustError: The configuration cannot be read, or the certificate is not one of that instance.
        """
        return self._ready().identity

    def sign_artifact(self, data: bytes) -> dict[str, Any]:
        """Sign bytes: a bundle with the signature of their digest (`hashedrekord`).

        Raises:
            OutsideError: Fulcio or Rekor said no or nothing; it may be done again, and is another entry of the log then.
            TrustError: What they answered does not hold by the instance's own root.
        """
        made, bundle = self._signed(lambda signer: signer.sign_artifact(data))
        with _distrusted("what was just signed"):
            made.verifier.verify_artifact(data, bundle, _named(*made.identity))
        return dict(json.loads(bundle.to_json()))

    def sign_statement(self, statement: bytes) -> bytes:
        """Sign an in-toto statement: a bundle with an envelope around exactly these bytes.

        Raises:
            OutsideError: As `sign_artifact`.
            TrustError: As `sign_artifact`; or it is no such statement.
        """
        from sigstore.dsse import Statement

        with _distrusted("the statement", "an in-toto statement"):
            whole = Statement(statement)
        made, bundle = self._signed(lambda signer: signer.sign_dsse(whole))
        with _distrusted("what was just signed"):
            made.verifier.verify_dsse(bundle, _named(*made.identity))
        return bundle.to_json().encode()

    def sign_statements(self, statements: Sequence[bytes]) -> tuple[bytes, ...]:
        """Sign several statements, one after the other.

        Raises:
            OutsideError: As `sign_statement`.
            TrustError: As `sign_statement`.
        """
        return tuple(map(self.sign_statement, statements))

    def _signed(self, act: Callable[[Signer], Bundle]) -> tuple[_Made, Bundle]:
        made = self._ready()
        # Rekor's connection belongs to the thread, so its patience is set in the thread that signs.
        _bound(made.context._rekor)
        with _asking(f"transparency log at {_host(made.log)}", f"{_host(made.log)} has to accept entries of this instance"):
            return made, act(made.signer)

    def _ready(self) -> _Made:
        """Signer and certificate that are good for another minute."""
        with self._lock:
            if self._made is None or self._now() >= self._made.until:
                self._made = self._make()
            return self._made

    def _make(self) -> _Made:
        from sigstore.oidc import IdentityToken
        from sigstore.sign import Signer, SigningContext
        from sigstore.verify import Verifier

        config = _trust_config(self._config)
        with _distrusted(*CONFIG):
            context = SigningContext.from_trust_config(config)
            verifier = Verifier(trusted_root=config.trusted_root)
        authority = context._fulcio.url
        _check_private(authority)
        _bound(context._fulcio)
        raw = self._token().strip()
        try:
            token = IdentityToken(raw)
        except Exception:  # noqa: BLE001  whatever its parser says; it may quote the token, so nothing of that is kept
            text = f"identity token: expected one that {_host(authority)} takes, got none or one that has ended"
            raise RefusedError(f"{text}; {HOW_TO_GET_A_TOKEN}", reason="NoToken") from None
        with _asking(f"certificate authority at {_host(authority)}", HOW_TO_GET_A_TOKEN):
            signer = Signer(token, context)
            certificate = signer._signing_cert()
        with _distrusted("the certificate that was just given"):
            identity = _identity(certificate)
        until = certificate.not_valid_after_utc - timedelta(seconds=RENEWED_SECONDS)
        return _Made(context, signer, verifier, identity, until, getattr(context._rekor, "url", ""))


class _Made:
    """What one certificate brings along."""

    __slots__ = ("context", "identity", "log", "signer", "until", "verifier")

    def __init__(
        self,
        context: SigningContext,
        signer: Signer,
        verifier: Verifier,
        identity: tuple[str, str],
        until: datetime,
        log: str,
    ) -> None:
        self.context, self.signer, self.verifier = context, signer, verifier
        self.identity, self.until, self.log = identity, until, log


class KeylessRoot:
    """Verifies what one Sigstore instance vouched for, offline.

    Args:
        root: Its trusted root as JSON, or the client trust configuration that holds it; empty: that of the public good
            instance, as sigstore-python brings it.

    Raises:
        TrustError: It is no such root.
    """

    def __init__(self, root: str = "") -> None:
        from sigstore.verify import Verifier

        held = trusted_root(_root_in(root))
        with _distrusted("sigstore", "a trusted root as JSON"):
            self._verifier = Verifier(trusted_root=held)
            # Its keys are asked for at each verification and would be read anew each time; they do not change.
            held.rekor_keyring = lru_cache(maxsize=None)(held.rekor_keyring)  # type: ignore[method-assign]
            held.ct_keyring = lru_cache(maxsize=None)(held.ct_keyring)  # type: ignore[method-assign]

    def verify_statement(self, bundle: bytes, identity: str, issuer: str) -> bytes:
        """The in-toto statement in a bundle, if it was signed by that identity and logged while the certificate held.

        Raises:
            TrustError: It was not; the message says which proof does not hold.
        """
        with _distrusted("the signature"):
            kind, payload = self._verifier.verify_dsse(_bundle(bundle), _named(identity, issuer))
            if kind != IN_TOTO:
                raise ValueError(f"expected a payload of {IN_TOTO}, got {kind[:100]}")
        return payload

    def verify_artifact(self, bundle: bytes, data: bytes, identity: str, issuer: str) -> None:
        """See that a bundle holds that identity's signature of `data`, logged while the certificate held.

        Raises:
            TrustError: It does not.
        """
        with _distrusted("the signature"):
            self._verifier.verify_artifact(data, _bundle(bundle), _named(identity, issuer))


@lru_cache(maxsize=16)
def keyless_root(root: str) -> KeylessRoot:
    """The verifier for a root, made once for each.

    Raises:
        TrustError: It is no trusted root.
    """
    return KeylessRoot(root)


def verify_statement(bundle: bytes, root: str, identity: str, issuer: str) -> bytes:
    """The in-toto statement in a bundle, verified by a trusted root; see `KeylessRoot.verify_statement`.

    Raises:
        TrustError: It does not hold.
    """
    return keyless_root(root).verify_statement(bundle, identity, issuer)


def token_in(path: Path) -> Callable[[], str]:
    """Gives the identity token that lies in a file, read anew each time, as it may be rotated: a cluster's projected token.

    Args:
        path: The file; asking for the token raises `RefusedError` where it cannot be read.
    """

    def read() -> str:
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "other bytes"
            raise RefusedError(f"{path}: expected an identity token, got {why}; {HOW_TO_GET_A_TOKEN}", reason="NoToken") from None

    return read


def signer_of(bundle: bytes) -> tuple[str, str]:
    """Whom the certificate of a bundle names, and who vouched for that; a claim, until somebody verifies it.

    Raises:
        TrustError: It is no bundle with a certificate.
    """
    with _distrusted("the signature"):
        return _identity(_bundle(bundle).signing_certificate)


def trusted_root_of(config: str) -> str:
    """The trusted root in a client trust configuration, as JSON; empty for the public good instance.

    Raises:
        TrustError: It is no such configuration.
    """
    if not config:
        return ""
    with _distrusted(*CONFIG):
        return json.dumps(json.loads(config)["trustedRoot"], sort_keys=True, separators=(",", ":"))


def check_config(config: str) -> None:
    """See that a client trust configuration can be read and names services that this version can use.

    Raises:
        TrustError: It does not.
    """
    if config:
        read = _trust_config(config)
        with _distrusted(*CONFIG):
            services = read.signing_config
            services.get_fulcio()
            services.get_tlogs()
            read.trusted_root.get_fulcio_certs()


def _root_in(text: str) -> str:
    return trusted_root_of(text) if '"trustedRoot"' in text else text


def _trust_config(text: str) -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    if not text:
        with _asking("the public good instance's TUF repository", "it has to be reachable, or name another instance"):
            return ClientTrustConfig.production()
    with _distrusted(*CONFIG):
        if len(text) > LARGEST_CONFIG_BYTES:
            raise ValueError(f"it has more than {LARGEST_CONFIG_BYTES} characters")
        return ClientTrustConfig.from_json(text)


def _bundle(raw: bytes) -> Bundle:
    from sigstore.models import Bundle

    if len(raw) > LARGEST_BUNDLE_BYTES:
        raise ValueError(f"it has more than {LARGEST_BUNDLE_BYTES} bytes")
    return Bundle.from_json(raw)


def _named(identity: str, issuer: str) -> VerificationPolicy:
    from sigstore.verify.policy import AllOf, AnyOf, Identity, OIDCIssuer, OIDCIssuerV2

    if not identity or not issuer:
        raise TrustError("signer: expected an identity and its issuer, got none; name both", reason="NoIdentity")
    return AllOf([Identity(identity=identity), AnyOf([OIDCIssuerV2(issuer), OIDCIssuer(issuer)])])


def _identity(certificate: Any) -> tuple[str, str]:
    """Whom a certificate names, and who vouched for that."""
    held = {extension.oid.dotted_string: extension.value for extension in certificate.extensions}
    names = [name.value for name in held[SAN]]
    if len(names) != 1 or not isinstance(names[0], str):
        raise ValueError("expected a certificate for one address or URI")
    if ISSUER in held:
        issuer = _utf8_string(held[ISSUER].value)
    else:
        issuer = held[ISSUER_OLD].value.decode()
    return names[0], issuer


def _utf8_string(der: bytes) -> str:
    """The text of a DER UTF8String of at most 255 bytes."""
    head = 3 if der[1:2] == b"\x81" else 2
    if der[:1] != b"\x0c" or len(der) < head or len(der) - head != der[head - 1]:
        raise ValueError("expected the issuer as UTF8String")
    return der[head:].decode()


def _bound(client: Any) -> None:
    """Give the connections of one of sigstore-python's clients, which have no patience of their own, a bound."""
    session = getattr(client, "session", None) or client._session
    if not isinstance(session.request, partial):
        session.request = partial(session.request, timeout=ANSWER_SECONDS)


def _check_private(url: str) -> None:
    """See that a token may be sent there: whoever reads it on the way is that identity for as long as it holds."""
    parts = urlsplit(url)
    near = parts.hostname in ("localhost", "127.0.0.1", "::1") or (parts.hostname or "").endswith(IN_CLUSTER)
    if parts.scheme != "https" and not near:
        text = f"certificate authority at {_host(url)}: expected an https address, as a token is sent there, got {parts.scheme}"
        raise RefusedError(f"{text}; change caUrls of the client trust configuration", reason="Unencrypted")


def _host(url: str) -> str:
    """Where a service is, without user, path and query."""
    parts = urlsplit(url)
    return (parts.hostname or url or "an unknown place") + (f":{parts.port}" if parts.port else "")


@contextmanager
def _distrusted(what: str, expected: str = "a proof that holds") -> Iterator[None]:
    """Whatever a crafted text makes the libraries raise, it does not count."""
    try:
        yield
    except ControllerError:
        raise
    except Exception as error:
        text = f"{what}: expected {expected}, got another: {_said(error)}"
        raise TrustError(text, reason="NotSigned" if expected.startswith("a proof") else "NoRoot") from error


@contextmanager
def _asking(whom: str, needs: str) -> Iterator[None]:
    """Tell who said no from who said nothing."""
    from sigstore.errors import VerificationError

    try:
        yield
    except ControllerError:
        raise
    except VerificationError as error:
        text = f"{whom}: expected an answer that its trusted root vouches for, got another: {_said(error)}"
        raise TrustError(text, reason="NotSigned") from error
    except Exception as error:
        raise _translated(whom, needs, error) from error


def _said(error: Exception) -> str:
    """What a library said, on one line: where its second line says where, that too."""
    lines = [line.strip().rstrip(".") for line in str(error).strip().splitlines()] or [type(error).__name__]
    return ": ".join(lines[:2] if "validation error" in lines[0] else lines[:1])[:200]


def _translated(whom: str, needs: str, error: Exception) -> OutsideError:
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            if status >= 500 or status in PASSING:
                return SilentError(f"{whom}: expected an answer, got HTTP {status}; looking again")
            return RefusedError(f"{whom}: expected to be served, got HTTP {status}; {needs}")
        # What requests raises are OSErrors; sigstore-python wraps some of them.
        if isinstance(seen, OSError):
            return SilentError(f"{whom}: expected an answer within {ANSWER_SECONDS:g} s, got none; looking again")
        seen = seen.__cause__ or seen.__context__
    if type(error).__name__ == "TUFError":
        return SilentError(f"{whom}: expected an answer, got none; looking again")
    return RefusedError(f"{whom}: expected an answer that can be read, got {type(error).__name__}; {needs}", reason="Unreadable")
