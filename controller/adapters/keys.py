"""The door to cryptography: SSH signatures of commits and records, P-256 and Ed25519 signatures of images.

It never decides whom to trust, and no private key leaves it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from policies.errors import RefusedError, TrustError
from policies.terms.revision import Signature

BEGIN = "-----BEGIN SSH SIGNATURE-----"
END = "-----END SSH SIGNATURE-----"
MAGIC = b"SSHSIG"
ARMOR_COLUMNS = 70
"""What ssh-keygen wraps at."""
DIGESTS = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
SMALLEST_RSA_BITS = 2048
USER_PRESENT = 0x01
"""Flag of a security key: somebody touched it."""
CURVES: dict[bytes, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    b"nistp256": (ec.SECP256R1(), hashes.SHA256()),
    b"nistp384": (ec.SECP384R1(), hashes.SHA384()),
    b"nistp521": (ec.SECP521R1(), hashes.SHA512()),
}


class SshKey:
    """An Ed25519 key in OpenSSH's format: signs commits as Git does, and records."""

    __slots__ = ("_private", "_public")

    def __init__(self, private: ed25519.Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        self._public = raw.decode("ascii")

    def __repr__(self) -> str:
        return "SshKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @classmethod
    def generate(cls, path: Path) -> SshKey:
        """Make a key and keep it at `path`, for its owner's eyes only.

        Raises:
            RefusedError: Something is there already, or the folder cannot be written.
        """
        private = ed25519.Ed25519PrivateKey.generate()
        keep_private(path, private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, _bare()))
        return cls(private)

    @classmethod
    def load(cls, path: Path) -> SshKey:
        """Read a key made by `generate` or by `ssh-keygen -t ed25519` without passphrase.

        Raises:
            RefusedError: The file cannot be read, or others may read it.
            TrustError: It is no such key.
        """
        return cls.parse(read_private(path), str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> SshKey:
        """Read a key that lies at `where`, for messages.

        Raises:
            TrustError: It is no such key.
        """
        try:
            private = serialization.load_ssh_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            text = f"{where}: expected an OpenSSH key without passphrase, got another file; make one with `ssh-keygen -t ed25519`"
            raise TrustError(text, reason="NoKey") from error
        if not isinstance(private, ed25519.Ed25519PrivateKey):
            text = f"{where}: expected an ed25519 key, got another kind; make one with `ssh-keygen -t ed25519`"
            raise TrustError(text, reason="NoKey")
        return cls(private)

    def public(self) -> str:
        """The public key as `ssh-ed25519 AAAA…`, without comment."""
        return self._public

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`, as ssh-keygen prints it."""
        return fingerprint(self._public)

    def sign(self, data: bytes) -> str:
        """Base64 of the Ed25519 signature over `data`."""
        return base64.b64encode(self._private.sign(data)).decode("ascii")

    def is_signed(self, data: bytes, signature: str, public: str) -> bool:
        """Whether `signature` over `data` was made by the holder of `public`, an ed25519 key."""
        return is_signed(data, signature, public)

    def sign_commit(self, data: bytes) -> str:
        """An armored signature over a commit, as Git stores one."""
        return self.sign_ssh(data)

    def sign_ssh(self, data: bytes, *, namespace: str = "git") -> str:
        """An armored SSH signature over `data`, as `ssh-keygen -Y sign` makes it.

        Args:
            data: What to sign.
            namespace: What the signature is for; Git's commits say `git`.
        """
        digest = hashlib.sha512(data).digest()
        raw = self._private.sign(MAGIC + _string(namespace.encode()) + _string(b"") + _string(b"sha512") + _string(digest))
        blob = base64.b64decode(self._public.split()[1])
        body = MAGIC + (1).to_bytes(4, "big") + _string(blob) + _string(namespace.encode()) + _string(b"") + _string(b"sha512")
        body += _string(_string(b"ssh-ed25519") + _string(raw))
        text = base64.b64encode(body).decode("ascii")
        lines = [text[start : start + ARMOR_COLUMNS] for start in range(0, len(text), ARMOR_COLUMNS)]
        return "\n".join([BEGIN, *lines, END, ""])


def is_signed(data: bytes, signature: str, public: str) -> bool:
    """Whether a base64 `signature` over `data` was made by the holder of `public`, an ed25519 key."""
    return signed_by([public])(data, signature)


def signed_by(public_keys: Iterable[str]) -> Callable[[bytes, str], bool]:
    """Tells whether a base64 signature over bytes was made by a holder of one of these keys; what is no ed25519 key never did.

    Made once for many signatures. It may be asked by several threads, which then work side by side.
    """
    known = [key for public in public_keys if (key := _ed25519(public)) is not None]

    def told(data: bytes, signature: str) -> bool:
        for key in known:
            try:
                key.verify(base64.b64decode(signature, validate=True), data)
            except (ValueError, InvalidSignature):
                continue
            return True
        return False

    return told


def _ed25519(public: str) -> ed25519.Ed25519PublicKey | None:
    try:
        key = serialization.load_ssh_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ed25519.Ed25519PublicKey) else None


def fingerprint(public: str) -> str:
    """`SHA256:<base64>` of a public key `ssh-… AAAA…`, as ssh-keygen prints it; empty when it is no such key."""
    try:
        blob = base64.b64decode(public.split()[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def read_signature(armored: str, data: bytes, *, namespace: str = "git") -> Signature:
    """What an armored signature says of `data`, before anybody decides to trust it.

    Anything but a well-formed SSH signature for `namespace`, with a sound algorithm, comes back as not valid.
    """
    try:
        blob, signed_for, algorithm, proof = _parse(armored)
    except (ValueError, binascii.Error):
        return Signature(key="", fingerprint="", valid=False)
    try:
        name = _Reader(blob).string().decode("ascii")
    except ValueError:
        return Signature(key="", fingerprint="", valid=False)
    key = f"{name} {base64.b64encode(blob).decode('ascii')}"
    valid = False
    if signed_for == namespace.encode() and algorithm in DIGESTS:
        digest = DIGESTS[algorithm](data).digest()
        message = MAGIC + _string(signed_for) + _string(b"") + _string(algorithm) + _string(digest)
        try:
            _verify(blob, proof, message)
            valid = True
        except (ValueError, InvalidSignature, UnsupportedAlgorithm):
            valid = False
    return Signature(key=key, fingerprint=fingerprint(key), valid=valid)


@runtime_checkable
class ImageSigner(Protocol):
    """What signs images, wherever its private half lies."""

    @property
    def public_pem(self) -> str:
        """The public key, SubjectPublicKeyInfo as PEM."""
        ...

    @property
    def hint(self) -> str:
        """Base64 of the SHA-256 of the public key's DER: how cosign names a key."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`, as cosign reads it.

        Raises:
            OutsideError: What holds the key said no or nothing; a key in a file never does.
        """
        ...


ImageKeyKind = Literal["p256", "ed25519"]


class ImageKey:
    """A P-256 or Ed25519 key in PKCS#8 PEM, which signs images. Signing twice gives the same bytes."""

    __slots__ = ("_private", "_public")

    def __init__(self, private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._private = private
        self._public = _as_pem(private.public_key())

    def __repr__(self) -> str:
        return "ImageKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @classmethod
    def generate(cls, path: Path, kind: ImageKeyKind = "p256") -> ImageKey:
        """Make a key and keep it at `path`, for its owner's eyes only.

        Raises:
            RefusedError: Something is there already, or the folder cannot be written.
        """
        private = ec.generate_private_key(ec.SECP256R1()) if kind == "p256" else ed25519.Ed25519PrivateKey.generate()
        keep_private(path, private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, _bare()))
        return cls(private)

    @classmethod
    def load(cls, path: Path) -> ImageKey:
        """Read a key made by `generate`, or by `openssl genpkey`.

        Raises:
            RefusedError: The file cannot be read, or others may read it.
            TrustError: It is no such key.
        """
        return cls.parse(read_private(path), str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> ImageKey:
        """Read a key that lies at `where`, for messages.

        Raises:
            TrustError: It is no such key.
        """
        expected = f"{where}: expected a P-256 or Ed25519 key as PKCS#8 PEM"
        if b"ENCRYPTED SIGSTORE PRIVATE KEY" in content or b"ENCRYPTED COSIGN PRIVATE KEY" in content:
            text = f"{expected}, got cosign's own encrypted kind, which is read under the name cosign.key"
            raise TrustError(text, reason="NoKey")
        try:
            private = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustError(f"{expected}, got something else or one with a password", reason="NoKey") from error
        if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
            return cls(private)
        if isinstance(private, ed25519.Ed25519PrivateKey):
            return cls(private)
        raise TrustError(f"{expected}, got another kind of key", reason="NoKey")

    @property
    def public_pem(self) -> str:
        """The public key, SubjectPublicKeyInfo as PEM."""
        return self._public

    @property
    def hint(self) -> str:
        """Base64 of the SHA-256 of the public key's DER: how cosign names a key."""
        return hint_of(self._public)

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`: ECDSA (DER, SHA-256, RFC 6979) or Ed25519."""
        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            return self._private.sign(data)
        return self._private.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    @staticmethod
    def verify(public_pem: str | bytes, data: bytes, signature: bytes) -> bool:
        """Whether `signature` over `data` was made by the holder of `public_pem`.

        P-256 and Ed25519, as we have them; RSA from 2048 bits on, with which others sign their base images.
        """
        try:
            public = _image_public(public_pem if isinstance(public_pem, str) else public_pem.decode("ascii"))
            if isinstance(public, ed25519.Ed25519PublicKey):
                public.verify(signature, data)
            elif isinstance(public, rsa.RSAPublicKey):
                public.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except (ValueError, UnsupportedAlgorithm, InvalidSignature):
            return False
        return True


@lru_cache(maxsize=64)
def _image_public(pem: str) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey:
    public = serialization.load_pem_public_key(pem.encode())
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return public
    if isinstance(public, ed25519.Ed25519PublicKey):
        return public
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= SMALLEST_RSA_BITS:
        return public
    raise ValueError("another kind of key")


def image_public(pem: str, where: str) -> str:
    """A public key of images that somebody wrote at `where`, in its one form.

    Raises:
        TrustError: It is none: a key that never fits anything would look like an image that nobody signed.
    """
    try:
        public = _image_public(pem.strip() + "\n")
    except (ValueError, UnsupportedAlgorithm) as error:
        text = f"{where}: expected a public key as PEM, P-256 or Ed25519 (RSA from {SMALLEST_RSA_BITS} bits on), got another text"
        raise TrustError(f"{text}; `myelin keys show` prints one", reason="NoKey") from error
    return _as_pem(public)


def hint_of(public_pem: str) -> str:
    """Base64 of the SHA-256 of a public key's DER: how cosign names a key."""
    der = _image_public(public_pem).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode("ascii")


def public_of_point(kind: ImageKeyKind, point: bytes) -> str:
    """The public key as PEM whose point a token tells: uncompressed on P-256, 32 bytes of Ed25519.

    Raises:
        ValueError: It is no point of that curve.
    """
    if kind == "ed25519":
        return _as_pem(ed25519.Ed25519PublicKey.from_public_bytes(point))
    return _as_pem(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))


def as_der(raw: bytes) -> bytes:
    """An ECDSA signature as tokens write one, two numbers of equal length, as DER."""
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def _as_pem(public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey) -> str:
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode("ascii")


class _Reader:
    """Reads the length-prefixed strings of the SSH wire format (RFC 4251, section 5)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def end(self) -> None:
        if self.at != len(self.data):
            raise ValueError("more than expected")


def _parse(armored: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Public key, namespace, hash algorithm and signature of an armored SSH signature (OpenSSH's PROTOCOL.sshsig)."""
    lines = armored.strip().splitlines()
    if len(lines) < 3 or lines[0].strip() != BEGIN or lines[-1].strip() != END:
        raise ValueError("not an SSH signature")
    reader = _Reader(base64.b64decode("".join(line.strip() for line in lines[1:-1]), validate=True))
    if reader.take(len(MAGIC)) != MAGIC or reader.number() != 1:
        raise ValueError("not version 1")
    blob, namespace, _reserved, algorithm, proof = (reader.string() for _ in range(5))
    reader.end()
    return blob, namespace, algorithm, proof


def _verify(blob: bytes, proof: bytes, message: bytes) -> None:
    """Check one signature; RSA with SHA-1 (`ssh-rsa`) and DSA have no branch here, so they are refused."""
    public, signed = _Reader(blob), _Reader(proof)
    kind, algorithm, signature = public.string(), signed.string(), signed.string()
    if kind in (b"sk-ssh-ed25519@openssh.com", b"sk-ecdsa-sha2-nistp256@openssh.com"):
        flags = signed.take(1)
        counter = signed.take(4)
        if algorithm != kind or not flags[0] & USER_PRESENT:
            raise ValueError("nobody touched the security key")
        curve = public.string() if kind.startswith(b"sk-ecdsa") else b""
        point, application = public.string(), public.string()
        message = hashlib.sha256(application).digest() + flags + counter + hashlib.sha256(message).digest()
        if curve:
            _verify_ecdsa(curve, point, signature, message)
        else:
            ed25519.Ed25519PublicKey.from_public_bytes(point).verify(signature, message)
    elif kind == b"ssh-ed25519" and algorithm == kind:
        ed25519.Ed25519PublicKey.from_public_bytes(public.string()).verify(signature, message)
    elif kind.startswith(b"ecdsa-sha2-") and algorithm == kind:
        curve = public.string()
        if kind != b"ecdsa-sha2-" + curve:
            raise ValueError("two curves")
        _verify_ecdsa(curve, public.string(), signature, message)
    elif kind == b"ssh-rsa" and algorithm in (b"rsa-sha2-256", b"rsa-sha2-512"):
        exponent, modulus = (int.from_bytes(public.string(), "big") for _ in range(2))
        if modulus.bit_length() < SMALLEST_RSA_BITS:
            raise ValueError("too small")
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        size = (modulus.bit_length() + 7) // 8
        key.verify(
            signature.rjust(size, b"\0"),
            message,
            padding.PKCS1v15(),
            hashes.SHA256() if algorithm == b"rsa-sha2-256" else hashes.SHA512(),
        )
    else:
        raise ValueError("unknown algorithm")
    public.end()
    signed.end()


def _verify_ecdsa(curve: bytes, point: bytes, signature: bytes, message: bytes) -> None:
    if curve not in CURVES:
        raise ValueError("unknown curve")
    shape, digest = CURVES[curve]
    numbers = _Reader(signature)
    first, second = (int.from_bytes(numbers.string(), "big") for _ in range(2))
    numbers.end()
    public = ec.EllipticCurvePublicKey.from_encoded_point(shape, point)
    public.verify(encode_dss_signature(first, second), message, ec.ECDSA(digest))


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _bare() -> serialization.KeySerializationEncryption:
    return serialization.NoEncryption()


def read_private(path: Path) -> bytes:
    """The bytes of a secret.

    Raises:
        RefusedError: They cannot be read, or others may read them.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise RefusedError(f"{path}: expected a key that only its owner may read; run `chmod 600` on it", reason="OpenKey")
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path}: expected a private key, got {error.strerror or error}", reason="NoKey") from error


def keep_private(path: Path, content: bytes) -> None:
    """Write a secret: private from its first byte, whole or not at all, never over another."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".key-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)
        finally:
            os.unlink(name)
    except FileExistsError as error:
        raise RefusedError(f"{path}: expected no file; a key is never written over", reason="KeyExists") from error
    except OSError as error:
        raise RefusedError(f"{path}: expected to write a key, got {error.strerror or error}", reason="NoKey") from error
