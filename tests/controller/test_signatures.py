"""Signatures by OpenPGP and Sigstore, made by the real programs where they are here, and read by us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.adapters.clock import SystemClock
from controller.adapters.git import GitRepository
from controller.adapters.keys import SshKey
from controller.adapters.signatures import SignatureReader, split_tag
from controller.adapters.signatures.gitsign import Gitsign
from controller.adapters.signatures.logentry import entry_json
from controller.adapters.signatures.openpgp import Certificates, primary_fingerprint
from controller.trustfile import TrustFile, pin_of, read_trust, signature_reader, signers_of
from policies.errors import DesiredStateError, TrustError
from policies.terms.project import Signer
from policies.terms.revision import TrustedKey
from policies.trust import judge, judge_tag
from tests.fakes.sigstore import ISSUER, Instance

PROJECT = "apiVersion: myelin.io/v1alpha1\nkind: Project\nmetadata: {name: shop}\nspec:\n  trust:\n    signers:\n"
INSTANCE = Instance()
DATA = b"tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n\nmessage\n"
SIGNED = INSTANCE.sign(DATA, "ada@example.org")


def run(*args: str, cwd: Path, home: Path, stdin: bytes = b"", **more: str) -> bytes:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GNUPGHOME": str(home / "gnupg"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "you",
        "GIT_AUTHOR_EMAIL": "you@localhost",
        "GIT_COMMITTER_NAME": "you",
        "GIT_COMMITTER_EMAIL": "you@localhost",
        **more,
    }
    done = subprocess.run(args, cwd=cwd, env=environment, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class Gpg:
    """gpg with a home of its own."""

    def __init__(self, home: Path) -> None:
        if not shutil.which("gpg"):
            pytest.skip("gpg is not installed here")
        self.home = home
        (home / "gnupg").mkdir(mode=0o700, parents=True)

    def __call__(self, *args: str, at: str = "", stdin: bytes = b"") -> bytes:
        then = ["--faked-system-time", f"{at}!"] if at else []
        start = ["gpg", "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "", *then]
        return run(*start, *args, cwd=self.home, home=self.home, stdin=stdin)

    def key(self, name: str, *, kind: str = "ed25519", until: str = "never", at: str = "") -> str:
        """Make a key and return its certificate."""
        self("--quick-generate-key", name, kind, "sign", until, at=at)
        return self.certificate(name)

    def certificate(self, name: str) -> str:
        return self("--armor", "--export", name).decode()

    def sign(self, name: str, data: bytes = DATA, *more: str, at: str = "") -> str:
        return self("--armor", "--detach-sign", *more, "--local-user", name, at=at, stdin=data).decode()

    def close(self) -> None:
        run("gpgconf", "--kill", "all", cwd=self.home, home=self.home)


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    # A short path: gpg's agent listens on a socket below it.
    made = Gpg(tmp_path_factory.mktemp("g"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def keys(gpg: Gpg) -> SimpleNamespace:
    return SimpleNamespace(
        ada=gpg.key("ada"),
        rsa=gpg.key("rita", kind="rsa3072"),
        old=gpg.key("olga", until="20200201T000000", at="20200101T000000"),
    )


def read(certificates: str | list[str], armored: str, data: bytes = DATA) -> object:
    known = Certificates()
    for text in [certificates] if isinstance(certificates, str) else certificates:
        known.learn(text.strip())
    return known.read(armored, data)


# OpenPGP


@pytest.mark.parametrize("name", ["ada", "rita"])
def test_a_signature_by_gpg_holds_under_its_certificate_and_no_other(gpg: Gpg, keys: SimpleNamespace, name: str) -> None:
    own, other = (keys.ada, keys.rsa) if name == "ada" else (keys.rsa, keys.ada)
    armored = gpg.sign(name)
    found = read([own, other], armored)
    assert found.valid
    assert found.certificates == (own.strip(),)
    assert found.kind == "openpgp"
    assert found.key == f"openpgp {primary_fingerprint(own)}"
    assert abs(found.at - SystemClock().now()) < timedelta(minutes=1)
    assert not read(own, armored, DATA + b" ").valid
    stranger = read(other, armored)
    assert not stranger.valid
    assert "which is in no certificate of spec.trust.signers" in stranger.fault


def test_a_key_that_has_expired_signed_what_it_signed_before(gpg: Gpg, keys: SimpleNamespace) -> None:
    found = read(keys.old, gpg.sign("olga", at="20200115T000000"))
    assert found.valid
    assert found.at == datetime(2020, 1, 15, tzinfo=UTC)


def test_a_key_signs_nothing_after_it_has_expired(gpg: Gpg, keys: SimpleNamespace) -> None:
    gpg("--quick-set-expire", primary_fingerprint(keys.old), "0", at="20200116T000000")
    late = gpg.sign("olga", at="20200301T000000")
    assert read(gpg.certificate("olga"), late).valid
    refused = read(keys.old, late)
    assert not refused.valid
    assert "had expired on 2020-02-01; name the renewed one" in refused.fault


def test_a_subkey_signs_until_it_is_revoked(gpg: Gpg) -> None:
    whole = gpg.key("sue", at="20210101T000000")
    print_ = primary_fingerprint(whole)
    gpg("--quick-add-key", print_, "ed25519", "sign", "never", at="20210102T000000")
    with_subkey = gpg.certificate("sue")
    armored = gpg.sign("sue", at="20210103T000000")
    found = read([whole, with_subkey], armored)
    assert found.certificates == (with_subkey.strip(),)
    assert found.key != f"openpgp {print_}"
    assert not read(whole, armored).valid


def test_a_compromised_certificate_never_counts(gpg: Gpg) -> None:
    before = gpg.key("carl")
    armored = gpg.sign("carl")
    print_ = primary_fingerprint(before)
    revocation = (gpg.home / "gnupg" / "openpgp-revocs.d" / f"{print_}.rev").read_text().replace(":-----BEGIN", "-----BEGIN")
    gpg("--import", stdin=revocation[revocation.index("-----BEGIN") :].encode())
    after = gpg.certificate("carl")
    assert read(before, armored).valid
    refused = read(after, armored)
    assert not refused.valid
    assert "its certificate is revoked" in refused.fault
    assert read([before, after], armored).certificates == (before.strip(),)


def test_weak_and_loose_signatures_are_refused(gpg: Gpg, keys: SimpleNamespace) -> None:
    assert not read(keys.rsa, gpg.sign("rita", DATA, "--digest-algo", "SHA1")).valid
    text = read(keys.rsa, gpg.sign("rita", DATA, "--textmode"))
    assert (text.valid, text.key) == (False, "")
    both = read([keys.ada, keys.rsa], gpg.sign("rita", DATA, "--local-user", "ada"))
    assert not both.valid


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN PGP SIGNATURE-----", "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----"]
)
def test_what_is_no_openpgp_signature_is_none(text: str) -> None:
    found = read([], text)
    assert (found.valid, found.key) == (False, "")
    assert "\n" not in found.fault
    assert "backtrace" not in found.fault


def test_a_certificate_is_one_and_public(gpg: Gpg, keys: SimpleNamespace) -> None:
    assert len(primary_fingerprint(keys.ada)) == 40
    for text, fault in (
        ("A" * 40, "expected one as `gpg --armor --export` writes it"),
        (keys.ada + keys.rsa, "expected"),
        (gpg("--armor", "--export-secret-keys", "ada").decode(), "got a private key"),
    ):
        with pytest.raises(TrustError, match=fault):
            primary_fingerprint(text)


# Sigstore


def test_an_identity_signs_and_the_log_proves_when() -> None:
    for identity in ("ada@example.org", "https://forge.example/shop/release"):
        found = Gitsign(INSTANCE.root()).read(INSTANCE.sign(DATA, identity), DATA)
        assert found.valid, found.fault
        assert found.key == f"{identity} {ISSUER}"
        assert found.at == INSTANCE.now + timedelta(minutes=1)


SIGSTORE: dict[str, tuple[Callable[[], str], str]] = {
    "signed over other bytes": (lambda: INSTANCE.sign(b"other", "ada@example.org"), "was changed afterwards"),
    "the log's entry is not embedded": (lambda: INSTANCE.sign(DATA, "ada@example.org", embed=False), "cannot be checked offline"),
    "the log's entry is of another signature": (
        lambda: INSTANCE.sign(DATA, "ada@example.org", body_of=b"other"),
        "inclusion proof",
    ),
    "logged when the certificate was over": (
        lambda: INSTANCE.sign(DATA, "ada@example.org", logged_after=timedelta(minutes=11)),
        "certificate",
    ),
    "by another instance": (lambda: Instance().sign(DATA, "ada@example.org"), "certificate chain"),
    "an identity that is two words": (lambda: INSTANCE.sign(DATA, "https://forge.example/a b"), "without spaces"),
    "cut short": (lambda: INSTANCE.sign(DATA, "ada@example.org")[:-400], "does not hold"),
    "no message at all": (lambda: "-----BEGIN SIGNED MESSAGE-----\nAAAA\n-----END SIGNED MESSAGE-----", "does not hold"),
    "far too long": (lambda: "-----BEGIN SIGNED MESSAGE-----\n" + "A" * 70000, "more than 65536 characters"),
}


@pytest.mark.parametrize("case", SIGSTORE)
def test_a_signature_that_cannot_be_checked_offline_does_not_hold(case: str) -> None:
    make, fault = SIGSTORE[case]
    found = Gitsign(INSTANCE.root()).read(make(), DATA)
    assert not found.valid
    assert fault in found.fault
    assert "\n" not in found.fault


def test_the_public_good_root_comes_along_and_knows_nothing_of_ours() -> None:
    Gitsign().check_root()
    found = Gitsign().read(INSTANCE.sign(DATA, "ada@example.org"), DATA)
    assert not found.valid


def test_a_root_that_cannot_be_read_is_said_before_anything_is_judged() -> None:
    with pytest.raises(TrustError, match="sigstoreRoot: expected a trusted root of Sigstore as JSON"):
        pin_of(TrustFile(sigstore_root="{}"), "")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_byte_of_a_signature_can_be_changed_unnoticed(data: st.DataObject) -> None:
    """Whatever is flipped: what comes out is invalid, or it is what was signed."""
    armored = SIGNED
    at = data.draw(st.integers(40, 1800))
    letter = data.draw(st.sampled_from("ABCxyz019+/=\n "))
    found = Gitsign(INSTANCE.root()).read(armored[:at] + letter + armored[at + 1 :], DATA)
    assert not found.valid or found.key == f"ada@example.org {ISSUER}"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_log_entry_or_said_to_be_none(message: bytes) -> None:
    try:
        assert set(entry_json(message, b"")) >= {"logIndex", "inclusionProof"}
    except ValueError:
        pass


# Commits and tags of the real Git


class Clone:
    """A work tree of the real Git, and a mirror of ours beside it."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder / "clone", home
        self.folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main", ".")
        self.opened: list[GitRepository] = []

    def git(self, *args: str, stdin: bytes = b"", **more: str) -> str:
        return run("git", *args, cwd=self.folder, home=self.home, stdin=stdin, **more).decode().strip()

    def write(self, signers: list[str], **files: str) -> None:
        (self.folder / "myelin.yaml").write_text(PROJECT + "".join(signers))
        for name, text in files.items():
            (self.folder / name).write_text(text)
        self.git("add", "--all")

    def replace_tip(self, change: Callable[[bytes], bytes]) -> str:
        """Make a new tip of the branch out of the raw commit that it has."""
        raw = run("git", "cat-file", "commit", "HEAD", cwd=self.folder, home=self.home)
        made = self.git("hash-object", "-t", "commit", "-w", "--stdin", stdin=change(raw))
        self.git("update-ref", "refs/heads/main", made)
        return made

    def judged(self, trust: TrustFile) -> tuple[str, str, list[str]]:
        """Head, fault, and who signed, oldest first."""
        reader = signature_reader(trust)
        mirror = self.folder.parent / f"mirror-{len(self.opened)}"
        repository = GitRepository(str(self.folder), mirror, None, signers_of=reader.signers_of, read_signature=reader.read)
        self.opened.append(repository)
        facts = repository.facts(since=trust.since, until=repository.fetch("main"))
        state = judge(pin_of(trust, ""), facts, trusted=None)
        return state.head, state.fault, [state.signer_of.get(item.commit, "-") for item in facts]


@pytest.fixture
def clone(tmp_path: Path, gpg: Gpg) -> Iterator[Clone]:
    made = Clone(tmp_path, gpg.home)
    yield made
    for repository in made.opened:
        repository.close()


def listed(name: str, *lines: str) -> str:
    return f"      - name: {name}\n" + "".join(f"        {line}\n" for line in lines)


def block(certificate: str) -> str:
    return "openpgp: |\n" + "".join(f"          {line}\n" for line in certificate.strip().splitlines())


def with_signature(raw: bytes, armored: str) -> bytes:
    head, _, body = raw.partition(b"\n\n")
    return head + b"\ngpgsig " + armored.strip().replace("\n", "\n ").encode() + b"\n\n" + body


def test_commits_of_git_by_gpg_by_ssh_and_by_an_identity_follow_each_other(
    clone: Clone, gpg: Gpg, keys: SimpleNamespace, tmp_path: Path
) -> None:
    ssh = SshKey.generate(tmp_path / "ssh")
    signers = [listed("ada", block(keys.ada)), listed("sam", f"ssh: {ssh.public()}")]
    clone.write(signers)
    clone.git("-c", "user.signingKey=ada", "commit", "--quiet", "-S", "-m", "one")
    signers.append(listed("pipeline", "identity: ci@example.org", f"issuer: {ISSUER}"))
    clone.write(signers)
    clone.git("-c", "gpg.format=ssh", "-c", f"user.signingKey={tmp_path / 'ssh'}", "commit", "--quiet", "-S", "-m", "two")
    clone.write(signers, source="x")
    clone.git("commit", "--quiet", "-m", "three")
    tip = clone.replace_tip(lambda raw: with_signature(raw, INSTANCE.sign(raw, "ci@example.org")))
    trust = TrustFile(signers=(Signer(name="ada", openpgp=keys.ada),), sigstore_root=INSTANCE.root())
    assert clone.judged(trust) == (tip, "", ["ada", "sam", "pipeline"])
    # Another instance vouches for other people.
    head, fault, names = clone.judged(trust.model_copy(update={"sigstore_root": Instance().root()}))
    assert (head, names) != (tip, ["ada", "sam", "pipeline"])
    assert "the Sigstore signature of ci@example.org does not hold" in fault


def test_a_commit_of_gpg_that_was_changed_is_refused(clone: Clone, keys: SimpleNamespace) -> None:
    clone.write([listed("ada", block(keys.ada))])
    clone.git("-c", "user.signingKey=ada", "commit", "--quiet", "-S", "-m", "one")
    trust = TrustFile(signers=(Signer(name="ada", openpgp=keys.ada),))
    assert clone.judged(trust)[1] == ""
    clone.replace_tip(lambda raw: raw.replace(b"\n\none", b"\n\nother"))
    head, fault, _ = clone.judged(trust)
    assert head == ""
    assert "does not hold: what it signs was changed afterwards" in fault


def test_a_list_that_leaves_a_revocation_out_is_another_list(clone: Clone, gpg: Gpg) -> None:
    """Only the certificate that the list had before counts, not one that a commit brings along for itself."""
    gpg.key("mia")
    narrow = gpg.certificate("mia")
    gpg("--quick-add-key", primary_fingerprint(narrow), "ed25519", "sign", "never")
    wide = gpg.certificate("mia")
    clone.write([listed("mia", block(wide))])
    clone.git("-c", "user.signingKey=mia", "commit", "--quiet", "-S", "-m", "one")
    assert clone.judged(TrustFile(signers=(Signer(name="mia", openpgp=wide),)))[1] == ""
    head, fault, _ = clone.judged(TrustFile(signers=(Signer(name="mia", openpgp=narrow),)))
    assert head == ""
    assert "none of" in fault or "not the 1 key" in fault or "does not hold" in fault or "in no certificate" in fault


@pytest.mark.parametrize("kind", ["openpgp", "ssh", "sigstore"])
def test_signed_tags_of_git_are_read(clone: Clone, keys: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    ssh = SshKey.generate(tmp_path / "ssh")
    clone.write([], source="x")
    clone.git("commit", "--quiet", "-m", "one")
    if kind == "ssh":
        clone.git("-c", "gpg.format=ssh", "-c", f"user.signingKey={tmp_path / 'ssh'}", "tag", "-s", "-m", "first", "v1")
    elif kind == "openpgp":
        clone.git("-c", "user.signingKey=ada", "tag", "-s", "-m", "first", "v1")
    else:
        clone.git("tag", "-a", "-m", "first", "v1")
    raw = run("git", "cat-file", "tag", "v1", cwd=clone.folder, home=clone.home)
    if kind == "sigstore":
        raw += INSTANCE.sign(raw, "ci@example.org").encode()
    signers = signers_of(
        (
            PROJECT
            + listed("ada", block(keys.ada))
            + listed("sam", f"ssh: {ssh.public()}")
            + listed("pipeline", "identity: ci@example.org", f"issuer: {ISSUER}")
        ).encode()
    )
    reader = SignatureReader(signers, sigstore_root=INSTANCE.root())
    facts = reader.read_tag(raw)
    assert facts is not None
    assert facts.target == clone.git("rev-parse", "HEAD")
    who = {"openpgp": "ada", "ssh": "sam", "sigstore": "pipeline"}[kind]
    assert judge_tag(facts, signers, name="v1") == (who, "")
    assert judge_tag(facts, signers, name="v2")[0] == ""
    changed = reader.read_tag(raw.replace(b"first", b"other", 1))
    assert changed is not None
    assert judge_tag(changed, signers, name="v1")[0] == ""
    moved = reader.read_tag(raw.replace(facts.target.encode(), b"0" * 40, 1))
    assert moved is not None
    assert judge_tag(moved, signers, name="v1")[0] == ""


def test_what_is_no_annotated_tag_is_none_and_an_unsigned_one_has_no_signature() -> None:
    reader = SignatureReader()
    assert reader.read_tag(b"tree 00\n\nmessage") is None
    raw = b"object " + b"a" * 40 + b"\ntype commit\ntag v1\ntagger you <you@localhost> 99999999999999999999 +0000\n\nfirst\n"
    facts = reader.read_tag(raw)
    assert facts is not None
    assert facts.signature is None
    assert facts.at == datetime(1970, 1, 1, tzinfo=UTC)
    assert split_tag(raw) == (raw, "")


# The trust file, and a list


def test_a_trust_file_names_signers_of_every_kind_with_their_limits(tmp_path: Path, keys: SimpleNamespace) -> None:
    path = tmp_path / "trust.yaml"
    text = (
        "signers:\n"
        + listed("sam", "ssh: ssh-ed25519 AAAA sam@home", "paths: [docs/, axons/digits/axon.yaml]", "validFrom: 2026-01-01")
        + listed("ada", block(keys.ada), "validUntil: 2026-02-01T12:00:00Z")
        + listed("pipeline", "identity: ci@example.org", f"issuer: {ISSUER}", "revoked: moved")
        + "ancestors: false\n"
    )
    path.write_text(text)
    pin = pin_of(read_trust(path), "")
    assert not pin.ancestors
    assert pin.signers == (
        TrustedKey(
            name="sam",
            key="ssh-ed25519 AAAA",
            paths=("docs/", "axons/digits/axon.yaml"),
            valid_from=datetime(2026, 1, 1, tzinfo=UTC),
        ),
        TrustedKey(
            name="ada",
            kind="openpgp",
            key=f"openpgp {primary_fingerprint(keys.ada)}",
            certificate=keys.ada.strip(),
            valid_until=datetime(2026, 2, 1, 12, tzinfo=UTC),
        ),
        TrustedKey(name="pipeline", kind="sigstore", key=f"ci@example.org {ISSUER}", revoked="moved"),
    )


TRUST_FAULTS = {
    "two kinds of key": ("{name: a, ssh: ssh-ed25519 AAAA, openpgp: x}", "expected an armored OpenPGP certificate"),
    "no key": ("{name: a}", "signers[0]: expected exactly one of ssh, openpgp and identity"),
    "an identity without issuer": ("{name: a, identity: a@b}", "expected identity and issuer together"),
    "a fingerprint": ("{name: a, openpgp: 0123456789ABCDEF0123456789ABCDEF01234567}", "a fingerprint alone verifies nothing"),
    "a private key": ('{name: a, openpgp: "-----BEGIN PGP PRIVATE KEY BLOCK-----"}', "signers[0].openpgp: expected the public"),
    "no SSH key": ("{name: a, ssh: AAAA}", "signers[0].ssh: expected a public SSH key on one line"),
    "a time that ends before it begins": (
        "{name: a, ssh: ssh-ed25519 AAAA, validFrom: 2026-02-01, validUntil: 2026-01-01}",
        "signers[0]: expected validUntil after validFrom",
    ),
    "no instant": ("{name: a, ssh: ssh-ed25519 AAAA, validUntil: soon}", "signers[0].validUntil: "),
    "a pattern": ('{name: a, ssh: ssh-ed25519 AAAA, paths: ["docs/*"]}', "signers[0].paths: expected a folder or a file"),
    "the whole repository": ('{name: a, ssh: ssh-ed25519 AAAA, paths: ["/"]}', "signers[0].paths: expected a folder or a file"),
    "an unknown key": ("{name: a, ssh: ssh-ed25519 AAAA, path: docs}", "signers[0].path: expected a key that a trust file has"),
    "a name twice": (
        "{name: a, ssh: ssh-ed25519 AAAA}\n  - {name: a, ssh: ssh-ed25519 BBBB}",
        "expected each signer's name once",
    ),
    "a key twice": (
        "{name: a, ssh: ssh-ed25519 AAAA}\n  - {name: b, ssh: ssh-ed25519 AAAA again}",
        "expected each key once, got that of a again for b",
    ),
}


@pytest.mark.parametrize("case", TRUST_FAULTS)
def test_a_fault_of_a_trust_file_names_file_field_and_what_was_expected(tmp_path: Path, case: str) -> None:
    text, fault = TRUST_FAULTS[case]
    path = tmp_path / "trust.yaml"
    path.write_text(f"signers:\n  - {text}\n")
    with pytest.raises(DesiredStateError) as raised:
        read_trust(path)
    assert raised.value.message.startswith(f"trust file {path}: ")
    assert fault in raised.value.message


def test_a_certificate_that_cannot_be_read_is_named() -> None:
    broken = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----"
    with pytest.raises(TrustError, match="signer ada: OpenPGP certificate: expected one as"):
        pin_of(TrustFile(signers=(Signer(name="ada", openpgp=broken),)), "")
    assert signers_of((PROJECT + listed("ada", block(broken))).encode()) == ()


def test_heavy_libraries_come_with_the_first_signature_that_needs_them(tmp_path: Path) -> None:
    key = SshKey.generate(tmp_path / "key")
    code = (
        "import sys\n"
        "from controller.trustfile import TrustFile, signature_reader, pin_of\n"
        "from policies.terms.project import Signer\n"
        f"trust = TrustFile(signers=(Signer(name='you', ssh={key.public()!r}),))\n"
        "pin_of(trust, '')\n"
        f"assert signature_reader(trust).read({key.sign_ssh(DATA)!r}, {DATA!r}).valid\n"
        "print([name for name in ('sigstore', 'pysequoia', 'pyasn1', 'requests') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_signer_with_limits_is_the_same_signer() -> None:
    key = TrustedKey(name="a", key="ssh-ed25519 AAAA")
    assert replace(key, paths=("x",)) != key
    assert "certificate" not in repr(replace(key, certificate="long"))
