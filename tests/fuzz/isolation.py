"""Runs cases in a process of their own, which may crash, hang or use too much memory."""

import dataclasses
import multiprocessing
import resource
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.outcome import Case, Outcome

MAX_SECONDS = 60.0
"""Time after which a case counts as hanging. Most cases take milliseconds."""

MAX_BYTES = 256 * 2**20
"""Memory that a case may use in addition to what the process has before. The files are smaller
than 2 MiB; the rest is what JAX needs to infer the shapes of a network that it has not seen yet."""

# Memory that a case can get at all, so that a failure does not take the machine with it.
_HARD_LIMIT = 6 * 2**30


@dataclasses.dataclass(frozen=True)
class Measured:
    """An outcome, with what it cost."""

    name: str
    outcome: Outcome
    seconds: float
    growth: int
    """Peak memory in bytes, in addition to that of the process before the case."""


def run_isolated(module: str, cases: Iterable[Case]) -> Iterator[Measured]:
    """Yield the outcome of the function `run` of a module for each case."""
    context = multiprocessing.get_context('spawn')
    worker, connection = _start(context, module)
    try:
        for case in cases:
            start = time.perf_counter()
            connection.send(case)
            try:
                if connection.poll(MAX_SECONDS):
                    outcome, growth = connection.recv()
                else:
                    outcome, growth = Outcome('failed', f'no end within {MAX_SECONDS} s'), 0
            except EOFError:
                worker.join()
                outcome, growth = Outcome('failed', f'exit with {worker.exitcode}'), 0
            if growth > MAX_BYTES:
                outcome = Outcome('failed', f'used {growth / 2**20:.0f} MiB')
            yield Measured(case.name, outcome, time.perf_counter() - start, growth)
            if outcome.kind == 'failed':
                worker.kill()
                worker.join()
                worker, connection = _start(context, module)
    finally:
        worker.kill()
        worker.join()


def _start(context: multiprocessing.context.SpawnContext, module: str) -> tuple:
    ours, theirs = context.Pipe()
    worker = context.Process(target=_serve, args=(module, theirs), daemon=True)
    worker.start()
    theirs.close()
    assert ours.recv() == 'ready'
    return worker, ours


def _serve(module: str, connection: Connection) -> None:
    run = import_module(module).run
    run(None)
    limit = _memory('VmSize') + _HARD_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send('ready')
    while True:
        case = connection.recv()
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak, VmHWM
        before = _memory('VmRSS')
        outcome = run(case)
        connection.send((outcome, _memory('VmHWM') - before))


def _memory(name: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)
