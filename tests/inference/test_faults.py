"""Faults of disks and files in a job: one error per picture, and nothing half-written."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmen_jax.files import sha256
from fmen_jax.images import write
from fmen_jax.images.read import count_pixels
from fmen_jax.inference import jobs
from fmen_jax.inference.jobs import JobResult, Manifest
from fmen_jax.inference.planning import Item
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from tests.helpers import PHOTO, ROOT, run_cli, save


@pytest.fixture
def upscaler(weights: Path) -> Upscaler:
    return Upscaler(load(weights))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures; the second one is noise, of which the output is the largest file."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    for name, pixels in (('a', PHOTO[:20]), ('b', noise), ('c', PHOTO[:20])):
        save(tmp_path / f'{name}.png', pixels)
    return tmp_path


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can be larger than 100 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run(folder: Path, upscaler: Upscaler, **options: Any) -> list[JobResult]:
    items = [Item(folder / f'{name}.png', folder / f'out/{name}.png') for name in 'abc']
    found = jobs.run(items, upscaler, **options)
    return sorted(found, key=lambda result: result.item.source)


def during_b(upscaler: Upscaler, action: Callable[[], object]) -> None:
    """Make the upscaler call a function while it computes the second picture."""
    real = upscaler.engine

    class Acting:
        name = 'acting'

        def __call__(self, x: np.ndarray) -> np.ndarray:
            if x.shape[1] == 150:
                action()
            return real(x)

    upscaler.engine = Acting()


def assert_only_b_failed(found: list[JobResult], folder: Path, message: str) -> None:
    assert [bool(result.error) for result in found] == [False, True, False]
    assert message in found[1].error
    assert 'b.png: ' in found[1].error
    assert len(found[1].error.splitlines()) == 1
    assert sorted(p.name for p in (folder / 'out').iterdir()) == ['a.png', 'c.png']
    assert not list(folder.glob('.*'))


def test_commands_on_a_full_disk(
    folder: Path, weights: Path, disk_of: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The large output is not written, no file is incomplete, and a rerun makes up for it."""
    disk = disk_of(40)
    command = ('upscale', *sorted(folder.glob('?.png')), '-o', disk / 'out', '-w', weights)
    assert run_cli(*command) == 1
    assert 'No space left on device' in capsys.readouterr().err
    # while the large one fills the disk, another one may fail as well
    assert {path.stem[0] for path in (disk / 'out').glob('*.png')} < {'a', 'b', 'c'}
    assert not list((disk / 'out').glob('b*'))
    assert not list((disk / 'out').glob('.*'))
    assert run_cli('prepare', folder, '-s', 2, '-o', disk / 'prepared') == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert 'No space left on device' in error
    assert str(disk) in error
    assert not list(disk.glob('prepared*/*'))
    disk_of(4000)
    assert run_cli(*command) == 0
    assert len(list((disk / 'out').glob('*.png'))) == 3
    assert run_cli('prepare', folder, '-s', 2, '-o', disk / 'prepared') == 0


def test_the_disk_is_full_for_an_output(folder: Path, upscaler: Upscaler, small_disk: None) -> None:
    assert_only_b_failed(run(folder, upscaler), folder, 'the image could not be written')


def test_the_disk_is_full_for_the_rows_of_an_output(
    folder: Path, upscaler: Upscaler, small_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, '_IN_MEMORY', 50_000)
    assert_only_b_failed(run(folder, upscaler), folder, 'File too large')


def test_a_folder_that_cannot_be_written(folder: Path, upscaler: Upscaler) -> None:
    (folder / 'file').touch()
    for target in (Path('/proc/fmen_jax/b.png'), Path('/proc/b.png'), folder / 'file/b.png'):
        items = [Item(folder / 'b.png', target), Item(folder / 'c.png', folder / 'out/c.png')]
        first, second = sorted(jobs.run(items, upscaler), key=lambda result: result.item.source)
        assert str(target.parent) in first.error, target
        assert not second.error


def test_an_input_that_is_gone(folder: Path, upscaler: Upscaler) -> None:
    during_b(upscaler, (folder / 'b.png').unlink)
    assert_only_b_failed(run(folder, upscaler), folder, 'No such file')
    assert_only_b_failed(run(folder, upscaler), folder, 'No such file')


def test_an_input_that_changes_while_it_is_read(folder: Path, upscaler: Upscaler) -> None:
    manifest = folder / 'manifest.jsonl'
    during_b(upscaler, lambda: save(folder / 'b.png', PHOTO[:30]))
    found = run(folder, upscaler, manifest=Manifest(manifest, 'x'))
    assert_only_b_failed(found, folder, 'the file was changed while it was read')
    assert len(manifest.read_text().splitlines()) == 2
    # the manifest has the hashes of what was read, so that the rerun makes the new picture alone
    found = run(folder, upscaler, manifest=Manifest(manifest, 'x'))
    assert [result.skipped for result in found] == [True, False, True]
    assert found[1].new_size == (146, 60)


def test_a_manifest_that_cannot_be_written(folder: Path, upscaler: Upscaler) -> None:
    found = run(folder, upscaler, manifest=Manifest(Path('/proc/fmen_jax.jsonl'), 'x'))
    assert all('/proc/fmen_jax.jsonl' in result.error for result in found)


def test_a_manifest_that_is_a_picture(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / 'b.png').read_bytes()
    command = (folder / 'a.png', '-o', folder / 'out', '-w', weights, '--engine', 'xla')
    assert run_cli('upscale', *command, '--manifest', folder / 'b.png') == 2
    assert 'b.png is not a text file; expected one that an earlier' in capsys.readouterr().err
    assert (folder / 'b.png').read_bytes() == before


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no names that are not text')
def test_names_that_are_not_utf8(folder: Path, upscaler: Upscaler) -> None:
    odd = folder / os.fsdecode(b'\xff.png')
    (folder / 'a.png').rename(odd)
    out = folder / 'out'
    items = [
        Item(odd, out / 'a.png'),
        Item(folder / 'b.png', out / odd.name),
        Item(folder / 'c.png', out / 'c.png'),
    ]
    found = {result.item: result.error for result in jobs.run(items, upscaler)}
    message = '\\xff.png: this path is not UTF-8, and such a file cannot be opened: rename it.'
    assert [found[item] for item in items] == [f'{folder}/{message}', f'{out}/{message}', '']
    assert [path.name for path in out.iterdir()] == ['c.png']
    assert count_pixels(odd) == 0


def test_a_named_pipe_among_the_inputs(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither reading nor the counting of pixels waits for a writer that never comes."""
    os.mkfifo(folder / 'pipe.png')
    command = (folder / 'pipe.png', folder / 'a.png', '-o', folder / 'out', '-w', weights)
    assert run_cli('upscale', *command, '--engine', 'xla') == 1
    assert 'pipe.png: the file is empty' in capsys.readouterr().err
    assert (folder / 'out/a_x2.png').exists()


@pytest.mark.slow  # two processes that start and compile
def test_two_processes_on_one_output_folder(folder: Path, weights: Path) -> None:
    assert run_cli('upscale', folder, '-o', folder / 'one', '-w', weights, '--engine', 'xla') == 0
    verb = [sys.executable, '-m', 'fmen_jax', 'upscale', *(str(folder / f'{n}.png') for n in 'abc')]
    command = [*verb, '-o', str(folder / 'both'), '-w', str(weights), '--engine', 'xla']
    command += ['--manifest', str(folder / 'both.jsonl')]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    hashes = [{p.name: sha256(p) for p in (folder / name).iterdir()} for name in ('one', 'both')]
    assert hashes[0] == hashes[1]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.count('already exists, skipped') == 3
