"""How a blob gets into a repository: taken over from one where it is, sent whole, or gone on with after a break.

1. `POST …/uploads/?mount=…&from=…` is a look and a beginning at once: 201 says that the blob is there now, 202 where to send it.
2. `PUT` with all bytes. Not in pieces at first: some registries take none.
3. After a break `GET` asks how far it came. Whoever says so gets the rest by `PATCH`, in pieces; with all others it begins again.
"""

from __future__ import annotations

import hashlib
import re
from itertools import count
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from controller.adapters.oci.references import checked_digest
from controller.adapters.oci.wire import LONGEST_ASKED_PAUSE_SECONDS, Answer, NoAnswerError, Part, Wire, said_in
from policies.errors import RefusedError, TrustError

PIECE_BYTES = 16 << 20
"""What is lost at most when a line breaks again."""
PROGRESS_BYTES = 1 << 20
"""What has to arrive for a break not to count."""
NO_STATUS = (400, 404, 405, 416, 501)
"""What servers answer that do not know how far an upload came. Distribution 2.8 does so when it broke within a request."""
_BYTES = {"Content-Type": "application/octet-stream"}


class Uploads:
    """Brings files into one repository. Threads may share it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.takes_over = True
        """Whether it answers well to who asks it to take a blob over from itself, which is how we ask whether it is there."""
        self.is_doubted = False
        """Whether it said of something that it is there, and it was not: it is asked in the long way."""

    def send(self, path: Path, digest: str, source: str = "") -> bool:
        """See that a blob is there.

        Args:
            path: Its file, which is never held in memory.
            digest: The blob.
            source: A repository of the same host that is said to have it.

        Returns:
            Whether it had to be sent.

        Raises:
            TrustError: The file is not what its digest says.
            RefusedError: The registry said no.
            SilentError: It gave no answer.
        """
        for failures in count(1):
            # An answer may have been lost after the blob was taken, so each try begins with a look.
            begun = self._begin(digest, source)
            if begun is None:
                return False
            try:
                self._pour(path, digest, begun)
            except NoAnswerError as error:
                if failures >= self._wire.tries or error.asked_seconds > LONGEST_ASKED_PAUSE_SECONDS:
                    raise
                self._wire.pause(failures, error.asked_seconds)
                source = ""
                continue
            return True
        raise AssertionError("the loop above has no end")

    def take_over(self, digest: str, source: str) -> bool:
        """Take a blob over from another repository of the same host, without sending it; whether that was possible."""
        try:
            answer = self._mount(digest, source)
        except RefusedError:
            # Servers differ in how they say that we may not read there; whoever may write here is told so by `send`.
            return False
        if answer.status == 201:
            return True
        # It began an upload instead, which nobody will end.
        self._wire.ask("DELETE", self._place(answer), f"blob {digest}", (204, 404, 405))
        return False

    def _mount(self, digest: str, source: str) -> Answer:
        query = urlencode({"mount": checked_digest(digest), "from": source})
        return self._wire.ask("POST", f"/blobs/uploads/?{query}", f"blob {digest}", (201, 202))

    def _begin(self, digest: str, source: str) -> Answer | None:
        """Where to send a blob to; None: it is there now."""
        own = self._wire.access.path
        for place in dict.fromkeys((source or own, own)) if self.takes_over and not self.is_doubted else ():
            try:
                answer = self._mount(digest, place)
            except RefusedError:
                # Perhaps we may not read there, or it does not do such things; then it is asked in the long way.
                self.takes_over = place != own
                continue
            return None if answer.status == 201 else answer
        what = f"blob {digest}"
        if self._wire.ask("HEAD", f"/blobs/{digest}", what, (200, 404)).status == 200:
            return None
        return self._wire.ask("POST", "/blobs/uploads/", what, (202,))

    def _pour(self, path: Path, digest: str, begun: Answer) -> None:
        """Send a file to where an upload was begun."""
        what, size = f"blob {digest}", path.stat().st_size
        try:
            # What broke off cannot be sent again to the same place just so: the server may have a part of it.
            url = self._place(begun, digest)
            whole = Part(path=path, start=0, length=size)
            answer = self._wire.ask("PUT", url, what, (201, 400), headers=_BYTES, body=whole, tries=1)
        except NoAnswerError as error:
            if error.asked_seconds or (rest := self._position(self._place(begun), what)) is None:
                raise
            length = max(PIECE_BYTES, int(begun.headers.get("oci-chunk-min-length") or 0))
            answer = self._go_on(Part(path=path, start=rest[0], length=length), rest[1], digest)
        if answer.status != 201:
            self._refuse(answer, path, digest)

    def _go_on(self, piece: Part, url: str, digest: str) -> Answer:
        """Send the rest of a file in pieces, and end the upload."""
        what, size, failures = f"blob {digest}", piece.path.stat().st_size, 0
        start, largest = piece.start, piece.length
        while start < size:
            part = Part(path=piece.path, start=start, length=min(largest, size - start))
            fields = {**_BYTES, "Content-Range": f"{start}-{start + part.length - 1}"}
            try:
                answer = self._wire.ask("PATCH", url, what, (202, 416), headers=fields, body=part, tries=1)
            except NoAnswerError as error:
                failures += 1
                if failures >= self._wire.tries or error.asked_seconds > LONGEST_ASKED_PAUSE_SECONDS:
                    raise
                self._wire.pause(failures, error.asked_seconds)
                answer = None
            if answer is not None and answer.status == 202:
                url, start = self._place(answer), start + part.length
                failures = 0
                continue
            rest = self._position(url, what)
            if rest is None or (answer is not None and rest[0] == start):
                raise NoAnswerError(f"registry {self._wire.access.repository}: {what}: expected its upload to go on, it is gone")
            # Whoever moves on is not given up.
            failures = 0 if rest[0] - start >= PROGRESS_BYTES else failures
            start, url = rest
        return self._wire.ask("PUT", _with_digest(url, digest), what, (201, 400), headers=_BYTES, body=b"")

    def _position(self, url: str, what: str) -> tuple[int, str] | None:
        """How many bytes of an upload arrived, and where the rest goes; None: it does not say."""
        try:
            answer = self._wire.ask("GET", url, what, (204, *NO_STATUS))
        except RefusedError:
            return None
        found = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("range", ""))
        if answer.status != 204 or found is None:
            return None
        # `0-0` is nothing as well as one byte; what was nothing is found at the end, by the digest.
        return (int(found[1]) + 1 if int(found[1]) else 0), self._place(answer) if "location" in answer.headers else url

    def _refuse(self, answer: Answer, path: Path, digest: str) -> None:
        """What it means that all bytes were sent and not taken."""
        if "DIGEST_INVALID" not in said_in(answer.body):
            raise self._wire.refusal(answer, f"blob {digest}")
        with path.open("rb") as file:
            got = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if got != digest:
            raise TrustError(f"blob {digest}: expected these bytes, got {got}", reason="BlobChanged")
        raise NoAnswerError(f"registry {self._wire.access.repository}: blob {digest}: expected its bytes to arrive, others did")

    def _place(self, begun: Answer, digest: str = "") -> str:
        url = self._wire.nearby(urljoin(f"{self._wire.url}/blobs/uploads/", begun.headers.get("location", "")))
        return _with_digest(url, digest) if digest else url


def _with_digest(url: str, digest: str) -> str:
    parts = urlsplit(url)
    query = [*parse_qsl(parts.query, keep_blank_values=True), ("digest", digest)]
    return urlunsplit(parts._replace(query=urlencode(query)))
