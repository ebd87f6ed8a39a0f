"""The weights in the package: what their cards say is so, and a wheel alone upscales a picture."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
import skimage.data

import fmen_jax
from fmen_jax.data.pairs import find_pairs
from fmen_jax.errors import InputError
from fmen_jax.evaluation import protocols, scoring
from fmen_jax.files import sha256
from fmen_jax.images.bicubic import imresize
from fmen_jax.images.read import read_rgb8
from fmen_jax.images.write import write_rgb8
from fmen_jax.inference.upscale import upscale
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load
from fmen_jax.weights.names import SHIPPED, card, shipped
from tests.helpers import ROOT, run_cli


@pytest.mark.parametrize('name', shipped())
def test_card(name: str) -> None:
    said = card(name)
    assert said['sha256'] == sha256(SHIPPED / f'{name}.safetensors')
    assert said['licence'] == 'Apache-2.0'
    net = load(name)
    assert net.graph == 'deploy'
    assert name == f'fmen_s_x{net.config.scale}'
    start = said['training']['experiment']['init_from']  # no published checkpoint
    assert bool(start) == bool(said['derived_from']) == (net.config.scale != 4)
    for scores in said['measured'].values():
        assert scores['psnr'] > scores['bicubic_psnr'] + 1.8


def test_card_of_other_weights() -> None:
    with pytest.raises(InputError, match="named 'nope' are in the package; there are fmen_s_x2, f"):
        card('nope')


@pytest.mark.parity
@pytest.mark.parametrize('name', shipped())
def test_the_scores_of_a_picture(name: str, shared: Callable[[str], Path]) -> None:
    """One picture of Set5 scores as it did when the card was written; the card has them all."""
    net = load(name)
    pairs = find_pairs(shared('data/benchmarks/Set5'), net.config.scale)
    (pair,) = [p for p in pairs if p.name == 'bird']
    said = card(name)['measured']['Set5']['pictures']['bird']
    (score,) = scoring.evaluate(
        Upscaler(net), [pair], scale=net.config.scale, protocol=protocols.protocol('y')
    )
    assert score.psnr == pytest.approx(said['psnr'], abs=2e-3)
    assert score.ssim == pytest.approx(said['ssim'], abs=2e-5)


def test_better_than_bicubic_on_a_picture_of_no_benchmark() -> None:
    """Of scikit-image, so that this needs nothing beside the package."""
    for name in shipped():
        net = load(name)
        scale = net.config.scale
        hr = skimage.data.coffee()[:240, 60:300]
        lr = imresize(hr, 1 / scale)
        y = protocols.protocol('y')
        ours = y.score(upscale(net, lr).astype(np.float64), hr.astype(np.float64), scale=scale)
        bicubic = imresize(lr.astype(np.float64), scale)
        theirs = y.score(bicubic, hr.astype(np.float64), scale=scale)
        assert ours[0] > theirs[0] + 0.8, name


@pytest.mark.slow
def test_upscale_without_any_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    picture = tmp_path / 'photo.jpg'
    write_rgb8(tmp_path / 'photo.png', skimage.data.astronaut()[:40, :50])
    pyvips.Image.new_from_file(str(tmp_path / 'photo.png')).jpegsave(str(picture))
    assert run_cli('upscale', picture) == 0
    made = read_rgb8(tmp_path / 'photo_x4.jpg')
    assert made.shape == (160, 200, 3)
    for scale in sorted(int(name[-1]) for name in shipped()):
        assert run_cli('upscale', picture, '-s', scale) == 0
        assert read_rgb8(tmp_path / f'photo_x{scale}.jpg').shape[0] == 40 * scale
    assert run_cli('upscale', picture, '-s', 5) == 2
    assert (
        'there are no weights for x5 in the package, only for x2, x3, x4' in capsys.readouterr().err
    )
    assert run_cli('upscale', tmp_path) == 2
    assert 'is not a single picture: use --output' in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_alone_upscales_a_picture(tmp_path: Path) -> None:
    """Built from the sources, unpacked elsewhere, run there with nothing else of this project."""
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob('fmen_jax-*.whl')
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    picture = tmp_path / 'photo.png'
    write_rgb8(picture, skimage.data.astronaut()[:30, :40])
    program = (
        f'import sys; paths = [p for p in sys.path if {str(ROOT)!r} not in p]\n'
        f'sys.path[:] = [{str(site)!r}, *paths]\n'
        'import fmen_jax, json\n'
        'y = fmen_jax.upscale(fmen_jax.load("fmen_s_x4"), sys.argv[1])\n'
        'print(json.dumps([fmen_jax.__file__, list(y.shape)]))'
    )
    # an address that answers nobody stands for no network
    offline = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy'), 'http://127.0.0.1:9')
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | offline
    done = subprocess.run(
        [sys.executable, '-c', program, str(picture)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    where, shape = json.loads(done.stdout)
    assert Path(where).is_relative_to(site)
    assert Path(fmen_jax.__file__).is_relative_to(ROOT)
    assert shape == [120, 160, 3]
