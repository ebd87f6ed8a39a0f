"""`fmen-jax compare`: costs side by side."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from fmen_jax.evaluation import cost_table, scoring
from fmen_jax.models.cost import count_cost
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.rfdn import RFDNConfig
from tests.helpers import PHOTO, lay_out, run_cli, save


def test_rows_are_counted_and_measured() -> None:
    small = FMENConfig(n_feats=6, mid_feats=6, down_blocks=1, up_blocks=(1, 1))
    entries = [
        cost_table.CostEntry('a', small),
        cost_table.CostEntry('b', RFDNConfig(n_feats=8, blocks=1), psnr=30.0),
    ]
    rounds = []
    first, second = cost_table.compare(
        entries, 20, 24, rounds=3, report=lambda: rounds.append(None)
    )
    assert len(rounds) == 3
    cost = count_cost(small.build(), 20, 24)
    assert (first.parameters, first.multiply_adds) == (cost.parameters, cost.multiply_adds)
    assert first.flops == cost.multiply_adds
    assert second.flops > second.multiply_adds  # NTIRE counts E-RFDN's activations
    assert (first.time_ratio, first.memory_ratio) == (1, 1)
    assert second.memory_ratio == second.peak_bytes / first.peak_bytes
    # At least input, output and weights, in float32.
    assert first.peak_bytes >= 4 * (20 * 24 * 3 * 17 + cost.parameters)
    assert '| b | 24x20 |' in cost_table.as_markdown([first, second])
    assert cost_table.as_markdown([second]).rstrip().endswith('| 30.00 |')


def test_networks_of_one_color_have_images_of_one_color() -> None:
    gray = FMENConfig(n_colors=1, n_feats=6, mid_feats=6, down_blocks=1, up_blocks=(1, 1))
    (row,) = cost_table.compare([cost_table.CostEntry('gray', gray)], 20, 24, rounds=1)
    assert row.multiply_adds == count_cost(gray.build(), 20, 24, 1).multiply_adds


def test_the_plot_names_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cost_table.CostEntry('a', RFDNConfig(n_feats=8, blocks=1), psnr=30.0)
    rows = cost_table.compare([entry], 20, 24, rounds=1)
    on_cpu = cost_table.draw(rows, 'Set5')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert (cost_table.draw(rows, 'Set5') != on_cpu).any()


run = functools.partial(run_cli, 'compare')


def test_command_line(weights: Path, tmp_path: Path, capsys: Any) -> None:
    bench = lay_out(tmp_path / 'bench', 'EDSR')
    options = ('--json', tmp_path / 'x.json', '--markdown', tmp_path / 'x.md')
    plot = ('--plot', tmp_path / 'x.png', '--data', bench)
    assert run('--networks', weights, '--sizes', '16x20', '--rounds', 2, *options, *plot) == 0
    row = json.loads((tmp_path / 'x.json').read_text())[0]
    assert (row['name'], row['size']) == ('tiny', '16x20')
    assert row['psnr'] > 0
    assert (tmp_path / 'x.md').read_text().strip() == capsys.readouterr().out.strip()
    with Image.open(tmp_path / 'x.png') as picture:
        assert picture.size == (840, 540)
        assert len(np.unique(np.asarray(picture))) > 50  # something is drawn


def test_pairs_of_all_networks_are_checked_before_any_is_scored(
    weights: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = lay_out(tmp_path / 'bench', 'EDSR')  # has no pictures of x4 that match
    save(bench / 'LR_bicubic/X4/ax4.png', PHOTO)
    scored = []
    monkeypatch.setattr(scoring, 'evaluate', lambda *args, **options: scored.append(args))
    assert run('--networks', weights, 'fmen_s_x4', '--data', bench) == 2
    assert 'LR pictures are missing' in capsys.readouterr().err
    assert not scored


def test_faults(
    weights: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run('--networks', weights, '--sizes', '16*20') == 2
    assert "'16*20' is not a size; expected width x height" in capsys.readouterr().err
    assert run('--networks', weights, '--sizes') == 2
    assert '--sizes has no values' in capsys.readouterr().err
    assert run('--networks', weights, '--sizes', '10000000x10000000') == 2
    assert '10000000x10000000 pixels do not fit into memory' in capsys.readouterr().err
    assert run('--networks', weights, '--json', tmp_path) == 2
    assert 'is a folder; expected the name of a file' in capsys.readouterr().err
    assert run('--plot', tmp_path / 'x.png') == 2
    assert '--plot needs --data' in capsys.readouterr().err
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    plot = ('--plot', tmp_path / 'x.png', '--data', lay_out(tmp_path / 'bench', 'EDSR'))
    assert run('--networks', weights, *plot) == 2
    assert 'a plot needs matplotlib, which is not installed' in capsys.readouterr().err
