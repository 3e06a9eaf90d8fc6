"""Stage 4: servers and proxies follow the releases."""

from __future__ import annotations

from policies.terms.outcome import Outcome, Result
from policies.terms.plan import Retire, Serve
from reconcilers.ports import Ports


def serve(step: Serve, ports: Ports) -> Result:
    """Make a server be there; nothing unverified is loaded."""
    subject = f"{step.axon}/{step.task}"
    ports.images.verify(step.server.image)
    ports.engine.serve(step.server)
    state = ports.engine.servers().get(step.server.name)
    if state is None or state.phase == "failed":
        words = state.message if state is not None else "gone"
        reason = state.reason if state is not None and state.reason else "NotServing"
        return Result(outcome=Outcome(state="stalled", subject=subject, reason=reason, message=f"{step.server.name}: {words}"))
    if state.phase != "ready":
        words = f"{step.server.name} at {state.address}: {state.message or 'starting'}"
        return Result(outcome=Outcome(state="waiting", subject=subject, reason="Starting", message=words))
    return Result(
        outcome=Outcome(state="done", subject=subject, reason="Serving", message=f"{step.server.name} at {state.address}")
    )


def retire(step: Retire, ports: Ports) -> Result:
    """End a server that nothing asks for."""
    ports.engine.retire(step.server)
    return Result(outcome=Outcome(state="done", subject=step.server, reason="Retired", message="nothing asks for it"))
