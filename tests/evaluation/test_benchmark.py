"""Benchmark folders in the layouts of the field, and `fmen-jax evaluate` on them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

import fmen_jax
from fmen_jax import porting
from fmen_jax.cli import main
from fmen_jax.data.bicubic import imresize
from fmen_jax.errors import InputError
from fmen_jax.evaluation import benchmark, protocols
from fmen_jax.inference.upscaler import Upscaler
from tests.conftest import ROOT, Golden

PHOTO = skimage.data.astronaut()[100:157, 150:223]  # 57 x 73: odd on purpose
FIGURES = json.loads((ROOT / 'tests/golden/benchmarks_x4.json').read_text())
WEIGHTS = {
    'fmen_github': 'fmen_s_x4_github.pt',
    'fmen_ntire': 'fmen_s_x4_ntire2022.pth',
    'rfdn': 'e_rfdn_x4.pth',
    'rlfn': 'rlfn_x4_ntire2022.pth',
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('FMEN_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize('data', ['Set5', 'Set14'])
@pytest.mark.parametrize('name', WEIGHTS)
def test_published_figures_of_every_picture(
    name: str, data: str, shared: Callable[[str], Path]
) -> None:
    upscale = Upscaler(fmen_jax.load(shared(f'official/{WEIGHTS[name]}')))
    pairs = benchmark.find_pairs(shared(f'data/benchmarks/{data}'), 4)
    rule = protocols.protocol('y')
    scores = list(benchmark.evaluate(upscale, pairs, scale=4, protocol=rule))
    ours, bicubic = FIGURES[data][name], FIGURES[data]['bicubic']
    assert {score.name for score in scores} == set(ours['per_image'])
    for score in scores:
        for psnr, ssim, expected in [
            (score.psnr, score.ssim, ours['per_image'][score.name]),
            (score.bicubic_psnr, score.bicubic_ssim, bicubic['per_image'][score.name]),
        ]:
            assert abs(psnr - expected[0]) < 1e-4, score.name
            assert abs(ssim - expected[1]) < 1e-5, score.name
    mean = benchmark.Result(name, data, 4, rule, scores).mean
    assert abs(mean.psnr - ours['psnr']) < 1e-4
    assert abs(mean.bicubic_ssim - bicubic['ssim']) < 1e-5


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def lay_out(folder: Path, layout: str, scale: int = 2) -> Path:
    """A benchmark of two pictures, one gray, in a layout."""
    for name, hr in [('a', PHOTO), ('b', PHOTO[::-1, :, 0])]:
        height, width = (size // scale * scale for size in hr.shape[:2])
        pixels = hr[:height, :width].reshape(height, width, -1)
        lr = imresize(pixels, 1 / scale).squeeze()
        if layout == 'SelfExSR':
            save(folder / f'image_SRF_{scale}/{name}_SRF_{scale}_HR.png', hr)
            save(folder / f'image_SRF_{scale}/{name}_SRF_{scale}_LR.png', lr)
        elif layout == 'EDSR':
            save(folder / f'HR/{name}.png', hr)
            save(folder / f'LR_bicubic/X{scale}/{name}x{scale}.png', lr)
        elif layout == 'DIV2K':
            save(folder / f'{folder.name}_HR/{name}.png', hr)
            save(folder / f'{folder.name}_LR_bicubic/X{scale}/{name}x{scale}.png', lr)
        elif layout == 'BasicSR':
            save(folder / f'GTmod12/{name}.png', hr)
            save(folder / f'LRbicx{scale}/{name}.png', lr)
        elif layout == 'HR folder':
            save(folder / f'HR/{name}.png', hr)
        else:
            save(folder / f'{name}.png', hr)
    return folder


LAYOUTS = ['SelfExSR', 'EDSR', 'DIV2K', 'BasicSR', 'HR folder', 'HR alone']


@pytest.mark.parametrize('scale', [2, 3])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout: str, scale: int, tmp_path: Path, cache: Path) -> None:
    """All give the same pairs; LR files that are not there are made, once."""
    pairs = benchmark.find_pairs(lay_out(tmp_path / 'bench', layout, scale), scale)
    made = 'HR' in layout.split()
    assert [pair.lr is None for pair in pairs] == [made, made]
    for _ in range(2):
        first, second = (benchmark.load_pair(pair, scale) for pair in pairs)
        height, width = (size // scale * scale for size in PHOTO.shape[:2])
        np.testing.assert_array_equal(first.hr, PHOTO[:height, :width])
        np.testing.assert_array_equal(first.lr, imresize(first.hr, 1 / scale))
        assert second.hr.shape == first.hr.shape  # gray, in three equal channels
        assert (second.hr == second.hr[..., :1]).all()
        assert len(list(cache.glob('lr/*.png'))) == 2 * made


def test_faults_of_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='missing: no such folder'):
        benchmark.find_pairs(tmp_path / 'missing', 2)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=r'no pictures for x2.*image_SRF_2/\*_HR.png, HR/\*.png'):
        benchmark.find_pairs(tmp_path / 'empty', 2)
    folder = lay_out(tmp_path / 'lost', 'EDSR')
    (folder / 'LR_bicubic/X2/bx2.png').unlink()
    with pytest.raises(InputError, match=r'1 of 2 LR pictures are missing, such as .*bx2.png'):
        benchmark.find_pairs(folder, 2)
    folder = lay_out(tmp_path / 'sizes', 'EDSR')
    save(folder / 'LR_bicubic/X2/ax2.png', PHOTO[:20])
    with pytest.raises(InputError, match=r'ax2.png is 73x20 and .*a.png 73x57: expected 36x28'):
        benchmark.load_pair(benchmark.find_pairs(folder, 2)[0], 2)
    folder = lay_out(tmp_path / 'deep', 'EDSR')
    save(folder / 'HR/a.png', PHOTO[..., 0].astype(np.uint16) * 257)
    with pytest.raises(InputError, match='a.png: is not 8 bit'):
        benchmark.load_pair(benchmark.find_pairs(folder, 2)[0], 2)


@pytest.fixture
def weights(tiny_x2: Golden, tmp_path: Path) -> Path:
    path = tmp_path / 'tiny.safetensors'
    porting.write(path, tiny_x2.below('train/'), {})
    return path


def run(*args: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main(['evaluate', *map(str, args)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_command_line(weights: Path, tmp_path: Path, capsys: Any) -> None:
    bench = lay_out(tmp_path / 'bench', 'EDSR')
    outputs = [tmp_path / f'scores.{ending}' for ending in ('json', 'csv', 'md', 'png')]
    options = zip(('--json', '--csv', '--markdown', '--sheet'), outputs, strict=True)
    args = ('--weights', weights, '--data', bench, '--protocol', 'y')
    assert run(*args, *(part for option in options for part in option)) == 0
    found = json.loads(outputs[0].read_text())
    net, pair = Upscaler(fmen_jax.load(weights)), benchmark.find_pairs(bench, 2)[0]
    loaded = benchmark.load_pair(pair, 2)
    expected = protocols.protocol('y').score(
        net(loaded.lr).astype(float), loaded.hr.astype(float), scale=2
    )
    assert (found['protocol'], found['scale'], found['weights']) == ('y', 2, 'tiny')
    assert [image['name'] for image in found['images']] == ['a', 'b']
    assert abs(found['images'][0]['psnr'] - expected.psnr) < 1e-12
    assert abs(found['images'][0]['ssim'] - expected.ssim) < 1e-12
    psnr = [image['psnr'] for image in found['images']]
    assert abs(found['mean']['psnr'] - np.mean(psnr)) < 1e-12
    rows = list(csv.DictReader(outputs[1].read_text().splitlines()))
    assert [row['name'] for row in rows] == ['a', 'b', 'mean']
    assert float(rows[0]['psnr']) == psnr[0]
    assert outputs[2].read_text().strip() == capsys.readouterr().out.strip()
    assert 'y (BT.601 luma, 1 x scale pixels cropped' in outputs[2].read_text()
    with Image.open(outputs[3]) as sheet:
        assert sheet.size == (4 * 196, 2 * 212)
        tile = np.asarray(sheet)[16 : 16 + 56, 3 * 196 : 3 * 196 + 72]
    np.testing.assert_array_equal(tile, loaded.hr)


def test_many_results_are_a_list(weights: Path, tmp_path: Path) -> None:
    folders = [lay_out(tmp_path / name, 'HR alone') for name in ('one', 'two')]
    assert run('-w', weights, '-d', *folders, '--json', tmp_path / 'x.json') == 0
    found = json.loads((tmp_path / 'x.json').read_text())
    assert [result['data'] for result in found] == ['one', 'two']
    assert found[0]['mean'] == found[1]['mean']


def test_faults_are_found_before_the_work(weights: Path, tmp_path: Path, capsys: Any) -> None:
    bench = lay_out(tmp_path / 'bench', 'EDSR')
    for args, message in [
        (('-d', bench, tmp_path / 'none'), 'none: no such folder'),
        (('-d', bench, '-p', 'luma'), "no protocol is named 'luma'"),
        (('-d', bench, '--sheet', tmp_path / 'sheet.gif'), "ending '.gif'"),
    ]:
        assert run('-w', weights, *args, '--json', tmp_path / 'x.json') == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert not captured.out
    assert not (tmp_path / 'x.json').exists()
