"""`python -m tests.fuzz [checkpoints | pictures | kills]`."""

import argparse
import importlib
import json
import sys
import time

from tests.fuzz.isolation import Measured, run_isolated
from tests.fuzz.outcome import summarize


def main() -> int:
    """Run the cases, print the counts as JSON, and return 1 if any case failed."""
    parser = argparse.ArgumentParser(prog='python -m tests.fuzz', description=__doc__)
    parser.add_argument(
        'kinds',
        nargs='*',
        default=['checkpoints', 'pictures'],
        help='checkpoints, pictures, kills; mutated checkpoints and pictures if omitted',
    )
    parser.add_argument('--cases', type=int, default=300, help='number of mutated files of a kind')
    parser.add_argument('--count', type=int, default=20, help='number of kills')
    parser.add_argument('--seed', type=int, default=0, help='seed of the mutations and the kills')
    given = parser.parse_args()
    failed = False
    for kind in given.kinds:
        start = time.perf_counter()
        if kind == 'kills':
            found = importlib.import_module('tests.fuzz.kills').report(given.seed, given.count)
        else:
            found = report(kind, given.seed, given.cases)
        found['minutes'] = round((time.perf_counter() - start) / 60, 1)
        sys.stdout.write(json.dumps({kind: found}, indent=1) + '\n')
        failed |= bool(found['failed'])
    return int(failed)


def report(kind: str, seed: int, count: int) -> dict:
    """Run the cases of a kind and return the counts, and the largest and slowest case."""
    module = f'tests.fuzz.{kind}'
    measured: list[Measured] = []
    cases = importlib.import_module(module).cases(seed, count)
    for number, one in enumerate(run_isolated(module, cases), 1):
        measured.append(one)
        if one.outcome.kind == 'failed':
            sys.stderr.write(f'failed: {one.name}: {one.outcome.detail}\n')
        if number % 500 == 0:
            sys.stderr.write(f'{number} of {count}\n')
    largest = max(measured, key=lambda one: one.growth)
    slowest = max(measured, key=lambda one: one.seconds)
    return summarize(one.outcome for one in measured) | {
        'largest': {'case': largest.name, 'MiB': round(largest.growth / 2**20)},
        'slowest': {'case': slowest.name, 'seconds': round(slowest.seconds, 2)},
    }


if __name__ == '__main__':
    sys.exit(main())
