"""Keys in a commit: found with file, line and kind, never shown, looked at once, and nothing else is taken for one."""

from __future__ import annotations

import base64
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.adapters.build.scanning import Finding, ScannedBlobs, refuse_secrets, scan
from policies.errors import DesiredStateError

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"
DIGITS = "23456789"


def made(alphabet: str, count: int, seed: int = 7) -> str:
    """A string without an order that a rule could take for an example."""
    return "".join(random.Random(seed).choice(alphabet) for _ in range(count))


def pem(kind: str, *, headers: str = "") -> str:
    body = base64.b64encode(made(LETTERS, 150).encode()).decode()
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----{'BEGIN'} {kind}-----\n{headers}{lines}\n-----{'END'} {kind}-----\n"


def token(*parts: object) -> str:
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, made(LETTERS, 43)])


UPPER, LOWER, HEX = LETTERS.upper() + DIGITS, LETTERS.lower() + DIGITS, "0123456789abcdef"
MIXED = LETTERS + DIGITS
SEEDED: dict[str, tuple[str, str]] = {
    "an AWS access key": ("AWS Access Key", "AKIA" + made(UPPER, 16)),
    "an AWS secret key": ("AWS Access Key", f'aws_secret_access_key = "{made(MIXED, 40)}"'),
    "a GitHub token": ("GitHub Token", "ghp_" + made(MIXED, 36)),
    "a fine-grained GitHub token": ("GitHub Token", "github_pat_" + made(MIXED, 22) + "_" + made(MIXED, 59)),
    "a GitLab token": ("GitLab Token", "glpat-" + made(MIXED, 20)),
    "a Slack token": ("Slack Token", "xoxb-" + made(DIGITS, 12) + "-" + made(DIGITS, 12) + "-" + made(LOWER, 24)),
    "a Slack webhook": (
        "Slack Token",
        "https://hooks.slack.com/services/T" + made(UPPER, 8) + "/B" + made(UPPER, 8) + "/" + made(MIXED, 24),
    ),
    "a Slack app token": ("Slack Token", "xapp-1-" + made(UPPER, 11) + "-" + made(DIGITS, 13) + "-" + made(HEX, 64)),
    "a Stripe key": ("Stripe Access Key", "sk_" + "live_" + made(MIXED, 24)),
    "a private key": ("Private Key", pem("PRIVATE KEY")),
    "an encrypted private key": ("Private Key", pem("ENCRYPTED PRIVATE KEY")),
    "an RSA key with a password": (
        "Private Key",
        pem("RSA PRIVATE KEY", headers="Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"),
    ),
    "an OpenSSH key": ("Private Key", pem("OPENSSH PRIVATE KEY")),
    "an OpenPGP key": ("Private Key", pem("PGP PRIVATE KEY BLOCK")),
    "a JSON Web Token": ("JSON Web Token", "Bearer " + token({"alg": "HS256", "typ": "JWT"}, {"sub": "ada", "iat": 1})),
    "a password in an address": ("Basic Auth Credentials", "https://ada:" + made(MIXED, 12) + "@git.example/x.git"),
    "a service account": ("Private Key", json.dumps({"type": "service_account", "private_key": pem("PRIVATE KEY")}, indent=2)),
    "an Azure storage key": ("Azure Storage Account access key", "AccountKey=" + made(MIXED, 86) + "=="),
    "a Hugging Face token": ("Hugging Face Token", "hf_" + made(LETTERS, 34)),
    "a Google API key": ("Google API Key", "AIza" + made(MIXED, 35)),
    "an OpenAI key": ("OpenAI Token", "sk-" + made(MIXED, 20) + "T3Blbk" + "FJ" + made(MIXED, 20)),
    "an Anthropic key": ("Anthropic API Key", "sk-ant-" + "api03-" + made(MIXED, 95)),
    "an npm token": ("NPM tokens", "npm_" + made(MIXED, 36)),
    "an .npmrc": ("NPM tokens", "//registry.example/:_auth" + "Token=npm_" + made(MIXED, 20)),
    "a token for the package index": ("PyPI Token", "pypi-" + "AgEIcHlwaS5vcmc" + made(MIXED, 80)),
    "a Docker Hub token": ("Docker Hub Token", "dckr_" + "pat_" + made(MIXED, 27)),
    "a Databricks token": ("Databricks Token", "dapi" + made(HEX, 32)),
    "a SendGrid key": ("SendGrid API Key", "SG." + made(MIXED, 22) + "." + made(MIXED, 43)),
    "a Twilio key": ("Twilio API Key", "SK" + made(LOWER, 32)),
    "a Telegram token": ("Telegram Bot Token", made(DIGITS, 9) + ":" + made(MIXED, 35)),
    "a Discord token": ("Discord Bot Token", "M" + made(MIXED, 23) + "." + made(MIXED, 6) + "." + made(MIXED, 27)),
    "a Square secret": ("Square OAuth Secret", "sq0csp-" + made(MIXED, 43)),
    "a Mailchimp key": ("Mailchimp Access Key", made(LOWER, 32) + "-us" + "12"),
    "an Artifactory token": ("Artifactory Credentials", " AKC" + made(MIXED, 20) + " "),
}


@pytest.mark.parametrize("case", SEEDED)
def test_a_key_is_found_with_its_line_and_never_shown(case: str) -> None:
    kind, text = SEEDED[case]
    files = {"config.py": f"import os\n\nvalue = 1\n{text}\n".encode()}
    # In what surrounds a key, its first line may not be the first of all.
    found = scan(files)
    assert {item.kind for item in found} >= {kind}, found
    assert min(item.line for item in found) in (4, 6)
    with pytest.raises(DesiredStateError) as error:
        refuse_secrets(files, folder="src/app")
    said = error.value.message + "".join(str(fault) for fault in error.value.faults)
    assert f"src/app/config.py:{found[0].line} ({found[0].kind})" in said
    assert error.value.reason == "SecretFound"
    secret = max(text.replace('"', " ").split(), key=len)
    assert secret[8:] not in said


@pytest.mark.parametrize("case", SEEDED)
def test_a_line_that_was_looked_at_by_people_passes(case: str) -> None:
    text = SEEDED[case][1]
    lines = [f"{line}  # pragma: allowlist secret" for line in text.splitlines()]
    assert scan({"config.py": "\n".join(lines).encode()}) == ()
    before = "# pragma: allowlist nextline secret\n" + text.splitlines()[0] + "\n"
    assert scan({"config.py": before.encode()}) == ()


NO_KEYS: dict[str, str] = {
    "code that reads keys": 'if "BEGIN PRIVATE KEY" in text:\n    load(text)\n',
    "a placeholder in documentation": "git clone https://user:password@git.example/x.git\n",
    "a variable in an address": "url = f'https://{user}:{password}@{host}/'\nurl: https://x:$TOKEN@h/\nurl: https://x:<token>@h/\n",
    "checksums": f'sha256 = "{made(HEX, 64)}"\nmd5: {made(HEX, 32)}\n',
    "names of Secrets": "secretName: registry-push\npasswordFrom: vault\nAPI_KEY_FILE: /run/x\n",
    "an image in a notebook": json.dumps({"image/png": base64.b64encode(random.Random(1).randbytes(60_000)).decode()}),
    "a lock": "".join(f"    --hash=sha256:{made(HEX, 64, seed)} \\\n" for seed in range(200)),
    "a sample": "DB_PASSWORD=" + "changeme\n",
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_what_is_no_key_is_not_taken_for_one(case: str) -> None:
    assert scan({"x.py": NO_KEYS[case].encode(), "x.ipynb": NO_KEYS[case].encode()}) == ()


def test_the_example_project_holds_no_key() -> None:
    files = {str(path): path.read_bytes() for path in (ROOT / "example-repo").rglob("*") if path.is_file()}
    assert len(files) > 10
    assert scan(files) == ()


def test_passwords_by_name_count_in_env_files_alone() -> None:
    line = ("DB_PASSWORD" + "=" + made(MIXED, 12) + "\n").encode()
    assert [item.kind for item in scan({"deploy/.env": line})] == ["Secret Keyword"]
    assert [item.line for item in scan({"prod.env": b"# DB_PASSWORD=x\n\n" + line})] == [3]
    assert scan({"settings.py": line, ".env.example": line, ".env": b"DB_PASSWORD=$FROM_VAULT\nDB_PASSWORD=\n"}) == ()


def test_binary_and_huge_files_are_left_out() -> None:
    key = SEEDED["a GitHub token"][1].encode()
    assert scan({"model.bin": b"\0" + key, "big.csv": b"1,2\n" * (3 << 20) + key}) == ()


def test_each_line_and_kind_is_told_once_and_in_order() -> None:
    one, other = SEEDED["a GitHub token"][1], SEEDED["a GitLab token"][1]
    found = scan({"b": f"{one} {one}\n{other}\n".encode(), "a": f"\n{other} {one}\n".encode()})
    assert found == (
        Finding(path="a", line=2, kind="GitHub Token"),
        Finding(path="a", line=2, kind="GitLab Token"),
        Finding(path="b", line=1, kind="GitHub Token"),
        Finding(path="b", line=2, kind="GitLab Token"),
    )


def test_a_real_password_is_told_beside_a_stand_in() -> None:
    text = "https://user:password@h/\n" + SEEDED["a password in an address"][1] + "\n"
    assert [item.line for item in scan({"x": text.encode()})] == [2]


def test_the_whole_of_a_long_refusal_stays_short() -> None:
    with pytest.raises(DesiredStateError, match=r"and 47 more: expected no key") as error:
        refuse_secrets({"x": (SEEDED["a GitHub token"][1] + "\n").encode() * 50})
    assert len(error.value.faults) == 50
    assert len(error.value.message) < 400


def test_equal_content_is_looked_at_once_even_after_a_restart(tmp_path: Path) -> None:
    files = {f"m{number}.py": b"x = 1\n" * 1000 + str(number).encode() for number in range(300)}
    key = SEEDED["a GitHub token"][1].encode()
    assert scan(files, ScannedBlobs(tmp_path)) == ()
    memo = ScannedBlobs(tmp_path)
    lines = next(tmp_path.glob("scanned-*.txt")).read_text().splitlines()
    assert len(lines) == 300
    found = scan({**files, "new.py": key, "moved.py": files["m1.py"]}, memo)
    assert [item.path for item in found] == ["new.py"]
    assert next(tmp_path.glob("scanned-*.txt")).read_text().splitlines() == lines
    assert [item.path for item in scan({"new.py": key}, ScannedBlobs(tmp_path))] == ["new.py"]


def test_the_same_content_is_looked_at_anew_where_its_name_makes_it_something_else(tmp_path: Path) -> None:
    line = ("DB_PASSWORD" + "=" + made(MIXED, 12) + "\n").encode()
    memo = ScannedBlobs(tmp_path)
    assert scan({"notes.txt": line}, memo) == ()
    assert [item.path for item in scan({".env": line}, memo)] == [".env"]


def test_nothing_is_sent_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a scan reached outside")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    assert len(scan({case: text.encode() for case, (_, text) in SEEDED.items()})) >= len(SEEDED)


def test_two_thousand_files_take_less_than_a_second() -> None:
    source = (ROOT / "controller" / "own_image.py").read_bytes()[:6000]
    files = {f"f{number}.py": source + str(number).encode() for number in range(2000)}
    scan({"x": b""})
    before = time.process_time()
    assert scan(files) == ()
    assert time.process_time() - before < 2.0, "half of that is usual; this machine may be busy"


@pytest.mark.parametrize(
    "unit", ["eyJ", "://a:b", "//", "sk-proj-", "xoxb-1-", "BEGIN PRIVATE KEY ", "1234567890:", "aws key ", " "]
)
def test_no_line_takes_for_ever(unit: str) -> None:
    before = time.process_time()
    scan({"one-line.json": unit.encode() * ((2 << 20) // len(unit))})
    assert time.process_time() - before < 10.0


def test_the_library_is_imported_when_it_is_needed() -> None:
    code = "import sys, controller.adapters.build.scanning\nprint('detect_secrets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"
