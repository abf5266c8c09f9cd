"""Estimate the time that a run has left, from the durations of its jobs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from ztw.progress import DONE, PROGRESS

# Durations of jobs relative to other rules, until a job of the rule tells more
LONG = {"train_backbone": 20.0, "train_ics": 20.0, "train_network": 30.0, "measure_latency": 20.0}
SHARE = re.compile(r"\s*(\d+) %")
ENOUGH = 0.05  # share of a job, or of the run, after which an estimate is made


class Timed(Protocol):
    """The part of a job that the estimate needs: its rule, its state and line of progress, and its Unix times."""

    rule: str
    state: str
    text: str
    started: float
    ended: float


def seconds_left(
    counts: Mapping[str, int], jobs: Collection[Timed], started: float, now: float
) -> float | None:
    """Return the estimated seconds of a run; None until 5 % of its work is done.

    Args:
        counts: rule -> number of its jobs in the run.
        jobs: the jobs that have started.
        started: Unix time of the run's start.
    """
    done = [job for job in jobs if job.state == DONE]
    running = [job for job in jobs if job.state == PROGRESS]
    spent = [(job.rule, job.ended - job.started) for job in done]
    whole = [(job.rule, total) for job in running if (total := _total(job, now)) is not None]
    known = [*spent, *whole]
    if not spent:
        return None
    scale = sum(seconds for _, seconds in known) / sum(LONG.get(rule, 1.0) for rule, _ in known)
    typical = {rule: _mean(known, rule) or LONG.get(rule, 1.0) * scale for rule in counts}
    past = sum(seconds for _, seconds in spent) + sum(now - job.started for job in running)
    every = sum(typical[rule] * count for rule, count in counts.items())
    if past < ENOUGH * every:
        return None
    at_once = max(1.0, past / max(1.0, now - started))
    return max(0.0, every - past) / at_once


def _total(job: Timed, now: float) -> float | None:
    """Return the estimated duration of a running job; None early in the job."""
    match = SHARE.match(job.text)
    share = int(match[1]) / 100 if match else 0.0
    return (now - job.started) / share if share >= ENOUGH else None


def _mean(known: Iterable[tuple[str, float]], rule: str) -> float | None:
    own = [seconds for name, seconds in known if name == rule]
    return sum(own) / len(own) if own else None
