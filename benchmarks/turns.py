"""Measuring contenders in turn, so that a noisy machine is noisy to all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Contenders = Mapping[str, Callable[[], object]]
"""Each call does the whole work once, and waits for its result."""


def in_turn(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round of warm-up.

    In a new order in each round, because threads of the one before still spin for a while.
    """
    order, shuffle = list(contenders), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - start)
    return times


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
