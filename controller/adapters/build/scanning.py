"""Whether files that would go into an image hold keys or passwords. This is the one file that imports `detect_secrets`.

Laws: a finding never shows what was found; nothing is verified, so nothing is sent anywhere; equal content is looked at once.

Its rules for the shapes of keys are taken as they are. Those that go by randomness or by a variable's name are not: on this
repository, scikit-learn and statsmodels with its notebooks they found checksums, alphabets and names of Secrets, and no key.
Names of variables count in `.env` files alone, which hold nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from policies.errors import DesiredStateError, Fault

LARGEST_BYTES = 8 << 20
"""Larger files are data; reading them all would take longer than building."""
HEAD_BYTES = 8192
"""Within them, a zero byte tells that a file is no text (Git's own rule)."""
MOST_REMEMBERED = 500_000
SHOWN = 3
"""How many findings one message names."""

_MODULES = {
    "artifactory": "ArtifactoryDetector",
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "private_key": "PrivateKeyDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
_ONLY_WHERE = {
    "artifactory": ("AKC", "artifactory", "jfrog"),
    "aws": ("A3T", "ABIA", "ACCA", "AKIA", "ASIA", "aws"),
    "github_token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "gitlab_token": ("gl", "GR1348941"),
    "mailchimp": ("mailchimp", "-us"),
    "private_key": ("PRIVATE KEY", "PuTTY"),
    "slack": ("xox", "slack.com"),
    "stripe": ("k_live_",),
}
"""What a file must hold for a rule to be tried: what the rule itself needs, as plain text is found faster than a pattern; and for
those that fit much that is no key, the name of the service. Lower case fits any case."""
_MORE = (
    ("GitHub Token", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    ("Hugging Face Token", "hf_", r"\bhf_[A-Za-z]{34}\b"),
    ("Google API Key", "AIza", r"\bAIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])"),
    ("Anthropic API Key", "sk-ant-", r"\bsk-ant-[a-z]+[0-9]{2}-[A-Za-z0-9_-]{80,}"),
    ("OpenAI Token", "T3BlbkFJ", r"[A-Za-z0-9_-]{20}T3BlbkFJ[A-Za-z0-9_-]{20}"),
    ("NPM tokens", "npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("Slack Token", "xapp-", r"\bxapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}"),
    ("Docker Hub Token", "dckr_pat_", r"\bdckr_pat_[A-Za-z0-9_-]{27}"),
    ("Databricks Token", "dapi", r"\bdapi[0-9a-f]{32}\b"),
    ("Private Key", "ENCRYPTED PRIVATE", r"BEGIN ENCRYPTED PRIVATE KEY"),
)
"""Shapes that their issuers publish and the library does not know yet: kind, what a file must hold, shape."""
_QUICKER = {
    "discord": r"\.[a-zA-Z\d_-]{6}\.[a-zA-Z\d_-]{27}",
    "jwt": r"(?<![A-Za-z0-9_=-])eyJ[A-Za-z0-9_=-]+\.",
    "npm": r":_authToken=",
    "telegram_token": r":[0-9A-Za-z_-]{35}",
}
"""Part of a shape, for those that take very long on some very long line; the whole shape is then tried around it."""
_KEY_BODY = re.compile(r"[A-Za-z0-9+/=]{40}")
AROUND = 1024
"""Characters before and behind a place that are looked at closer. An encrypted key has headers before its bytes."""
MOST_LOOKS = 2000
"""Closer looks at one file for one shape."""
MOST_OF_A_KIND = 100
"""Of one kind in one file, no more are looked for."""
_ENV_FILE = re.compile(r"(^|/)(\.env(\.[^/]+)?|[^/]+\.env)$")
_ENV_SAMPLE = re.compile(r"example|sample|template|dist$|default", re.IGNORECASE)
_STAND_INS = re.compile(
    r"(pass(word|wd)?|pw|secret|token|key|changeme|x+|\*+|\.+|%s|%\(\w+\)s|\{.*\}|<.*>|\$.*)\Z", re.IGNORECASE
)
"""What documentation writes where a password goes."""
_ALLOWED = re.compile(r"pragma: ?(allow|white)list")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that looks like a key."""

    path: str
    line: int
    """From 1."""
    kind: str
    """`GitHub Token`"""


class Remembers(Protocol):
    """Blobs that hold nothing."""

    def __contains__(self, key: str) -> bool:
        """Whether one was looked at."""
        ...

    def add(self, keys: Sequence[str]) -> None:
        """These were."""
        ...


class ScannedBlobs:
    """Implements `Remembers` in a file of lines: what was added is there after a restart.

    Args:
        folder: Where the file is; may be deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._known = folder / f"scanned-{rules_digest()[:16]}.txt", set[str]()
        try:
            self._known.update(self._path.read_text().split())
        except (FileNotFoundError, UnicodeDecodeError):
            pass

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def add(self, keys: Sequence[str]) -> None:
        """Remember blobs that hold nothing."""
        if len(self._known) + len(keys) > MOST_REMEMBERED:
            self._known.clear()
            self._path.unlink(missing_ok=True)
        self._known.update(keys)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A line that a death cut short is a blob that nobody has.
        with self._path.open("a") as file:
            file.write("".join(f"{key}\n" for key in keys))


def scan(files: Mapping[str, bytes], memo: Remembers | None = None) -> tuple[Finding, ...]:
    """What looks like a key in these files, by path and line; each line and kind once.

    Args:
        files: Path -> content. What is no text, and what is larger than 8 MiB, is left out.
        memo: Blobs that were looked at before; None: all are looked at.
    """
    found: list[Finding] = []
    clean: list[str] = []
    for path, data in sorted(files.items()):
        is_env = _is_env(path)
        key = ""
        if memo is not None:
            # What is found depends on a name only where that makes it an `.env` file, or YAML, whose comments are told apart.
            key = _blob_id(data) + ("-env" if is_env else "-yaml" if path.endswith(".yaml") else "")
            if key in memo:
                continue
        here = list(_in_file(path, data, is_env=is_env))
        found += here
        if not here:
            clean.append(key)
    if memo is not None and clean:
        memo.add(clean)
    return tuple(found)


def refuse_secrets(files: Mapping[str, bytes], memo: Remembers | None = None, *, folder: str = "") -> None:
    """See that no file holds a key.

    Args:
        files: Path from the folder -> content.
        memo: Blobs that were looked at before.
        folder: Where they are, from the root of the repository; for messages.

    Raises:
        DesiredStateError: One does; names file, line and kind of each, never the key.
    """
    found = scan(files, memo)
    if not found:
        return
    expected = "expected no key or password in what goes into an image"
    faults = tuple(
        Fault(
            file=f"{folder}/{item.path}".lstrip("/"),
            line=item.line,
            path="",
            reason="SecretFound",
            message=f"{expected}, got what looks like one ({item.kind})",
        )
        for item in found
    )
    text = "; ".join(
        f"{fault.file}:{fault.line} ({item.kind})" for fault, item in zip(faults[:SHOWN], found[:SHOWN], strict=True)
    )
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    hint = (
        "take it out and make a new one, as Git keeps the old one; a line that holds none may end in `# pragma: allowlist secret`"
    )
    raise DesiredStateError(f"{text}{more}: {expected}; {hint}", reason="SecretFound", faults=faults)


class Scanner:
    """Refuses keys in what goes into images, and remembers where there are none. Builders share one.

    Args:
        folder: Where it remembers; may be deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _memo(self) -> ScannedBlobs:
        # Not before it is needed: the rules take a while to load.
        return ScannedBlobs(self._folder)

    def refuse(self, files: Mapping[str, bytes], folder: str) -> None:
        """See that no file of a source folder holds a key; see `refuse_secrets`.

        Raises:
            DesiredStateError: One does.
        """
        refuse_secrets(files, self._memo, folder=folder)


@lru_cache(maxsize=1)
def rules_digest() -> str:
    """What the rules are named by; with other rules, files are looked at again."""
    from detect_secrets.__version__ import VERSION

    text = repr((VERSION, sorted(_MODULES), sorted(_ONLY_WHERE.items()), _MORE, _STAND_INS.pattern, LARGEST_BYTES))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    shapes: tuple[re.Pattern[str], ...]
    """What to look for in a whole file."""
    plugin: Any
    """Its detector, which looks closer at one line; None: the shape is all there is."""
    only_where: tuple[str, ...]


@lru_cache(maxsize=1)
def _rules() -> tuple[_Rule, ...]:
    from importlib import import_module

    found = []
    for module, name in _MODULES.items():
        plugin = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
        shapes = (re.compile(_QUICKER[module]),) if module in _QUICKER else tuple(plugin.denylist)
        found.append(_Rule(plugin.secret_type, shapes, plugin, _ONLY_WHERE.get(module, ())))
    found += [_Rule(kind, (re.compile(shape),), None, (where,)) for kind, where, shape in _MORE]
    return tuple(found)


def _in_file(path: str, data: bytes, *, is_env: bool) -> Iterator[Finding]:
    if len(data) > LARGEST_BYTES or b"\0" in data[:HEAD_BYTES]:
        return
    text = data.decode("utf-8", "replace")
    low = text.lower()
    hits: set[tuple[int, str]] = set()
    for rule in _rules():
        if not rule.only_where or any(word in (low if word.islower() else text) for word in rule.only_where):
            hits |= {(text.count("\n", 0, start) + 1, rule.kind) for start in _starts(rule, text)}
    if is_env:
        hits |= {(number, kind) for number, kind in _in_env(text)}
    if hits:
        lines = text.split("\n")
        yield from (
            Finding(path=path, line=number, kind=kind) for number, kind in sorted(hits) if not _is_allowed(path, lines, number)
        )


def _starts(rule: _Rule, text: str) -> Iterator[int]:
    """Where a rule finds something, once in a line."""
    for shape in rule.shapes:
        # Line by line would be exact and slow; a shape is looked for in all of it, and then closer where it was found.
        looks, found, done = 0, 0, 0
        for match in shape.finditer(text):
            if match.end() <= done or looks >= MOST_LOOKS:
                continue
            looks += 1
            # A shape may begin with the end of the line before.
            first = match.start() + len(match[0]) - len(match[0].lstrip())
            start = max(text.rfind("\n", max(0, first - AROUND), first) + 1, first - AROUND, 0)
            end = text.find("\n", first, match.end() + AROUND)
            line = text[start : end if end >= 0 else match.end() + AROUND]
            if _is_found(rule, line, text[match.end() : match.end() + AROUND]):
                found += 1
                yield first
                end = text.find("\n", first)
                done = end if end >= 0 else len(text)
            if found >= MOST_OF_A_KIND:
                break


def _is_found(rule: _Rule, line: str, behind: str) -> bool:
    from detect_secrets.filters import heuristic

    if rule.kind == "Private Key":
        # Programs that read keys know how one begins; a key goes on.
        return _KEY_BODY.search(behind) is not None
    if rule.plugin is None:
        return True
    for secret in rule.plugin.analyze_string(line):
        if rule.kind == "Basic Auth Credentials" and _STAND_INS.match(secret):
            continue
        odd = (heuristic.is_templated_secret, heuristic.is_sequential_string, heuristic.is_not_alphanumeric_string)
        if not any(is_odd(secret) for is_odd in odd):
            return True
    return False


def _in_env(text: str) -> Iterator[tuple[int, str]]:
    from detect_secrets.plugins.keyword import CONFIG_DENYLIST_REGEX_TO_GROUP, KeywordDetector

    detector = KeywordDetector()
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > AROUND or line.lstrip().startswith("#"):
            continue
        for secret in detector.analyze_string(line, denylist_regex_to_group=CONFIG_DENYLIST_REGEX_TO_GROUP):
            if not _STAND_INS.match(secret.strip("\"' ")):
                yield number, detector.secret_type


def _is_allowed(path: str, lines: Sequence[str], number: int) -> bool:
    """Whether people said of a line that it holds no secret, in it or in the one before, as the library has it."""
    nearby = [line.rstrip() for line in lines[max(0, number - 2) : number]]
    if not any(_ALLOWED.search(line) for line in nearby):
        return False
    from detect_secrets.filters.allowlist import is_line_allowlisted
    from detect_secrets.util.code_snippet import get_code_snippet

    return bool(is_line_allowlisted(path, nearby[-1], get_code_snippet(nearby, len(nearby))))


def _is_env(path: str) -> bool:
    return bool(_ENV_FILE.search(path)) and not _ENV_SAMPLE.search(os.path.basename(path))


def _blob_id(data: bytes) -> str:
    """The id that Git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
