"""Two processes that train one network."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers import SmokeRun

Make = Callable[[str], SmokeRun]


def pair(one: list[str], environment: dict[str, str], **options: Any) -> list[subprocess.Popen]:
    """Two processes that do what the command of one would do."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    cluster = ('--cluster', address, '--processes', '2', '--process')
    return [
        subprocess.Popen([*one, *cluster, str(process)], env=environment, **options)
        for process in range(2)
    ]


@pytest.mark.slow
def test_two_processes_train_as_one(run: Make, environment: dict[str, str]) -> None:
    one, two = run('one'), run('two')
    subprocess.run(one.command(), env=environment, check=True)
    running = pair(two.command(), environment)
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    assert two.losses() == pytest.approx(one.losses(), rel=1e-4)
    assert (two.workdir / 'weights.safetensors').exists()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_one_of_two_processes_killed_and_run_again_by_one(
    run: Make, environment: dict[str, str]
) -> None:
    whole, killed = run('whole'), run('killed')
    steps = ('--loop.steps', '60')
    subprocess.run(whole.command(*steps), env=environment, check=True)
    running = pair(killed.command(*steps), environment, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while not (killed.workdir / 'checkpoints/10').exists() and time.time() < deadline:
        time.sleep(0.01)
    running[1].kill()
    _, messages = running[0].communicate(timeout=60)  # heartbeats are missed for 30 s at most
    assert running[0].returncode not in (0, None)
    assert b'another task died' in messages or b'ended or cannot be reached' in messages
    assert max(killed.losses(), default=0) < 60
    running[1].communicate()
    assert running[1].returncode == -signal.SIGKILL
    subprocess.run(killed.command(*steps), env=environment, check=True)
    assert killed.losses() == pytest.approx(whole.losses(), rel=1e-4)
    assert (killed.workdir / 'weights.safetensors').exists()
