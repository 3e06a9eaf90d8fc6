"""Stage 4: build an image; its digest is the outcome."""

from __future__ import annotations

from policies.records import image_statement
from policies.terms.outcome import Outcome, Result
from policies.terms.plan import BuildImage, RecordImage
from reconcilers.ports import Ports


def recorded(step: RecordImage, ports: Ports) -> Result:
    """Write down what went into an image."""
    ports.ledger.record([image_statement(step.axon, step.image, step.materials)])
    outcome = Outcome(
        state="done", subject=f"{step.axon}/{step.task}", reason="ImageRecorded", message=step.reason, look_again=True
    )
    return Result(outcome=outcome)


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
