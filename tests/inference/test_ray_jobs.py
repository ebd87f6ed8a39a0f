"""A folder on a local Ray cluster of two workers, one of which is killed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import skimage.data

from fmen_jax.files import sha256
from fmen_jax.images.write import write_rgb8
from fmen_jax.inference import ray_jobs
from fmen_jax.inference.jobs import JobResult
from fmen_jax.inference.planning import Item
from tests.helpers import ROOT, run_cli

PHOTO = skimage.data.astronaut()[:150, :140]


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if 'MapWorker(MapBatches' in ' '.join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.exhaustive
@pytest.mark.slow
def test_one_of_two_workers_killed(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip('ray')
    folder, out, job = tmp_path / 'in', tmp_path / 'out', tmp_path / 'job'
    for number in range(8):
        write_rgb8(folder / f'{number}.png', np.roll(PHOTO, number, 0))
    (folder / 'broken.png').write_bytes((folder / '0.png').read_bytes()[:2000])
    expected = tmp_path / 'expected'
    settings = ('-w', weights, '--engine', 'xla', '--self-ensemble', '--tile', 60)
    assert run_cli('upscale', folder, '-o', expected, *settings) == 1
    verb = [sys.executable, '-m', 'fmen_jax', 'upscale', str(folder), '-o', str(out)]
    args = [*verb, *map(str, settings), '--ray', '2', '--job', str(job)]
    quiet = os.environ | {'RAY_USAGE_STATS_ENABLED': '0'}

    process = subprocess.Popen(args, cwd=ROOT, env=quiet, stderr=subprocess.PIPE, text=True)
    deadline, killed = time.time() + 120, 0
    while process.poll() is None and time.time() < deadline and not killed:
        if len(list(out.glob('*.png'))) >= 2 and len(found := workers(process)) == 2:
            found[0].kill()
            killed += 1
        time.sleep(0.01)
    _, messages = process.communicate(timeout=120)
    assert killed, messages
    assert process.returncode == 1
    assert 'broken.png' in messages
    assert '1 of 9 pictures failed' in messages
    assert {p.name: sha256(p) for p in out.iterdir()} == {
        p.name: sha256(p) for p in expected.iterdir()
    }

    # after the repair, the rerun makes this one and one that was deleted
    write_rgb8(folder / 'broken.png', PHOTO)
    (out / '3_x2.png').unlink()
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    again = subprocess.run(args, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(list(out.iterdir())) == 9
    assert before == {
        n: t for p in out.iterdir() if (n := p.name) in before for t in [p.stat().st_mtime_ns]
    }
    lines = [p.read_text() for p in (job / 'results').iterdir()]
    ids = [json.loads(line)['id'] for line in lines]  # a picture a file
    assert len(ids) == len(set(ids)) == 11, 'the first nine, and two once more'


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_killed_job_can_be_run_again(weights: Path, tmp_path: Path) -> None:
    """SIGKILL of the process that leads the job, at random moments from its first output on."""
    pytest.importorskip('ray')
    folder, expected = tmp_path / 'in', tmp_path / 'expected'
    for number in range(8):
        write_rgb8(folder / f'{number}.png', np.roll(PHOTO, number, 0))
    settings = ('-w', weights, '--engine', 'xla', '--self-ensemble', '--tile', 60)
    assert run_cli('upscale', folder, '-o', expected, *settings) == 0
    quiet = os.environ | {'RAY_USAGE_STATS_ENABLED': '0'}
    generator, interrupted = random.Random(0), 0
    for number in range(6):
        out, job = tmp_path / f'out{number}', tmp_path / f'job{number}'
        verb = [sys.executable, '-m', 'fmen_jax', 'upscale', str(folder), '-o', str(out)]
        args = [*verb, *map(str, settings), '--ray', '2', '--job', str(job)]
        process = subprocess.Popen(args, cwd=ROOT, env=quiet, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline and not [*out.glob('*.png')]:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
        process.kill()
        interrupted += process.wait() != 0
        for path in out.glob('*.png'):
            assert sha256(path) == sha256(expected / path.name)
        again = subprocess.run(args, cwd=ROOT, env=quiet, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert {p.name: sha256(p) for p in out.iterdir()} == {
            p.name: sha256(p) for p in expected.iterdir()
        }
    assert interrupted >= 3


def items(folder: Path, *names: str) -> list[Item]:
    return [Item(folder / name, folder / 'out' / name) for name in names]


def record(job: Path, row: dict[str, Any]) -> None:
    """Write the result of a row as Ray does."""
    result = json.dumps({'size': [140, 150], 'new_size': [280, 300], 'error': '', 'skipped': False})
    line = json.dumps({'id': row['id'], 'target': row['target'], 'result': result}) + '\n'
    (job / 'results').mkdir(parents=True, exist_ok=True)
    path = job / 'results' / f'{Path(row["target"]).name}.json'
    path.write_text(line, encoding='utf-8')


def test_a_result_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    job, planned = tmp_path / 'job', items(tmp_path, 'a.png', 'b.png')
    for item in planned:
        write_rgb8(item.source, PHOTO)
        write_rgb8(item.target, PHOTO)
    rows, known = ray_jobs._rows(planned, ray_jobs._results(job))
    assert [row['item'] for row in rows] == planned
    assert known == []
    for row in rows:
        record(job, row)
    path = job / 'results/b.png.json'
    whole = path.read_bytes()
    for cut in (b'', whole[:40], whole[:40] + 'ä'.encode()[:1]):
        path.write_bytes(cut)
        rows, known = ray_jobs._rows(planned, ray_jobs._results(job))
        assert [row['item'] for row in rows] == planned[1:]
        assert known == [JobResult(planned[0], skipped=True)]
    path.write_bytes(whole)
    assert ray_jobs._rows(planned, ray_jobs._results(job))[0] == []


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no names that are not text')
def test_inputs_that_cannot_be_read_are_errors_of_their_own(tmp_path: Path) -> None:
    not_utf8 = os.fsdecode(b'\xff.png')
    planned = items(tmp_path, 'a.png', 'gone.png', not_utf8)
    for name in ('a.png', not_utf8):
        (tmp_path / name).touch()
    rows, known = ray_jobs._rows(planned, [])
    assert [row['item'] for row in rows] == planned[:1]
    assert [result.item for result in known] == planned[1:]
    assert known[0].error == f'{tmp_path / "gone.png"}: No such file or directory.'
    assert '\\xff.png: this path is not UTF-8' in known[1].error


def test_another_job_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip('ray')
    write_rgb8(tmp_path / 'a.png', PHOTO)
    (tmp_path / 'job').mkdir()
    (tmp_path / 'job/job.json').write_text('["other weights"]')
    args = ('upscale', tmp_path / 'a.png', '-o', tmp_path / 'out', '-w', weights)
    assert run_cli(*args, '--ray', 1, '--job', tmp_path / 'job') == 2
    assert 'other weights or settings' in capsys.readouterr().err
    assert run_cli(*args, '--ray', 1) == 2
    assert 'a job on Ray needs both ray and job' in capsys.readouterr().err


def test_the_last_of_several_results_counts_in_any_order(tmp_path: Path) -> None:
    planned = items(tmp_path, 'a.png')
    write_rgb8(planned[0].source, PHOTO)
    write_rgb8(planned[0].target, PHOTO)
    results = []
    for error in ('the disk is full', ''):
        (row,), _ = ray_jobs._rows(planned, results)
        result = json.dumps({'error': error})
        results.append({'id': row['id'], 'target': row['target'], 'result': result})
    for found in (results, results[::-1]):
        assert ray_jobs._rows(planned, found) == ([], [JobResult(planned[0], skipped=True)])
