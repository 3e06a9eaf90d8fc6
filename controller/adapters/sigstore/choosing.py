"""Which identity a project's images and models are signed as: what lies beside its other keys decides.

A client trust configuration names an instance elsewhere, a seed is an embedded one. Neither is made by itself, and the key that
signs images goes on signing them: an identity signs in addition. Commits are never signed by the embedded instance, since its log
lies in commits of the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from controller.adapters.attest.signing import IdentitySigner
from controller.adapters.attest.verifying import Identity
from controller.adapters.keys import read_private
from controller.adapters.sigstore.authority import Authority
from controller.adapters.sigstore.embedded import ISSUER, Embedded, identity_of, root_of
from controller.adapters.sigstore.files import CONFIG, IDENTITY, SEED, TOKEN, TOKEN_VARIABLE
from controller.adapters.sigstore.keyless import Keyless, check_config, token_in, trusted_root_of
from controller.adapters.sigstore.leaves import LedgerLeaves
from controller.adapters.sigstore.turn import SIGNING_SECONDS, Turn
from policies.errors import RefusedError, TrustError
from reconcilers.ports import Clock, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Whom images and models are signed as, and by which instance."""

    identity: Identity
    """With the root that it is verified by."""
    authority: Authority | None = None
    """Of an embedded instance."""
    instance: Keyless | None = None
    """One elsewhere."""

    def __repr__(self) -> str:
        return f"Chosen({self.identity.identity})"

    def embedded(self, ledger: Ledger, clock: Clock) -> Embedded | None:
        """The embedded instance, with its log in a ledger; None where it is one elsewhere."""
        if self.authority is None:
            return None
        return Embedded(self.authority, LedgerLeaves(ledger), identity=self.identity.identity, now=clock.now)

    def signer(self, embedded: Embedded | None, turn: Turn) -> IdentitySigner:
        """Signs from any thread.

        Args:
            embedded: What `embedded` made.
            turn: Of the thread that the ledger belongs to.
        """
        named, root = (self.identity.identity, self.identity.issuer), self.identity.root
        if embedded is not None:
            return IdentitySigner(embedded, root, expected=named, in_turn=lambda act: turn(act, patience_seconds=SIGNING_SECONDS))
        assert self.instance is not None
        return IdentitySigner(self.instance, root, expected=named)


def chosen_in(folder: Path, clock: Clock, *, owner: tuple[str, str], environ: Mapping[str, str] = os.environ) -> Chosen | None:
    """Whom the files in a folder of keys make sign; None where there are none.

    Args:
        folder: The folder.
        clock: The clock.
        owner: Namespace and name of the project, which an embedded instance names.
        environ: The environment.

    Raises:
        RefusedError: Both lie there, or one cannot be read, or others may read a seed; or an instance that has to be asked
            says no.
        TrustError: A file is none of its kind.
        SilentError: The instance has to be asked and does not answer.
    """
    texts = {}
    for name in (CONFIG, IDENTITY, SEED):
        try:
            if (folder / name).exists():
                texts[name] = read_private(folder / name).decode() if name == SEED else (folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{folder / name}: expected a text that can be read", reason="NoConfig") from error
    return chosen_of(texts, clock, where=str(folder), token=Path(environ.get(TOKEN_VARIABLE) or folder / TOKEN), owner=owner)


def chosen_of(texts: Mapping[str, str], clock: Clock, *, where: str, token: Path, owner: tuple[str, str]) -> Chosen | None:
    """Whom texts by their names make sign; None where neither a configuration nor a seed is among them.

    Where no `sigstore.identity` says whom the instance elsewhere calls us, it is asked.

    Args:
        texts: By the names of files.
        clock: The clock.
        where: Where they lie, for messages.
        token: The identity token's file.
        owner: Namespace and name of the project.

    Raises:
        RefusedError: Both are there; or the instance says no.
        TrustError: A text is none of its kind.
        SilentError: The instance does not answer.
    """
    if CONFIG in texts and SEED in texts:
        text = f"{where}: expected {CONFIG} or {SEED}, got both; remove the one that is not to sign"
        raise RefusedError(text, reason="TwoKeys")
    if SEED in texts:
        authority = Authority.parse(texts[SEED].encode(), f"{where}: {SEED}")
        identity = Identity(identity=identity_of(*owner), issuer=ISSUER, root=root_of(authority))
        return Chosen(identity=identity, authority=authority)
    if CONFIG not in texts:
        return None
    config = texts[CONFIG].strip()
    check_config(config)
    instance = Keyless(config, token_in(token), now=clock.now)
    named = named_in(texts[IDENTITY], where) if IDENTITY in texts else instance.identity
    identity = Identity(identity=named[0], issuer=named[1], root=trusted_root_of(config))
    return Chosen(identity=identity, instance=instance)


def pinned_in(folder: Path, *, owner: tuple[str, str]) -> Identity | None:
    """Whom the files in a folder of keys name, without asking anybody; None where they do not say.

    Raises:
        RefusedError: A file cannot be read.
        TrustError: A file is none of its kind.
    """
    if (folder / SEED).exists():
        authority = Authority.load(folder / SEED)
        return Identity(identity=identity_of(*owner), issuer=ISSUER, root=root_of(authority))
    if not (folder / CONFIG).exists() or not (folder / IDENTITY).exists():
        return None
    named = named_in((folder / IDENTITY).read_text(), str(folder))
    return Identity(identity=named[0], issuer=named[1], root=trusted_root_of((folder / CONFIG).read_text().strip()))


def named_in(line: str, where: str) -> tuple[str, str]:
    """Identity and issuer in the text of a `sigstore.identity`.

    Raises:
        TrustError: It is another text.
    """
    words = line.split()
    if len(words) != 2:
        text = f"{where}: {IDENTITY}: expected one line `<identity> <issuer>`, which says whom certificates must name"
        raise TrustError(f"{text}, got {len(words)} words", reason="NoIdentity")
    return words[0], words[1]


def make_seed(folder: Path, now: datetime) -> Authority:
    """Make the seed of an embedded instance in a folder of keys.

    Raises:
        RefusedError: One is there already, or the folder cannot be written.
    """
    return Authority.generate(folder / SEED, now)
