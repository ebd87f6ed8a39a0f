"""Measurement of contenders in turn, so that noise of the machine affects all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Contenders = Mapping[str, Callable[[], object]]
"""Functions by name. Each call does the complete work once and waits for the result."""

TURN = 0.1
"""Target duration of a turn in seconds, rounded to whole calls, of which there is at least one."""


def in_turn(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round, after a warm-up.

    When a turn starts, the threads of the previous contender may still be spinning, and its data is
    in the cache. The order is therefore shuffled in each round, and short work is repeated: a turn
    is one call that is not timed, then calls for a tenth of a second (at least one), whose mean
    time is recorded.
    """
    order, shuffle = list(contenders), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in contenders}
    repeats: dict[str, int] = {}
    for name, call in contenders.items():
        call()
        repeats[name] = max(1, round(TURN / _seconds(call)))
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            call, repeat = contenders[name], repeats[name]
            call()
            times[name].append(_seconds(*[call] * repeat) / repeat)
    return times


def _seconds(*calls: Callable[[], object]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def ratio(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Return the median and quartiles of the ratio per round; above 1, `under` is faster."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    if len(ratios) < 2:
        return {'median': ratios[0], 'low': ratios[0], 'high': ratios[0]}
    low, median, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return {'median': median, 'low': low, 'high': high}


def rows(times: Mapping[str, list[float]], **common: Any) -> list[dict[str, Any]]:
    """Return one row for each contender, with its median time in seconds."""
    return [
        {**common, 'contender': name, 'seconds': statistics.median(values)}
        for name, values in times.items()
    ]
