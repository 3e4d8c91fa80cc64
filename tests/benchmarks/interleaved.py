"""Timing of several things in turn, so that a busy moment of the machine falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["interleaved_ms"]

PAUSE_SECONDS = 0.1  # threads that have just worked wait actively for more, and would take the next one's cores


def interleaved_ms(runs: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Median wall clock of each in milliseconds; one call of each a round, the first `warm_up` rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warm_up + repeats):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            run()
            if repeat >= warm_up:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
