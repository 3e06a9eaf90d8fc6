"""Stage 4: build an image; its digest is the outcome."""

from __future__ import annotations

from policies.terms.outcome import Outcome, Result
from policies.terms.plan import BuildImage
from reconcilers.ports import Ports


def build(step: BuildImage, ports: Ports) -> Result:
    """Begin to build an image, or say how far it is."""
    subject = f"{step.axon}/{step.task}"
    if step.phase != "building":
        ports.images.start(step.image)
    state = ports.images.look(step.image)
    message = state.message if state is not None and state.message else f"building {step.image.repository}"
    if state is not None and state.phase == "failed":
        return Result(outcome=Outcome(state="waiting", subject=subject, reason=state.reason or "BuildFailed", message=message))
    return Result(outcome=Outcome(state="waiting", subject=subject, reason="Building", message=message))
