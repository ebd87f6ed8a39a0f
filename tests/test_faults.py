"""Mutated files and kills; `python -m tests.fuzz --help` does more of both."""

import pytest

from tests.fuzz import kills
from tests.fuzz.checkpoints import cases
from tests.fuzz.isolation import run_isolated
from tests.fuzz.outcome import Case, Outcome, summarize


@pytest.mark.slow
def test_mutated_checkpoints() -> None:
    measured = list(run_isolated('tests.fuzz.checkpoints', cases(seed=1, count=150)))
    summary = summarize(one.outcome for one in measured)
    assert summary['failed'] == {}
    assert summary['cases'] == 150
    # Mutations that nothing notices would be no test.
    assert summary['kinds']['error'] > 75
    assert summary['kinds']['equal'] > 0


def test_the_same_seed_gives_the_same_cases() -> None:
    first, again, other = (list(cases(seed, 20)) for seed in (3, 3, 4))
    assert first == again
    assert [case.data for case in first] != [case.data for case in other]


def explode(case: Case | None) -> Outcome:
    """A reader that does what no reader may do."""
    if case is None:
        return Outcome('equal', '')
    if case.name == 'memory':
        return Outcome('error', f'{len(bytearray(300 * 2**20))}')
    if case.name == 'crash':
        import os

        os.abort()
    return Outcome('equal', '')


@pytest.mark.slow
def test_the_isolation_sees_memory_and_crashes() -> None:
    """The reader of the cases is this module's `run`."""
    names = ('fine', 'memory', 'fine', 'crash', 'fine')
    given = [Case(name, b'', '.pt') for name in names]
    found = [one.outcome for one in run_isolated(__name__, given)]
    assert [outcome.kind for outcome in found] == ['equal', 'failed', 'equal', 'failed', 'equal']
    assert found[1].detail.startswith('used 3')
    assert found[3].detail == 'exit with -6'


run = explode


@pytest.mark.slow
def test_killed_commands_can_be_run_again() -> None:
    found = kills.report(seed=1, count=20)
    assert found['failed'] == {}
    assert sum(found['survived'].values()) == 20
