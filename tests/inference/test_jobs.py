"""Folders of pictures: interrupted and run again, shared, and streamed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import skimage.data

from fmen_jax.files import sha256
from fmen_jax.images.read import read_rgb8
from fmen_jax.images.write import write_rgb8
from fmen_jax.inference import jobs
from fmen_jax.inference.jobs import Manifest
from fmen_jax.inference.planning import plan
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from tests.helpers import ROOT, run_cli

PHOTO = skimage.data.astronaut()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / f'in/{"deep/" * (number % 2)}{number}.png'
        write_rgb8(path, np.roll(PHOTO[:150, :140], number, 0))
    return tmp_path / 'in'


def hashes(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): sha256(p) for p in out.rglob('*') if p.is_file()}


@pytest.mark.slow
def test_killed_and_run_again(weights: Path, folder: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        verb = [sys.executable, '-m', 'fmen_jax', 'upscale', str(folder), '-o', str(out)]
        settings = ['-w', str(weights), '--engine', 'xla', '--self-ensemble', '--tile', '60']
        return [*verb, *settings, '--manifest', f'{out}.jsonl']

    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    subprocess.run(command(whole), check=True, cwd=ROOT)
    process = subprocess.Popen(command(killed), cwd=ROOT)
    deadline = time.time() + 120
    manifest = Path(f'{killed}.jsonl')
    while process.poll() is None and time.time() < deadline:
        if manifest.exists() and len(manifest.read_text().splitlines()) >= 3:
            break
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, 'it ended before it was killed'
    before = manifest.read_text().splitlines()
    assert 3 <= len(before) < 12
    stamps = {json.loads(line)['output']: None for line in before}
    stamps = {path: Path(path).stat().st_mtime_ns for path in stamps}
    subprocess.run(command(killed), check=True, cwd=ROOT)
    assert hashes(killed) == hashes(whole)
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len({entry['output'] for entry in entries}) == len(entries) == 12  # none twice
    assert all(Path(path).stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    for entry in entries:
        assert entry['output_sha256'] == sha256(Path(entry['output']))
        assert entry['input_sha256'] == sha256(Path(entry['input']))


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file(weights: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    # the last one is so large that the job cannot be over when the signal comes
    write_rgb8(folder / 'zz.png', np.tile(PHOTO, (8, 8, 1)))
    verb = [sys.executable, '-m', 'fmen_jax', 'upscale', str(folder), '-o', str(out)]
    slow = ('-w', str(weights), '--engine', 'xla', '--self-ensemble', '--tile', '60')
    # a shell starts what runs in its background with Ctrl-C ignored, and children inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*verb, *slow], cwd=ROOT)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        while process.poll() is None and not (out.exists() and any(out.rglob('*.png'))):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()  # not to run on beside the tests
        process.wait()
    found = [p for p in out.rglob('*') if p.is_file()]
    assert 0 < len(found) < 12
    for path in found:
        assert read_rgb8(path).shape == (300, 280, 3)


def test_a_rerun_makes_what_is_missing_or_changed(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    upscaler = Upscaler(load(weights))
    items = plan([folder], tmp_path / 'out', scale=2)[:4]
    path = tmp_path / 'manifest.jsonl'

    def run(settings: str = 'a', **options: Any) -> list[str]:
        results = jobs.run(items, upscaler, manifest=Manifest(path, settings), **options)
        return sorted(r.item.source.name for r in results if not r.skipped)

    names = sorted(item.source.name for item in items)
    assert run() == names
    assert run() == []
    items[1].target.unlink()
    write_rgb8(items[2].source, PHOTO[:60, :50])
    items[3].target.write_bytes(b'damaged')
    assert run() == sorted(item.source.name for item in items[1:])
    assert run('b') == names  # other weights
    path.write_text(path.read_text()[:-40])  # torn by a kill
    assert len(run('b')) == 1
    assert run('b') == []
    items[0].target.write_bytes(b'an older output')
    assert run('c', skip_existing=True) == []
    assert items[0].target.read_bytes() == b'an older output'


def test_names_on_standard_input_and_familiar_options(
    weights: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / 'out'
    names = f'{folder / "0.png"}\n{folder / "2.png"}\n'
    monkeypatch.setattr('sys.stdin.read', lambda: names, raising=False)
    assert run_cli('upscale', '-', '-o', out, '-w', weights, '-s', 2, '-t', 64) == 0
    assert sorted(hashes(out)) == ['0_x2.png', '2_x2.png']
    familiar = ('-i', folder / '0.png', '--skip_existing', '--tile_pad', 16, '-t', 40)
    assert run_cli('upscale', *familiar, '-o', out, '-w', weights, '--ext', 'webp') == 0
    assert 'these tiles are not exact' in capsys.readouterr().err
    assert '0_x2.webp' in hashes(out)
    assert run_cli('upscale', folder, '-o', out, '-w', weights, '-s', 4) == 2
    assert 'are for x2, but scale is 4' in capsys.readouterr().err
    assert run_cli('upscale', folder, '-o', out, '-w', weights, '-t', 20) == 2
    assert 'a tile of 20 LR pixels consists of its halo alone' in capsys.readouterr().err
    assert run_cli('upscale', folder, '-o', out, '-w', weights, '--quality', 200) == 2
    assert 'quality is 200; expected 1 to 100' in capsys.readouterr().err


PROGRAM = """
import sys
from pathlib import Path
from benchmarks.peak import resident
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import Item
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
upscaler = Upscaler(load(sys.argv[1]), InferenceSettings(tile=256))
(result,) = jobs.run([Item(Path(sys.argv[2]), Path(sys.argv[3]))], upscaler)
assert not result.error, result.error
print(resident())
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_memory_does_not_grow_with_the_height(weights: Path, tmp_path: Path) -> None:
    def peak(height: int) -> int:
        path = tmp_path / f'{height}.tif'
        noise: Any = pyvips.Image.gaussnoise(1500, height, mean=128, sigma=40)
        noise.cast('uchar').bandjoin([128, 90]).copy(interpretation='srgb').write_to_file(str(path))
        done = subprocess.run(
            [
                sys.executable,
                '-c',
                PROGRAM,
                str(weights),
                str(path),
                str(tmp_path / f'out{height}.tif'),
            ],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        )
        found = pyvips.Image.new_from_file(str(tmp_path / f'out{height}.tif'))
        assert (found.width, found.height) == (3000, 2 * height)
        return int(done.stdout)

    # 1500x24,000 at x2 are 432 MB of output
    assert peak(24_000) < peak(6000) + 40e6
