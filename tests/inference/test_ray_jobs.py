"""A folder on a local Ray cluster of two workers, one of which is killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import skimage.data

from fmen_jax.files import sha256
from fmen_jax.images import rgb8
from tests.helpers import ROOT, run_cli

pytest.importorskip('ray')

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


@pytest.mark.slow
def test_one_of_two_workers_killed(weights: Path, tmp_path: Path) -> None:
    folder, out, job = tmp_path / 'in', tmp_path / 'out', tmp_path / 'job'
    for number in range(8):
        rgb8.write(folder / f'{number}.png', rgb8.Picture(np.roll(PHOTO, number, 0)))
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

    # mended, run again: this one alone is made, and one that was deleted
    rgb8.write(folder / 'broken.png', rgb8.Picture(PHOTO))
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


def test_another_job_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rgb8.write(tmp_path / 'a.png', rgb8.Picture(PHOTO))
    (tmp_path / 'job').mkdir()
    (tmp_path / 'job/job.json').write_text('["other weights"]')
    args = ('upscale', tmp_path / 'a.png', '-o', tmp_path / 'out', '-w', weights)
    assert run_cli(*args, '--ray', 1, '--job', tmp_path / 'job') == 2
    assert 'other weights or settings' in capsys.readouterr().err
    assert run_cli(*args, '--ray', 1) == 2
    assert 'ray and job go together' in capsys.readouterr().err
