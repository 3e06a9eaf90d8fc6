"""The door to OpenPGP: certificates of signers, and detached signatures under them.

It never decides whom to trust, and knows no keyring: the certificates come from the pin and from lists of signers.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

from policies.errors import TrustError
from policies.terms.revision import Signature

if TYPE_CHECKING:
    from pysequoia import Cert

BEGIN = ("-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP MESSAGE-----")
"""What Git takes for the beginning of one; gpg writes the first."""
LARGEST_CHARACTERS = 65536
"""Of an armored signature or certificate."""
CHANGED = "what it signs was changed afterwards, it is made in too weak a way, or that key might not sign then"
REFUSALS = (RuntimeError, ValueError, TypeError)
"""What the library reports as: all that it refuses is the first of these, whatever the reason."""


def primary_fingerprint(certificate: str) -> str:
    """The fingerprint of a certificate's primary key, 40 or 64 hexadecimal capitals.

    Raises:
        TrustError: It is no armored certificate, or holds a private key.
    """
    from pysequoia import Cert
    from pysequoia.packet import PacketPile, Tag

    try:
        if len(certificate) > LARGEST_CHARACTERS:
            raise RuntimeError(f"at most {LARGEST_CHARACTERS} characters")
        packets = list(PacketPile.from_bytes(certificate.encode()))
        cert = Cert.from_bytes(certificate.encode())
    except REFUSALS as error:
        text = f"OpenPGP certificate: expected one as `gpg --armor --export` writes it, got another text ({_first_line(error)})"
        raise TrustError(text, reason="NoKey") from error
    if any(packet.tag in (Tag.SecretKey, Tag.SecretSubkey) for packet in packets):
        raise TrustError("OpenPGP certificate: expected the public part, got a private key; never write one here", reason="NoKey")
    if sum(packet.tag == Tag.PublicKey for packet in packets) != 1:
        raise TrustError("OpenPGP certificate: expected exactly one, got several; give each signer their own", reason="NoKey")
    return str(cert.fingerprint).upper()


class Certificates:
    """Certificates by the keys that are in them."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[str]] = defaultdict(list)
        self._known: set[str] = set()
        self._certs: dict[str, Cert] = {}

    def learn(self, certificate: str) -> None:
        """Remember an armored certificate; one that cannot be read is passed over."""
        from pysequoia import Cert
        from pysequoia.packet import PacketPile, Tag

        if certificate in self._known or len(certificate) > LARGEST_CHARACTERS:
            return
        self._known.add(certificate)
        try:
            packets = list(PacketPile.from_bytes(certificate.encode()))
            self._certs[certificate] = Cert.from_bytes(certificate.encode())
        except REFUSALS:
            return
        for packet in packets:
            if packet.tag in (Tag.PublicKey, Tag.PublicSubkey):
                for name in (packet.fingerprint, packet.key_id):
                    if name and certificate not in self._by_key[name.upper()]:
                        self._by_key[name.upper()].append(certificate)

    def read(self, armored: str, data: bytes) -> Signature:
        """What an armored signature says of `data`, under the certificates that are known.

        A certificate's expiry and revocations count as of the time that the signature claims to be of; a key that was
        compromised never counts.
        """
        from pysequoia import Sig, verify
        from pysequoia.packet import PacketPile, SignatureType, Tag

        try:
            if len(armored) > LARGEST_CHARACTERS:
                raise RuntimeError(f"at most {LARGEST_CHARACTERS} characters")
            packets = list(PacketPile.from_bytes(armored.encode()))
            if len(packets) != 1 or packets[0].tag != Tag.Signature or packets[0].signature_type != SignatureType.Binary:
                # Of several, one could be good and another be shown; a signature over text leaves line ends open.
                raise RuntimeError("one signature over bytes")
            signature = Sig.from_bytes(armored.encode())
            name = (signature.issuer_fingerprint or signature.issuer_key_id or "").upper()
            created = signature.created
        except REFUSALS as error:
            return _unreadable(_first_line(error))
        if not name:
            return _unreadable("it does not say which key made it")
        key = f"openpgp {name}"
        candidates = self._by_key.get(name, [])
        if not candidates:
            fault = f"signed by the OpenPGP key {name}, which is in no certificate of spec.trust.signers"
            return Signature(kind="openpgp", key=key, fingerprint=name, valid=False, fault=fault, at=created)
        fits, why = [], ""
        for certificate in candidates:
            cert = self._certs[certificate]
            why = why or _why(cert.is_revoked, cert.expiration, created)
            try:
                found = verify(bytes=data, store=lambda _, cert=cert: [cert], signature=signature).valid_sigs
            except REFUSALS:
                continue  # for which reason, it does not say
            if found:
                fits.append(certificate)
                key = f"openpgp {str(found[0].signing_key).upper()}"
        if fits:
            return Signature(kind="openpgp", key=key, fingerprint=name, valid=True, at=created, certificates=tuple(fits))
        fault = f"the signature by the OpenPGP key {name} does not hold: {why or CHANGED}"
        return Signature(kind="openpgp", key=key, fingerprint=name, valid=False, fault=fault, at=created)


def _why(is_revoked: bool, expiration: datetime | None, created: datetime | None) -> str:
    if is_revoked:
        return "its certificate is revoked"
    if expiration is not None and created is not None and created >= expiration:
        return f"its certificate had expired on {expiration:%Y-%m-%d}; name the renewed one in spec.trust.signers"
    return ""


def _unreadable(why: str) -> Signature:
    return Signature(
        kind="openpgp", key="", fingerprint="", valid=False, fault=f"expected one readable OpenPGP signature, got another: {why}"
    )


def _first_line(error: Exception) -> str:
    # Behind it comes a stack trace of the library.
    return str(error).split("\n", 1)[0].strip().rstrip(".")[:120] or "unreadable"
