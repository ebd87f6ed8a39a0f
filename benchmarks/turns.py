"""Measuring contenders in turn, so that a noisy machine is noisy to all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Contenders = Mapping[str, Callable[[], object]]
"""Each call does the whole work once, and waits for its result."""

TURN = 0.1
"""Seconds of a turn at least, as near as whole calls come to it."""


def in_turn(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round of warm-up.

    The neighbour before still has its threads spinning and its data in the cache, so the order is
    new in each round, and short work is repeated: a turn is a call that does not count, then
    calls for a tenth of a second, or one, of which the mean does.
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
    """Median and quartiles of the rounds' ratios: above 1, `under` is the faster one."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    if len(ratios) < 2:
        return {'median': ratios[0], 'low': ratios[0], 'high': ratios[0]}
    low, median, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return {'median': median, 'low': low, 'high': high}


def rows(times: Mapping[str, list[float]], **common: Any) -> list[dict[str, Any]]:
    """One row for each contender, with the median of its seconds."""
    return [
        {**common, 'contender': name, 'seconds': statistics.median(values)}
        for name, values in times.items()
    ]
