"""The door to prometheus-client: every metric name of the controller in one table, and reading what others expose."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

REGISTRY = CollectorRegistry()
PASSES = Counter("myelin_passes", "Passes of the loop", registry=REGISTRY)
OUTCOMES = Gauge("myelin_outcomes", "Outcomes of the last pass", ["state"], registry=REGISTRY)
LEDGER_ENTRIES = Gauge("myelin_ledger_entries", "Entries of the ledger", registry=REGISTRY)
UNSIGNED = Gauge("myelin_unsafe_unsigned_commits", "Unsigned commits that were accepted", registry=REGISTRY)
UNTRUSTED = Gauge("myelin_untrusted_tip", "1 while the branch's tip is not trusted", registry=REGISTRY)
REFUSED_RULES = Counter("myelin_refused_rules", "Alert conditions that could not be evaluated, by looks", registry=REGISTRY)
HOOKS = Counter("myelin_hooks", "Genuine webhooks, by what they came to", ["kind", "came_to"], registry=REGISTRY)
WRONG_HOOKS = Counter("myelin_wrong_hooks", "Webhooks without the right proof", ["kind"], registry=REGISTRY)
TURNED_AWAY = Counter("myelin_inbox_turned_away", "Callers of the inbox who got no hearing", ["why"], registry=REGISTRY)
WRONG_TOKENS = Counter("myelin_wrong_tokens", "Requests to the inbox with a wrong token", registry=REGISTRY)


def render() -> bytes:
    """All metrics of this controller as text."""
    return generate_latest(REGISTRY)


def parse_exposition(text: str) -> Iterator[tuple[dict[str, str], float]]:
    """Samples of an exposition: labels with `__name__`, and value.

    Raises:
        ValueError: Not the exposition format.
    """
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield {"__name__": sample.name, **sample.labels}, float(sample.value)
