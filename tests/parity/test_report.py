"""The report as text, JSON and a page, and the command that writes them, without PyTorch."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import fmen_jax
from fmen_jax import porting
from fmen_jax.network import Network
from fmen_jax.parity import Report, compare
from fmen_jax.parity.page import as_html
from fmen_jax.parity.reference import make_inputs
from fmen_jax.parity.report import HeatMap
from fmen_jax.parity.stages import FORWARD, WEIGHTS
from tests.helpers import PHOTO, Golden, corrupted, golden_dump, run_cli, save


@pytest.fixture(scope='module')
def reports(tiny_x2: Golden) -> tuple[Report, Report]:
    """Of equal networks, and of one with a corrupted weight; forward pass only."""
    ported = porting.to_variables(tiny_x2.below('train/'))
    network = Network(ported.config, 'collapsed', ported.variables)
    dump = {k: v for k, v in golden_dump(tiny_x2).items() if not k.startswith('train/')}
    broken = dataclasses.replace(network, variables=corrupted(network.variables, 0.01))
    return compare(network, dump), compare(broken, dump)


def test_text(reports: tuple[Report, Report]) -> None:
    equal, different = reports
    assert equal.verdict == 'equal'
    assert 'DIFFERS' not in equal.text(layers=True)
    assert equal.text(layers=True).count('\n') > equal.text().count('\n') + 60
    text = different.text()
    assert different.verdict.startswith(f'different: {WEIGHTS}, {FORWARD}')
    assert 'first divergence: in ' in text
    assert '<- first' in text
    assert '1 of ' in text


def test_json(reports: tuple[Report, Report]) -> None:
    for report in reports:
        tree = json.loads(report.json(), parse_constant=lambda name: pytest.fail(name))
        assert tree['equal'] == report.equal
        assert tree['verdict'] == report.verdict
        assert [stage['name'] for stage in tree['stages']] == [s.name for s in report.stages]
        assert tree['facts']['jax']
        assert tree['control']['found']


def test_page(reports: tuple[Report, Report]) -> None:
    """One self-contained page: nothing is loaded, every tag is closed, the figures are there."""

    class Parser(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not {'src', 'href'} & {name for name, _ in attrs}
            self.seen.append(tag)
            if tag != 'meta':
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    for report in reports:
        page = as_html(report)
        parser = Parser()
        parser.feed(page)
        assert parser.open == []
        assert parser.seen.count('circle') == len(report.stage(FORWARD).rows)
        assert report.heat is not None
        pixels = len(report.heat.values) * len(report.heat.values[0])
        assert parser.seen.count('rect') > pixels
        assert 'prefers-color-scheme: dark' in page
    assert 'First divergence' in as_html(reports[1])


def test_the_map_of_a_large_input_is_reduced_to_maxima(reports: tuple[Report, Report]) -> None:
    values = np.zeros((300, 1000))
    values[200, 17], values[0, 3] = 0.5, 0.25
    heat = HeatMap('', '300x1000', values.tolist())
    page = as_html(dataclasses.replace(reports[0], heat=heat))
    assert page.count('<rect') < 128 * 128
    assert '<title>(200, 16): 0.5</title>' in page
    assert '<tr><td>frame (outermost pixels)</td><td>0.25</td></tr>' in page
    assert '<tr><td>interior</td><td>0.5</td></tr>' in page
    assert 'at each square of 8x8 pixels' in page


def test_options_without_effect_on_a_dump_are_refused(
    tiny_x2: Golden, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, forward = tmp_path / 'whole.npz', tmp_path / 'forward.npz'
    arrays = golden_dump(tiny_x2)
    np.savez(whole, **arrays)
    np.savez(forward, **{k: v for k, v in arrays.items() if not k.startswith('train/')})
    pictures = [tmp_path / folder / 'x.png' for folder in 'ab']
    for path in pictures:
        save(path, PHOTO)
    for dump, options, without in [
        (forward, ['--gradients'], '--gradients'),
        (forward, ['--steps', 5], '--steps 5 (there are 0)'),
        (whole, ['--steps', 5], '--steps 5 (there are 4)'),
        (whole, ['--images', *pictures], f'--images {pictures[0]}, --images {pictures[1]}'),
        (whole, ['--images', pictures[0]], '--images x'),
        (whole, ['--arg', 'a=1', '--stub', 'b'], '--arg, --stub'),
        (whole, ['--python', 'python3'], '--python'),
    ]:
        assert run_cli('parity', weights, '--reference', dump, *options) == 2
        assert f'{dump} was recorded without {without}: leave' in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_of_one_name_in_two_folders(
    tiny_x2: Golden, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, paths = fmen_jax.load(weights), [tmp_path / folder / 'x.png' for folder in 'ab']
    pictures = {path.as_posix(): PHOTO[i:] for i, path in enumerate(paths)}
    arrays = {k: v for k, v in golden_dump(tiny_x2).items() if not k.startswith('train/')}
    inputs = make_inputs(network, 1, pictures)
    arrays |= {k: v for k, v in inputs.items() if k.startswith(('picture/', 'original/'))}
    for path, pixels in zip(paths, pictures.values(), strict=True):
        save(path, pixels)
        lr = arrays[f'picture/{path.as_posix()}'][0].transpose(1, 2, 0)
        upscaled = fmen_jax.upscale(network, lr)
        arrays[f'upscaled/{path.as_posix()}'] = upscaled.transpose(2, 0, 1)[None]
    np.savez(tmp_path / 'dump.npz', **arrays)
    options = ('--reference', tmp_path / 'dump.npz', '--graph', 'collapsed', '--layers')
    assert run_cli('parity', weights, *options, '--images', *paths) == 0
    out = capsys.readouterr().out
    assert 'pictures: equal (4 compared' in out
    assert all(f'{path.as_posix()}: share of values' in out for path in paths)
    save(paths[1], PHOTO[2:])
    assert run_cli('parity', weights, *options, '--images', *paths) == 2
    assert f'without --images {paths[1]}: leave' in capsys.readouterr().err


@pytest.mark.slow
def test_command(
    tiny_x2: Golden, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / 'dump.npz'
    # the train stages are compared in tests/models/test_fmen.py; compiling them takes long
    arrays = {k: v for k, v in golden_dump(tiny_x2).items() if not k.startswith('train/')}
    np.savez(dump, **arrays)
    files = {name: tmp_path / f'report.{name}' for name in ('json', 'html')}
    options = [part for name, path in files.items() for part in (f'--{name}', path)]
    assert run_cli('parity', weights, '--reference', dump, *options, '--layers') == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == 'verdict: equal'
    assert 'HFABs.1.bn3.weight' in out
    report = json.loads(files['json'].read_text())
    assert [stage['name'] for stage in report['stages']] == [WEIGHTS, FORWARD]
    assert files['html'].read_text().startswith('<!doctype html>')
    state = dict(tiny_x2.below('train/'))
    state['tail.0.weight'] = corrupted(state['tail.0.weight'])
    porting.write(tmp_path / 'other.safetensors', state, {})
    assert run_cli('parity', tmp_path / 'other.safetensors', '--reference', dump) == 1
    assert 'first divergence' in capsys.readouterr().out
