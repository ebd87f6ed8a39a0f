"""`fmen-jax inspect`: the page, its figures and its numbers."""

import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network
from fmen_jax.research import drawing, page
from tests.helpers import run_cli, save

# Small enough for seconds, large enough for every kind of block.
CONFIG = FMENConfig(scale=2, n_feats=28, mid_feats=6, down_blocks=1, up_blocks=(0, 1))


def checkpoint(path: Path, config: FMENConfig = CONFIG, seed: int = 0) -> Path:
    variables = initial_variables(config, 'deploy', seed=seed, start='bicubic')
    Network(config, 'deploy', variables).save(path)
    return path


def photographs(folder: Path) -> Path:
    save(folder / 'face.png', skimage.data.astronaut()[60:141, 180:262])
    save(folder / 'cat.png', skimage.data.chelsea()[100:170, 120:200])
    return folder


class Links(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found += [value for name, value in attrs if name in ('src', 'href', 'xlink:href')]
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found += [value for name, value in attrs if name in ('src', 'href', 'xlink:href')]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.slow  # compiles the network for a dozen shapes
def test_two_networks_on_two_photographs(tmp_path: Path) -> None:
    ours = checkpoint(tmp_path / 'ours.safetensors')
    theirs = checkpoint(tmp_path / 'theirs.safetensors', seed=1)
    out = tmp_path / 'out'
    pictures = photographs(tmp_path / 'hr')
    assert run_cli('inspect', ours, pictures, '-o', out, '--against', theirs, '--quick') == 0

    found = json.loads((out / 'inspect.json').read_text())
    assert found['comparison']['differences'].keys() == {'face', 'cat'}
    ranked = list(found['comparison']['differences'].values())
    assert ranked == sorted(ranked, reverse=True)
    assert found['comparison']['psnr']['cat']['ours'] > 25
    radius = CONFIG.receptive_radius
    for name in ('ours', 'theirs'):
        field = found['receptive_field'][name]
        assert (field['radius'], field['is_cut_off']) == (radius, False)
        sides = list(field['sides'].values())
        assert sides == sorted(sides)
    assert [m['network'] for m in found['attribution']['maps']] == ['ours', 'theirs']
    assert list(found['activations']['attention']) == ['warmup_1', 'HFABs_0']
    assert len(found['activations']['channels']['ERBs_0']) == CONFIG.n_feats
    assert found['spectrum']['lr_nyquist'] == 0.25
    assert found['kernels']['head']['largest'] > 0

    text = (out / 'inspect.html').read_text()
    links = Links()
    links.feed(text)
    assert links.open == []
    assert links.found
    assert all(link.startswith(('#', 'data:image/png;base64,')) for link in links.found)
    pngs = sorted(path.name for path in out.glob('*.png'))
    assert 'map_face_HFABs_0_attention.png' in pngs or 'map_cat_HFABs_0_attention.png' in pngs
    assert len(pngs) == text.count('<figure')
    for name in pngs:
        with Image.open(out / name) as picture:
            picture.load()


def test_lr_pictures_have_no_scores(tmp_path: Path) -> None:
    weights, out = checkpoint(tmp_path / 'a.safetensors'), tmp_path / 'out'
    save(tmp_path / 'lr.png', skimage.data.astronaut()[60:90, 180:211])
    assert run_cli('inspect', weights, tmp_path / 'lr.png', '-o', out, '--lr', '--quick') == 0
    found = json.loads((out / 'inspect.json').read_text())
    assert 'comparison' not in found
    assert 'spectrum' not in found
    assert found['receptive_field']['a']['is_cut_off'] is False


@pytest.mark.slow  # compiles the network for a dozen shapes
@pytest.mark.filterwarnings('ignore:invalid value encountered in cast')
def test_weights_with_nan_are_inspected_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = initial_variables(CONFIG, 'deploy', start='bicubic')
    variables['params']['head']['kernel'] = variables['params']['head']['kernel'] * np.nan
    weights, out = tmp_path / 'a.safetensors', tmp_path / 'out'
    Network(CONFIG, 'deploy', variables).save(weights)
    save(tmp_path / 'lr.png', skimage.data.astronaut()[60:90, 180:211])
    options = (weights, tmp_path / 'lr.png', '-o', out, '--lr', '--quick')
    assert run_cli('inspect', *options) == 2
    assert 'NaN or infinity in head.weight' in capsys.readouterr().err
    assert run_cli('inspect', *options, '--allow-nonfinite') == 0
    found = json.loads((out / 'inspect.json').read_text())
    assert found['kernels']['head']['largest'] is None
    assert found['kernels']['lr_conv']['largest'] > 0


def test_what_cannot_be_inspected_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint(tmp_path / 'a.safetensors')
    other = checkpoint(tmp_path / 'b.safetensors', FMENConfig(3, 28, 6, 0, (0,)))
    pictures = photographs(tmp_path / 'hr')
    (tmp_path / 'empty').mkdir()
    save(tmp_path / 'small.png', np.zeros((31, 90, 3), np.uint8))
    out = ('-o', tmp_path / 'out')
    bicubic = checkpoint(tmp_path / 'bicubic.safetensors')
    assert run_cli('inspect', bicubic, pictures, *out) == 2
    assert 'would be bicubic, bicubic; expected' in capsys.readouterr().err
    for args, message in [
        ((pictures, '--against', weights), f'would be {weights}, {weights}, bicubic; expected'),
        ((pictures, '--against', other), 'b is x3, but a is x2'),
        ((tmp_path / 'empty',), 'holds no pictures'),
        ((tmp_path / 'small.png',), 'expected 32 or more'),
        ((tmp_path / 'none.png',), 'none.png'),
        ((pictures, '--window', '70', '3'), 'picture cat'),
    ]:
        assert run_cli('inspect', weights, *args, *out) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_colors_of_maps() -> None:
    found = drawing.heat(np.array([[0, 0.5, 1, 7, np.nan]]))
    assert found.tolist() == [
        [[0, 0, 0], [255, 140, 0], [255, 255, 255], [255, 255, 255], [0, 0, 0]]
    ]
    assert drawing.log_scale(np.array([1.0, 10, 1e-9]), decades=2).tolist() == [0.5, 1, 0]
    framed = drawing.outlined(np.full((9, 9, 3), 9, np.uint8), 3, 3, 3)
    assert framed[2, 2:7].tolist() == [[255] * 3] * 5
    assert (framed[3:6, 3:6] == 9).all()
    assert framed[1, 1].tolist() == [0, 0, 0]


def test_charts_have_the_color_of_the_page_and_name_their_series() -> None:
    x = np.linspace(0.1, 0.5, 9)
    series = {'ours': drawing.Line(x, drawing.OURS), 'HR': drawing.Line(2 * x, drawing.TEXT_COLOR)}
    drawn = drawing.lines(x, series, xlabel='f', ylabel='dB', marks={'Nyquist': 0.2})
    assert drawn.svg.startswith('<svg')
    assert 'currentColor' in drawn.svg
    assert drawing.TEXT_COLOR not in drawn.svg
    for name in ('>ours<', '>HR<', '>Nyquist<'):
        assert name in drawn.svg.replace('\n', '')
    assert drawn.png.startswith(b'\x89PNG')
    again = drawing.lines(x, series, xlabel='f', ylabel='dB', marks={'Nyquist': 0.2})
    assert drawn.svg == again.svg


def test_texts_of_a_page_are_escaped() -> None:
    table = page.Table(['<i>'], [['<b>']], '<u>')
    picture = page.Picture('a', 'x < "y"', b'')
    section = page.Section('<s>', 'p & q', [table, page.PictureRow('<h>', [picture])])
    text = page.render('<t>', '<x>', [section], '<f>')
    for tag in ('<i>', '<b>', '<u>', '<s>', '<t>', '<x>', '<f>', '<h>'):
        assert tag not in text
    assert 'alt="x &lt; &quot;y&quot;"' in text
