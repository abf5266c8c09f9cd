"""Estimate the time that a run has left, from the durations of its jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

# Durations of jobs relative to other rules, until a job of the rule tells more
LONG = {"train_backbone": 20.0, "train_ics": 20.0, "train_network": 30.0, "measure_latency": 20.0}
ENOUGH = 0.05  # share of a job, or of the run, after which an estimate is made


class Span(NamedTuple):
    """A job that has started: its rule, the seconds that it took so far, and the share that is done, in [0, 1]."""

    rule: str
    seconds: float
    share: float


def seconds_left(counts: Mapping[str, int], spans: Collection[Span], elapsed: float) -> float | None:
    """Return the estimated seconds of a run; None until 5 % of its work is done.

    Args:
        counts: rule -> number of its jobs in the run.
        spans: the jobs that have started.
        elapsed: seconds since the start of the run.
    """
    known = [(span.rule, span.seconds / span.share) for span in spans if span.share >= ENOUGH]
    if not any(span.share == 1 for span in spans):
        return None
    scale = sum(seconds for _, seconds in known) / sum(LONG.get(rule, 1.0) for rule, _ in known)
    typical = {rule: _mean(known, rule) or LONG.get(rule, 1.0) * scale for rule in counts}
    past = sum(span.seconds for span in spans)
    every = sum(typical[rule] * count for rule, count in counts.items())
    if past < ENOUGH * every:
        return None
    at_once = max(1.0, past / max(1.0, elapsed))
    return max(0.0, every - past) / at_once


def _mean(known: Iterable[tuple[str, float]], rule: str) -> float | None:
    own = [seconds for name, seconds in known if name == rule]
    return sum(own) / len(own) if own else None
