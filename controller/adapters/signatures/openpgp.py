"""The door to OpenPGP: certificates of signers, detached signatures under them, and a key that makes some.

It never decides whom to trust, and knows no keyring: the certificates come from the pin and from lists of signers. No
private key leaves it.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from controller.adapters.keys import keep_private, read_private
from policies.errors import RefusedError, TrustError
from policies.terms.revision import Signature

if TYPE_CHECKING:
    from pysequoia import Cert, Tsk

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


def is_same(certificate: str, other: str) -> bool:
    """Whether two armored certificates are the same: every key, name and signature in them, whatever their armor says."""
    from pysequoia import Cert

    try:
        one, two = (Cert.from_bytes(text.encode()) for text in (certificate, other))
    except REFUSALS:
        return False
    return bytes(one) == bytes(two)


class OpenpgpKey:
    """An OpenPGP key without passphrase: signs commits as Git does with gpg."""

    __slots__ = ("_key", "_where", "certificate")

    def __init__(self, key: Tsk, where: str) -> None:
        self._key, self._where = key, where
        self.certificate = str(key.extract_certificate()).strip()
        """The public part, armored."""

    def __repr__(self) -> str:
        return "OpenpgpKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @classmethod
    def generate(cls, path: Path, user_id: str) -> OpenpgpKey:
        """Make a key that does not expire and keep it at `path`, for its owner's eyes only.

        Args:
            path: The file.
            user_id: `Name <address>`; a forge shows commits as verified whose committer has that address.

        Raises:
            RefusedError: Something is there already, or the folder cannot be written.
        """
        from pysequoia import Tsk

        key = Tsk.generate(user_id)
        keep_private(path, str(key).encode())
        return cls(key, str(path))

    @classmethod
    def load(cls, path: Path) -> OpenpgpKey:
        """Read a key made by `generate` or by `gpg --armor --export-secret-keys`.

        Raises:
            RefusedError: The file cannot be read, or others may read it.
            TrustError: It is no such key.
        """
        return cls.parse(read_private(path), str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> OpenpgpKey:
        """Read a key that lies at `where`, for messages. Whether it may sign, and needs no passphrase, `check` says.

        Raises:
            TrustError: It is no such key.
        """
        from pysequoia import Tsk
        from pysequoia.packet import PacketPile, Tag

        what = f"{where}: expected one secret key as `gpg --armor --export-secret-keys` writes it"
        try:
            if len(content) > LARGEST_CHARACTERS:
                raise TrustError(f"{what}, got more than {LARGEST_CHARACTERS} characters", reason="NoKey")
            tags = [packet.tag for packet in PacketPile.from_bytes(content)]
            if Tag.SecretKey not in tags and Tag.PublicKey in tags:
                raise TrustError(f"{what}, got its public part", reason="NoKey")
            if Tag.SecretKey not in tags or tags.count(Tag.SecretKey) > 1 or Tag.PublicKey in tags:
                raise TrustError(f"{what}, got something else", reason="NoKey")
            return cls(Tsk.from_bytes(content), where)
        except REFUSALS:
            # What the library says of a secret that it cannot read stays here.
            raise TrustError(f"{what}, got something else", reason="NoKey") from None

    def check(self) -> OpenpgpKey:
        """The same key, which may sign now.

        Raises:
            RefusedError: It may not: it needs a passphrase, has expired, is revoked, or is too weak.
        """
        known = Certificates()
        known.learn(self.certificate)
        found = known.read(self.sign_commit(b""), b"")
        if not found.valid:
            raise self._refused(found.fault)
        return self

    def sign_commit(self, data: bytes) -> str:
        """An armored signature over a commit, as Git stores one; made twice, it is never the same.

        Raises:
            RefusedError: The key may not sign, or not any more.
        """
        from pysequoia import SignatureMode, sign

        try:
            # Asked anew each time: a key may expire while the controller runs.
            return sign(self._key.signer(), data, mode=SignatureMode.DETACHED).decode()
        except REFUSALS as error:
            raise self._refused(_first_line(error)) from None

    def _refused(self, why: str) -> RefusedError:
        return RefusedError(
            f"{self._where}: expected an OpenPGP key without passphrase that may sign now, got one that may not ({why})",
            reason="NoKey",
        )


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
