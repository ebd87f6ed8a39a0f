"""Runs that are stopped or killed, and resumed: to the bit, and only with the same data."""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorboardX
from orbax.checkpoint import v1 as ocp

from fmen_jax.errors import FMENWarning, InputError
from fmen_jax.training import workdir as workdirs
from fmen_jax.training.checkpoint import CheckpointError, Checkpoints
from fmen_jax.training.experiment import DataConfig, flat
from tests.helpers import PHOTO, SHORT, SmokeRun, enlarger, interrupt, kill_at_ten, save

Make = Callable[[str], SmokeRun]


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bits(run: Make, environment: dict[str, str]) -> None:
    whole, killed = run('whole'), run('killed')
    options = ('--step.ema-decay', '0.9')
    subprocess.run(whole.command(*options), env=environment, check=True)
    # with a worker process, which must end with its parent
    process = subprocess.Popen(
        killed.command(*options, '--pipeline.processes', '1'), env=environment
    )
    children = kill_at_ten(process, killed.workdir)
    assert children or not Path('/proc').exists()
    deadline = time.time() + 60
    while any(map(is_running, children)) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, children))
    assert not (killed.workdir / 'weights.safetensors').exists()
    again = (*options, '--pipeline.threads', '5')  # other workers, the same data
    subprocess.run(killed.command(*again), env=environment, check=True)
    assert killed.weights() == whole.weights()
    assert killed.losses() == whole.losses()
    # the same command once more does nothing and says the same
    subprocess.run(killed.command(*again), env=environment, check=True)
    assert killed.losses() == whole.losses()


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_sigterm_saves_and_leaves(run: Make, environment: dict[str, str]) -> None:
    options = ('--loop.steps', '100000', '--loop.checkpoint-every', '100000')
    stopped = run('stopped')
    process = subprocess.Popen(
        stopped.command(*options), env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith('step 10 '):
            break
    # meanwhile the workdir is in use
    second = subprocess.run(
        stopped.command(*options), env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    assert second.returncode == 2
    assert 'is in use by another training process' in second.stderr
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'the same command resumes from' in output
    saved = max(int(path.name) for path in (stopped.workdir / 'checkpoints').iterdir())
    assert saved == max(stopped.losses())


def test_another_experiment_is_refused(run: Make) -> None:
    made = run('run')
    experiment = made.experiment()
    made.workdir.mkdir()
    settings = flat(experiment)
    settings['loop.keep'] = settings.pop('loop.keep_last')  # its name in earlier versions
    (made.workdir / 'config.json').write_text(json.dumps(settings))
    workdirs.check_settings(made.workdir, experiment)
    free = made.experiment(loop={'keep_last': 5}, data={'changed': 'accept'})
    workdirs.check_settings(made.workdir, free)
    changed = made.experiment(optim={'learning_rate': 2e-3})
    with pytest.raises(InputError, match=r'optim.learning_rate is 0.002, was 0.001'):
        made.train(changed)
    for text in ('{', '[]'):
        (made.workdir / 'config.json').write_text(text)
        with pytest.raises(InputError, match=r'config.json is broken'):
            made.train(experiment)


@pytest.mark.parametrize('text', ['[[1]]', '{}', '[["a", "b"]]', '[["a", "b", 3]]'])
def test_a_broken_list_of_images_is_refused(run: Make, text: str) -> None:
    made = run('run')
    made.workdir.mkdir()
    (made.workdir / 'data.json').write_text(text)
    with pytest.raises(InputError, match=r'data.json is broken'):
        made.train(made.experiment())


def test_a_mistyped_folder_does_not_claim_the_workdir(run: Make) -> None:
    made = run('run')
    experiment = dataclasses.replace(made.experiment(), data=DataConfig(train=('phtos',)))
    with pytest.raises(InputError, match='phtos'):
        made.train(experiment)
    assert not made.workdir.exists()


def hold(folder: Path, ready: Any) -> None:
    with workdirs.locked(folder):
        ready.set()
        time.sleep(600)


def test_a_workdir_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    """The lock of a killed process ends with it."""
    context = multiprocessing.get_context('spawn')
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / 'run', ready))
    process.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(InputError, match='is in use by another'),
            workdirs.locked(tmp_path / 'run'),
        ):
            pass
    finally:
        process.kill()
        process.join()
    with workdirs.locked(tmp_path / 'run'):
        pass
    with workdirs.locked(tmp_path / 'run'), workdirs.locked(tmp_path / 'other'):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def flock(*args: Any) -> None:
        raise OSError(errno.ENOLCK, 'no locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.warns(FMENWarning, match='cannot be locked'), workdirs.locked(tmp_path):
        pass


@pytest.fixture
def stopped(run: Make, tmp_path: Path, compilation_cache: None) -> SmokeRun:
    """A run on a copy of the photographs, stopped after two of four steps."""
    made = run('stopped')
    made = SmokeRun(made.workdir, Path(shutil.copytree(made.photos, tmp_path / 'pictures')))
    report = stop_at(2)
    assert made.train(made.experiment(**SHORT), report=report) is None
    return made


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def report(record: dict[str, Any]) -> None:
        if record['step'] == step:
            interrupt()

    return report


def test_changed_training_images_are_noticed(stopped: SmokeRun) -> None:
    experiment = stopped.experiment(**SHORT)
    save(stopped.photos / 'c.png', PHOTO)
    save(stopped.photos / 'b.png', PHOTO)
    (stopped.photos / 'a.png').rename(stopped.photos / 'd.png')
    before = (stopped.workdir / 'data.json').read_bytes()
    with pytest.raises(InputError, match='are not those with which the run') as caught:
        stopped.train(experiment)
    for line in ('2 added, such as c in', '1 removed, such as a in', '1 changed, such as b in'):
        assert line in str(caught.value)
    assert (stopped.workdir / 'data.json').read_bytes() == before
    accepting = stopped.experiment(**SHORT)
    data = dataclasses.replace(accepting.data, changed='accept')
    with pytest.warns(FMENWarning, match='the training images have changed'):
        assert stopped.train(dataclasses.replace(accepting, data=data))
    assert len(json.loads((stopped.workdir / 'data.json').read_text())) == 3


def test_images_copied_to_new_files_are_the_same(stopped: SmokeRun) -> None:
    """Another time or format of a file does not matter: its pixels do."""
    for path in stopped.photos.iterdir():
        path.write_bytes(path.read_bytes())
        os.utime(path, (1, 1))
    assert stopped.train(stopped.experiment(**SHORT))


def damage(workdir: Path, step: int, how: str) -> None:
    """Truncate, remove or change the file with the tensors of a checkpoint."""
    folder = workdir / f'checkpoints/{step}/state/ocdbt.process_0/d'
    path = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == 'missing':
        path.unlink()
    elif how == 'truncated':
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


@pytest.mark.parametrize('how', ['truncated', 'missing', 'changed'])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    how: str, run: Make, compilation_cache: None
) -> None:
    whole, damaged = run('whole'), run('damaged')
    experiment = whole.experiment(validate=True, **SHORT)
    assert whole.train(experiment, upscaler=enlarger)
    shutil.copytree(whole.workdir, damaged.workdir)
    (damaged.workdir / 'weights.safetensors').unlink()
    damage(damaged.workdir, 4, how)
    with pytest.warns(FMENWarning, match=r'(?s)step 4: .*The checkpoint of step 3 is used'):
        assert damaged.train(experiment, upscaler=enlarger)
    assert damaged.weights() == whole.weights()
    assert damaged.records()[-1] == whole.records()[-1]  # the validation of step 4, made again
    assert [path.name for path in (damaged.workdir / 'damaged').iterdir()] == ['4']
    for path in (damaged.workdir / 'checkpoints').iterdir():
        damage(damaged.workdir, int(path.name), how)
    with pytest.raises(CheckpointError, match=r'(?s)none of the \d checkpoints .* can be read'):
        damaged.train(experiment, upscaler=enlarger)
    assert (damaged.workdir / 'checkpoints/4').exists()


@contextlib.contextmanager
def unraisable_ignored() -> Iterator[None]:
    """Orbax leaves tasks behind when it cannot read a file; pytest reports them as warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', pytest.PytestUnraisableExceptionWarning)
        yield


def test_a_checkpoint_without_hashes_is_read_or_replaced(stopped: SmokeRun) -> None:
    """A run that was killed after a checkpoint was written, or one of an earlier version."""
    (stopped.workdir / 'checkpoints.json').unlink()
    folder = stopped.workdir / 'checkpoints'
    before, last = sorted(int(path.name) for path in folder.iterdir())
    (folder / f'{last}/state/_METADATA').write_text('{')
    with unraisable_ignored(), pytest.warns(FMENWarning, match=f'step {before} is used'):
        assert stopped.train(stopped.experiment(**SHORT))


def test_a_broken_index_is_a_clear_error(stopped: SmokeRun) -> None:
    (stopped.workdir / 'checkpoints.json').write_text('{"psnr": ')
    with pytest.raises(InputError, match=r'checkpoints.json is broken .*: remove it'):
        stopped.train(stopped.experiment(**SHORT))


def test_a_full_disk_is_one_error_and_the_run_resumes(
    run: Make,
    disk_of: Callable[[int], Path],
    compilation_cache: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # its thread would fail minutes later, in another test
    nothing = functools.partial(tensorboardX.SummaryWriter, write_to_disk=False)
    monkeypatch.setattr(tensorboardX, 'SummaryWriter', nothing)
    whole = run('whole')
    assert whole.train(whole.experiment(**SHORT))
    disk = disk_of(20_000)
    full = SmokeRun(disk / 'run', whole.photos)
    experiment = full.experiment(**SHORT)

    def fill(record: dict[str, Any]) -> None:
        if record['step'] == 2:
            (disk / 'other').write_bytes(bytes(shutil.disk_usage(disk).free))

    # the next line of the log fails, or the checkpoint that is being written
    failed = pytest.raises((CheckpointError, OSError), match='cannot be written|No space left')
    with failed as caught:
        full.train(experiment, report=fill)
    assert '\n' not in str(caught.value)
    assert not (full.workdir / 'weights.safetensors').exists()
    (disk / 'other').unlink()
    assert full.train(experiment)
    assert full.weights() == whole.weights()


def test_writes_that_end_after_a_failed_one_print_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Write:
        def __init__(self, reason: str) -> None:
            self._reason = reason

        def __del__(self) -> None:
            raise RuntimeError(self._reason)

    printed: list[str] = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda found: printed.append(str(found.exc_value)))
    before = sys.unraisablehook
    with Checkpoints(tmp_path / 'checkpoints', keep_last=1):
        assert sys.unraisablehook != before
    assert sys.unraisablehook == before
    with (
        pytest.raises(CheckpointError, match='full'),
        Checkpoints(tmp_path / 'checkpoints', keep_last=1),
    ):
        Write('Event loop is closed')
        raise CheckpointError('full')
    Write('Event loop is closed')
    Write('another error')
    assert printed == ['another error']


def test_a_checkpoint_that_cannot_be_written_is_one_error(
    run: Make, compilation_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(self: Any) -> None:
        raise ValueError('RESOURCE_EXHAUSTED: no space\nin many lines')

    monkeypatch.setattr(ocp.training.Checkpointer, 'wait', wait)
    made = run('run')
    with pytest.raises(
        CheckpointError, match=r'cannot be written .*\(RESOURCE_EXHAUSTED: no space\)'
    ):
        made.train(made.experiment(**SHORT))
