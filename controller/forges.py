"""Which forge a project means, and the token for it. A token goes to the repository's own host, or where the operator says.

`myelin.yaml` names the forge, so whoever may change that file could name another one: the host is bound from outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from controller.adapters.forge import RestForge, forge_of
from controller.adapters.git.urls import name_of
from policies.errors import RefusedError
from policies.terms.project import Forge
from policies.terms.secret import Secret
from reconcilers.ports import Forge as ForgePort

TOKEN_VARIABLE = "MYELIN_FORGE_TOKEN"
URL_VARIABLE = "MYELIN_FORGE_URL"
PUBLIC = {"github": "https://github.com", "gitlab": "https://gitlab.com", "gitea": ""}


class ProjectForges:
    """Implements `reconcilers.ports.Forges`.

    Args:
        repository: URL or path of the repository that is followed.
        environ: Where variables are looked up; empty in a cluster, whose projects share no token.
        pinned: What the Project object of a cluster says; it goes before what the repository says.
        pinned_token: The token that it names.
    """

    def __init__(
        self,
        repository: str,
        *,
        environ: Mapping[str, str] = os.environ,
        pinned: Forge | None = None,
        pinned_token: Secret | None = None,
    ) -> None:
        self._repository, self._environ = repository, environ
        self._pinned, self._pinned_token = pinned, pinned_token
        self._known: tuple[Forge, RestForge] | None = None

    def of(self, settings: Forge) -> ForgePort:
        """The forge that these settings mean."""
        settings = self._pinned or settings
        if self._known is None or self._known[0] != settings:
            bound = self._bound(settings)
            self.close()
            self._known = (settings, forge_of(bound, self._repository, self._token(settings)))
        return self._known[1]

    def stir(self) -> None:
        """What the forge said may be old: ask it again."""
        if self._known is not None:
            self._known[1].stir()

    def close(self) -> None:
        """Close all connections."""
        if self._known is not None:
            self._known[1].close_connections()
            self._known = None

    def _bound(self, settings: Forge) -> Forge:
        """The settings with the address that a token may be sent to."""
        own, pinned = name_of(self._repository), self._environ.get(URL_VARIABLE, "").rstrip("/")
        url = (settings.url or pinned or (f"https://{own}" if own else PUBLIC[settings.type])).rstrip("/")
        if self._pinned is None and url != pinned and (urlsplit(url).hostname or "") != own:
            text = (
                f"spec.writeBack.forge.url {url}: expected the repository's own host{f' {own}' if own else ''}, got another; "
                f"set {URL_VARIABLE} for the controller if its token may go there"
            )
            raise RefusedError(text, reason="ForgeElsewhere")
        if urlsplit(url).scheme != "https" and url != pinned and self._pinned is None:
            raise RefusedError(
                f"spec.writeBack.forge.url {url}: expected https; set {URL_VARIABLE} if the token may travel in the clear",
                reason="ForgeElsewhere",
            )
        return settings.model_copy(update={"url": url})

    def _token(self, settings: Forge) -> Secret:
        if self._pinned_token is not None:
            return self._pinned_token
        named = settings.token_from
        if named is not None and named.secret is not None:
            text = (
                "spec.writeBack.forge.tokenFrom.secret: only the Project object of a cluster can say this; expected env or file"
            )
            raise RefusedError(text, reason="TokenMissing")
        if named is not None and named.file is not None:
            return _checked(_owners(Path(named.file)), f"spec.writeBack.forge.tokenFrom.file {named.file}")
        if not self._environ:
            text = "spec.writeBack.forge: expected it in the Project object too, with tokenFrom.secret; got no token for it"
            raise RefusedError(text, reason="TokenMissing")
        name = named.env if named is not None and named.env else TOKEN_VARIABLE
        if not name.startswith("MYELIN_"):
            text = (
                f"spec.writeBack.forge.tokenFrom.env {name}: expected a variable that begins with MYELIN_, so that no other leaks"
            )
            raise RefusedError(text, reason="TokenMissing")
        return _checked(self._environ.get(name, ""), f"environment variable {name}")


def _checked(text: str, where: str) -> Secret:
    if not text.strip():
        raise RefusedError(f"{where}: expected the forge's token, got nothing", reason="TokenMissing")
    if not re.fullmatch(r"[\x21-\x7e]{4,4096}", text.strip()):
        raise RefusedError(f"{where}: expected a token of one line without spaces", reason="TokenMissing")
    return Secret(text.strip())


def _owners(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise RefusedError(f"{path}: expected a file that only its owner may read; run `chmod 600` on it", reason="OpenToken")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise RefusedError(f"{path}: expected a file with the forge's token, got {why}", reason="TokenMissing") from None
