"""`fmen-jax upscale`, from files to files."""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fmen_jax.inference import engines
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from tests.helpers import ROOT, corrupted, run_cli

PHOTO = skimage.data.astronaut()[:24, :31]


run = functools.partial(run_cli, 'upscale')


def opened(path: Path) -> Image.Image:
    """A picture read to its end, the file closed."""
    with Image.open(path) as image:
        image.load()
    return image


def luma_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of BT.601 studio luma, 4 pixels cropped: this test's own few lines."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    error = ((a.astype(float) - b) @ weights)[4:-4, 4:-4]
    return 10 * np.log10(255**2 / np.square(error).mean())


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ('name', 'file'), [('fmen_github', 'github.pt'), ('fmen_ntire', 'ntire2022.pth')]
)
def test_set5_gives_the_published_psnr(
    name: str, file: str, shared: Callable[[str], Path], tmp_path: Path
) -> None:
    """From files to files, in a process of its own; and not so with a corrupted weight."""
    benchmark = shared('data/benchmarks/Set5')
    official = shared(f'official/fmen_s_x4_{file}')
    net = load(official)
    broken = tmp_path / 'broken.safetensors'
    params = net.variables['params']
    params = {**params, 'tail_0': corrupted(params['tail_0'], by=1.0)}
    dataclasses.replace(net, variables={'params': params}).save(broken)
    figures = json.loads((ROOT / 'tests/golden/benchmarks_x4.json').read_text())['Set5'][name]

    def measured(weights: Path) -> dict[str, float]:
        out = tmp_path / weights.stem
        verb = [sys.executable, '-m', 'fmen_jax', 'upscale', str(benchmark / 'LR_bicubic/X4')]
        subprocess.run([*verb, '-o', str(out), '--weights', str(weights)], check=True, cwd=ROOT)
        found = {}
        for path in sorted((benchmark / 'HR').iterdir()):
            ours = np.asarray(opened(out / f'{path.stem}x4_x4.png'))
            height, width = ours.shape[:2]
            found[path.stem] = luma_psnr(ours, np.asarray(opened(path))[:height, :width])
        return found

    found = measured(official)
    assert len(found) == 5
    assert abs(np.mean(list(found.values())) - figures['psnr']) < 0.0005
    for image, (psnr, _) in figures['per_image'].items():
        assert abs(found[image] - psnr) < 0.002, image
    assert abs(np.mean(list(measured(broken).values())) - figures['psnr']) > 0.0005


def test_files_folders_and_names(weights: Path, tmp_path: Path, capsys: Any) -> None:
    folder, out = tmp_path / 'in', tmp_path / 'out'
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / 'a.png')
    Image.fromarray(PHOTO).save(folder / 'b.JPG')
    Image.fromarray(PHOTO[..., 0]).save(folder / 'gray.tif')
    (folder / 'notes.txt').write_text('not a picture')
    Image.fromarray(PHOTO[:9]).save(tmp_path / 'c.webp')
    assert run(folder, tmp_path / 'c.webp', '-o', out, '--weights', weights) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        'a_x2.png',
        'b_x2.JPG',
        'c_x2.webp',
        'gray_x2.tif',
    ]
    assert opened(out / 'a_x2.png').size == (62, 48)
    assert opened(out / 'c_x2.webp').size == (62, 18)
    assert opened(out / 'gray_x2.tif').mode == 'L'
    assert 'a_x2.png  31x24 -> 62x48' in capsys.readouterr().out
    np.testing.assert_array_equal(opened(out / 'a_x2.png'), Upscaler(load(weights))(PHOTO))


def test_one_file_to_one_file(weights: Path, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / 'a.png')
    target = tmp_path / 'deep/er/b.webp'
    assert run(tmp_path / 'a.png', '--output', target, '-w', weights) == 0
    assert opened(target).format == 'WEBP'


def test_a_bad_picture_is_named_and_the_rest_goes_on(
    weights: Path, tmp_path: Path, capsys: Any
) -> None:
    folder, out = tmp_path / 'in', tmp_path / 'out'
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / 'a.png')
    (folder / 'b.png').write_bytes((folder / 'a.png').read_bytes()[:900])
    Image.fromarray(PHOTO).save(folder / 'c.png')
    assert run(folder, '-o', out, '-w', weights) == 1
    assert sorted(p.name for p in out.iterdir()) == ['a_x2.png', 'c_x2.png']
    errors = capsys.readouterr().err
    assert 'b.png: the file is not a complete, readable image' in errors
    assert '1 of 3 pictures failed' in errors


def test_errors_of_the_command_line(weights: Path, tmp_path: Path, capsys: Any) -> None:
    Image.fromarray(PHOTO).save(tmp_path / 'a.png')
    assert run(tmp_path / 'a.png', '-o', tmp_path, '-w', 'fmen_s_x9') == 2
    assert 'error: fmen_s_x9 is neither a file nor a name' in capsys.readouterr().err
    assert run(tmp_path / 'a.png', '--nothing') == 2  # tyro's own words
    assert '--nothing' in capsys.readouterr().err


def test_programs_of_many_sizes_are_let_go(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, '_PROGRAMS', 4)
    engine = engines.Xla(load(weights).fold(), 'float32')
    kept = []
    for height in range(4, 14):
        engine(np.zeros((1, height, 4, 3), np.float32))
        kept.append(engine._function._cache_size())
    assert max(kept) == 4


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('xla', 'RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.'),
        ('onnxruntime', '[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:359 no memory'),
        ('onnxruntime', 'Failed to allocate memory for requested buffer of size 12'),
        ('openvino', "Check 'ptr' failed at src/plugins/intel_cpu/src/cpu_memory.cpp"),
    ],
)
def test_memory_that_is_not_there_is_told_alike(name: Any, words: str, weights: Path) -> None:
    engine = engines.make_engine(load(weights), name)

    class Failing:
        def __call__(self, *args: Any) -> Any:
            raise RuntimeError(words)

        run = __call__

    for attribute in ('_function', '_session', '_compiled'):
        if hasattr(engine, attribute):
            setattr(engine, attribute, Failing())
    with pytest.raises(engines.OutOfMemoryError, match='choose a smaller tile'):
        engine(np.zeros((1, 8, 8, 3), np.float32))
