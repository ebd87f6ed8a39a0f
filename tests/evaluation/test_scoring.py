"""`fmen-jax evaluate`, against the published figures."""

import csv
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fmen_jax
from fmen_jax.cli import evaluate
from fmen_jax.data.pairs import find_pairs, load_pair
from fmen_jax.evaluation import protocols, scoring
from fmen_jax.inference.upscaler import Upscaler
from tests.helpers import PHOTO, ROOT, corrupted, lay_out, run_cli, save

FIGURES = json.loads((ROOT / 'tests/golden/benchmarks_x4.json').read_text())
WEIGHTS = {
    'fmen_github': 'fmen_s_x4_github.pt',
    'fmen_ntire': 'fmen_s_x4_ntire2022.pth',
    'rfdn': 'e_rfdn_x4.pth',
    'rlfn': 'rlfn_x4_ntire2022.pth',
}
LONG = [('rfdn', 'Set14'), ('rlfn', 'Set14')]


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'data'),
    [
        pytest.param(name, data, marks=pytest.mark.exhaustive if (name, data) in LONG else ())
        for name in WEIGHTS
        for data in ('Set5', 'Set14')
    ],
)
def test_published_figures_of_every_picture(
    name: str, data: str, shared: Callable[[str], Path]
) -> None:
    upscale = Upscaler(fmen_jax.load(shared(f'official/{WEIGHTS[name]}')))
    pairs = find_pairs(shared(f'data/benchmarks/{data}'), 4)
    rule = protocols.protocol('y')
    scores = list(scoring.evaluate(upscale, pairs, scale=4, protocol=rule))
    ours, bicubic = FIGURES[data][name], FIGURES[data]['bicubic']
    assert {score.name for score in scores} == set(ours['per_image'])
    for score in scores:
        for psnr, ssim, expected in [
            (score.psnr, score.ssim, ours['per_image'][score.name]),
            (score.bicubic_psnr, score.bicubic_ssim, bicubic['per_image'][score.name]),
        ]:
            assert abs(psnr - expected[0]) < 1e-4, score.name
            assert abs(ssim - expected[1]) < 1e-5, score.name
    # the twin: a corrupted weight before the pixel shuffle is seen in the first picture
    params = dict(upscale.network.variables['params'])
    last = 'tail_0' if 'tail_0' in params else 'upsampler_0'
    params[last] = corrupted(params[last], by=1.0)
    broken = Upscaler(dataclasses.replace(upscale.network, variables={'params': params}))
    (wrong,) = scoring.evaluate(broken, pairs[:1], scale=4, protocol=rule)
    assert abs(wrong.psnr - scores[0].psnr) > 1e-4
    mean = scoring.Result(name, data, 4, rule, scores).mean
    assert abs(mean.psnr - ours['psnr']) < 1e-4
    assert abs(mean.bicubic_ssim - bicubic['ssim']) < 1e-5


run = functools.partial(run_cli, 'evaluate')


def test_command_line(weights: Path, tmp_path: Path, capsys: Any) -> None:
    bench = lay_out(tmp_path / 'bench', 'EDSR')
    outputs = [tmp_path / f'scores.{extension}' for extension in ('json', 'csv', 'md', 'png')]
    options = zip(('--json', '--csv', '--markdown', '--sheet'), outputs, strict=True)
    args = ('--weights', weights, '--data', bench, '--protocol', 'y')
    assert run(*args, *(part for option in options for part in option)) == 0
    found = json.loads(outputs[0].read_text())
    net, pair = Upscaler(fmen_jax.load(weights)), find_pairs(bench, 2)[0]
    loaded = load_pair(pair, 2)
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


def test_files_are_written_even_if_the_table_cannot_be_printed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, outputs = lay_out(tmp_path / 'bench', 'EDSR'), [tmp_path / name for name in ('a', 'b')]

    def fail(text: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(evaluate, 'print', fail, raising=False)
    assert run('-w', weights, '-d', bench, '--json', outputs[0], '--csv', outputs[1]) == 1
    assert all(path.exists() for path in outputs)


def test_labels_tell_weights_and_folders_apart(weights: Path, tmp_path: Path) -> None:
    named = shutil.copy(weights, tmp_path / 'net.v1.safetensors')
    folders = [lay_out(tmp_path / name / 'Set.v1', 'HR alone') for name in 'ab']
    assert run('-w', named, weights, named, '-d', *folders, '--json', tmp_path / 'x.json') == 0
    found = json.loads((tmp_path / 'x.json').read_text())
    assert [(result['weights'], result['data']) for result in found] == [
        (name, str(folder)) for name in ('net.v1', 'tiny') for folder in folders
    ]


def test_faults_are_found_before_the_work(weights: Path, tmp_path: Path, capsys: Any) -> None:
    bench = lay_out(tmp_path / 'bench', 'EDSR')
    many = tmp_path / 'many'
    for i in range(78):
        save(many / f'{i}.png', PHOTO[:26, :26])
    for args, message in [
        (('-d', bench, tmp_path / 'none'), 'none: no such folder'),
        (('-d', bench, '-p', 'luma'), "no protocol is named 'luma'"),
        (('-d', bench, '--sheet', tmp_path / 'sheet.gif'), "extension '.gif'"),
        (('-d', many, '--sheet', tmp_path / 'sheet.webp'), '784x16536 is too large for .webp'),
        (('-d',), '--data has no values; expected one or more'),
        (('-d', bench, '-w'), '--weights has no values; expected one or more'),
        (('-d', bench, bench / '.'), 'expected each folder once'),
        (('-d', bench, '--csv', tmp_path), 'is a folder; expected the name of a file'),
    ]:
        assert run('-w', weights, *args, '--json', tmp_path / 'x.json') == 2
        captured = capsys.readouterr()
        assert message in captured.err, captured.err
        assert not captured.out
    assert not (tmp_path / 'x.json').exists()
