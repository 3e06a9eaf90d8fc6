"""The door to watchdog: a push to a local repository wakes a pass at once. Polling alone would do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def watch_repository(path: Path, wake: Callable[[], None]) -> Callable[[], None]:
    """Call `wake` whenever a ref of a local repository changes, until the returned function is called."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    top = path / ".git" if (path / ".git").is_dir() else path

    class Handler(FileSystemEventHandler):
        """Any change below refs, or of packed-refs."""

        def on_any_event(self, event: FileSystemEvent) -> None:
            """Wake when it is about a ref that is whole, and not merely read."""
            # Git writes `main.lock` and renames it: what a ref becomes is the move's destination.
            place = str(event.dest_path or event.src_path)
            is_ref = "/refs/heads/" in place or place.endswith("packed-refs")
            if is_ref and not place.endswith(".lock") and event.event_type not in ("opened", "closed_no_write"):
                wake()

    observer = Observer()
    observer.schedule(Handler(), str(top / "refs"), recursive=True)
    observer.schedule(Handler(), str(top))
    try:
        observer.start()
    except OSError:
        return lambda: None  # no file events to be had here: polling goes on

    def stop() -> None:
        observer.stop()
        observer.join(5.0)

    return stop
