"""Peers timed side by side, for the benchmarks of this folder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Name = TypeVar("Name")


def in_turn(runs: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, list[float]]:
    """Seconds of each run, ``repeats`` times; all are warmed up once, then taken in turn, so that all see the same machine."""
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(runs: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, float]:
    """The median of each run's seconds, taken in turn."""
    return {name: statistics.median(values) for name, values in in_turn(runs, repeats).items()}
