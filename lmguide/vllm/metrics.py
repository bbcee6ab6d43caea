"""Counters on the server's `/metrics`.

The engine core counts and sends what it counted along with its statistics; the frontend takes it out and adds it to
Prometheus counters. vLLM's statistics have one open dictionary, and ours travels in it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import Counter

COUNTERS = {
    "groups": "Guided requests.",
    "guided_steps": "Tokens sampled with companions.",
    "skipped_steps": "Tokens sampled without companions, because the conditional's law closed the gate.",
    "retried_steps": "Samples thrown away because the gate was open and companions had to run.",
    "preempted_groups": "Guided requests that were preempted for memory.",
    "failed_requests": "Guided requests that failed by a fault inside guidance.",
    "lockstep_errors": "Steps in which only a part of a group sampled; must stay 0.",
}
"""Name without `lmguide:` and `_total` → what it counts."""

_PREFIX = "lmguide:"


def send(stats: Any, counts: Counter[str]) -> None:
    """Put what was counted since the last call into the scheduler's statistics."""
    if stats is None:
        return
    for name, count in counts.items():
        stats.num_kv_fetch_reqs_by_stage[_PREFIX + name] = count
    counts.clear()


def publish(stats: Any) -> None:
    """Take it out of the statistics and add it to the counters."""
    if stats is None:
        return
    sent = stats.num_kv_fetch_reqs_by_stage
    for key in [key for key in sent if key.startswith(_PREFIX)]:
        _counters()[key.removeprefix(_PREFIX)].inc(sent.pop(key))
    _counters()


@lru_cache(maxsize=1)
def _counters() -> dict[str, Any]:
    from prometheus_client import Counter

    return {name: Counter(_PREFIX + name, text) for name, text in COUNTERS.items()}
