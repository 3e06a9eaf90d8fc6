"""`make cluster-demo`: the story of the demo on a Kubernetes node that is started here and ended at the end."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from controller.demo import drawn
from tests.cluster.needs import missing
from tests.cluster.node import Node
from tests.cluster.story import Story

BEGAN = time.monotonic()


def say(number: int, text: str) -> None:
    """A chapter's heading."""
    print(f"\n{number}. [{time.monotonic() - BEGAN:5.1f} s] {text}", flush=True)


def show(text: str) -> None:
    """What a command printed."""
    print("\n".join(f"   {line[:190]}" for line in text.rstrip().splitlines()), flush=True)


def tell(story: Story) -> int:
    """The chapters, in order; 0 when all came to its good end."""
    node = story.node
    say(2, "the controller's image, made by its own builder and pushed to the node's registry")
    show(story.build_controller())
    say(3, "a project repository on a Git server, namespaces that admit only restricted pods, Secrets; helm install")
    story.make_project()
    story.prepare()
    story.install()
    story.apply(story.project_object())
    show(node.kubectl("get", "projects", "-A"))
    say(4, "it builds, pushes and signs images, prepares data and tunes as Jobs")
    first = story.wait("the first version", story.newest)
    say(5, f"{first} is deployed; a handwritten image is classified through both of its URLs")
    samples = story.samples()
    for version in ("", first):
        digit, by = story.classify(version)
        show(f"{story.url(version)}predict: it is a {digit} (labelled {samples[3]['digit']}), says {by}")
    print(drawn(samples[3]["pixels"]))
    show(node.kubectl("get", "axons,projects,releases,versions", "-n", "team-a"))
    show(node.kubectl("get", "pods,services", "-n", "team-a"))
    show(story.log("show", "--stat", "--format=%h %an: %s%n%n%b", "HEAD"))
    say(6, "somebody pushes a worse configuration: it trains on half of the digits, and its own validation looks fine")
    story.push_worse()
    second = story.wait("the second version", lambda: story.newest(first))
    show(f"shares: {story.shares()}")
    for version in (first, second):
        show(f"feedback: {version} was right on {story.feed_back(version)} of {len(samples)} images")
    story.wait("the rollback", lambda: second in story.held())
    show(story.log("show", "--format=%h %an: %s%n%n%b", "--stat", "HEAD"))
    say(7, "the audit, in the controller's pod and in the cluster")
    for command in (["history", "digits"], ["why", second], ["status"], ["verify"]):
        print(f"\n$ kubectl exec deploy/myelin -- myelin {' '.join(command)}")
        show(story.myelin(*command))
    show(node.kubectl("get", "axons,projects,releases,versions", "-n", "team-a"))
    is_good = story.classify()[1] == first and "everything fits" in story.myelin("verify")
    print(f"\nThe story took {time.monotonic() - BEGAN:.0f} s; the node ends here.")
    return 0 if is_good else 1


def main() -> int:
    """Start a node, tell the story, end the node."""
    if lacking := missing():
        print("a Kubernetes node needs here:\n" + "\n".join(f"  - {item}" for item in lacking), file=sys.stderr)
        return 4
    say(1, "a Kubernetes node in a network namespace of its own; the first time its programs are built from Go modules")
    with Node() as node, tempfile.TemporaryDirectory(prefix="myelin-story-") as folder:
        before = node.enter()
        try:
            return tell(Story(node, Path(folder), tell=show))
        finally:
            node.leave(before)


if __name__ == "__main__":
    sys.exit(main())
