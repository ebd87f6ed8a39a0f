"""Ablations: the arithmetic of the table, live feature maps, and the tutorial from end to end."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmen_jax.errors import InputError
from fmen_jax.models.variant import VariantConfig
from fmen_jax.research import ablation
from fmen_jax.research.ablation import (
    ablate,
    confidence_interval,
    draw,
    load_ablation,
    with_model,
    write_results,
)
from fmen_jax.research.live_maps import live_feature_maps
from fmen_jax.research.sweep import MemberResult
from fmen_jax.training.experiment import DataConfig, Experiment
from fmen_jax.training.loop import DivergedError
from tests.helpers import ROOT

TINY = VariantConfig(scale=2, n_feats=24, mid_feats=6, down_blocks=1, up_blocks=(0, 0))


def test_confidence_interval_is_that_of_the_t_table() -> None:
    # mean 0.2, deviation 0.1, n = 3: t(0.975, 2) = 4.30265
    low, high = confidence_interval([0.1, 0.2, 0.3]) or (0, 0)
    assert (low, high) == pytest.approx((0.2 - 0.248413, 0.2 + 0.248413), abs=1e-5)
    assert confidence_interval([0.1]) is None


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        # the long skip, and input and output of a convolution
        ({'attention': 'none'}, 3),
        # and the skip of the block
        ({'attention': 'none', 'backbone': 'RB'}, 4),
        # the input of the attention, and that and the output of its convolution; 0.25 of a map
        ({'attention': 'hfab'}, 1 + 1 + 1 + 0.25),
        # the input of the attention while its 1x1 convolution makes another one
        ({'attention': 'pa'}, 3),
    ],
)
def test_live_feature_maps_are_those_by_hand(changes: Any, expected: float) -> None:
    model = dataclasses.replace(TINY, **changes)
    assert live_feature_maps(model.build(), 10, 12, 24) == expected


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(model=TINY, data=DataConfig(train=('t',), validation=('v',)))


PSNR = {
    'conv': {0: 30.0, 1: 30.2, 2: 30.1},
    'ecb': {0: 30.1, 1: 30.4, 2: 30.4},  # +0.1, +0.2, +0.3
    'dbb': {0: 29.0, 2: 29.4},
    'acb': {},
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results instead of training."""

    def sweep(members: Any, workdir: Path, **_: Any) -> Any:
        found = PSNR[workdir.name]
        if not found:
            raise DivergedError('all members diverged')
        return [
            MemberResult(m.name, s, {}, found.get(s), 9, None if s in found else 5)
            for m in members
            if (s := m.experiment.seed) is not None
        ]

    monkeypatch.setattr(ablation, 'sweep', sweep)


@pytest.mark.usefixtures('trained')
def test_table(experiment: Experiment, tmp_path: Path) -> None:
    variants = {name: with_model(experiment, block=name) for name in PSNR}
    assert [e.graph for e in variants.values()] == ['collapsed'] * 2 + ['expanded'] * 2
    rows = ablate(variants, (0, 1, 2), tmp_path, upscaler=Any, size=(8, 10), rounds=1)
    assert rows
    conv, ecb, dbb, acb = rows
    assert (conv.difference, conv.interval, conv.time_ratio) == (None, None, 1)
    assert (conv.mean, conv.deviation) == pytest.approx((30.1, 0.1))
    assert ecb.difference == pytest.approx(0.2)
    assert ecb.interval == pytest.approx((0.2 - 0.248413, 0.2 + 0.248413), abs=1e-5)
    # only the seeds that both have are compared: -1.0, -0.7; t(0.975, 1) = 12.706, error 0.15
    assert (dbb.difference, dbb.diverged) == (pytest.approx(-0.85), 1)
    assert dbb.interval == pytest.approx((-0.85 - 1.90593, -0.85 + 1.90593), abs=1e-4)
    assert (acb.mean, acb.deviation, acb.difference, acb.diverged) == (None, None, None, 3)
    assert len({(row.parameters, row.multiply_adds, row.live_maps) for row in rows}) == 1
    # the batch norms of the two HFABs: 2 (n + m + n) each, m being 2 and 6
    assert conv.train_parameters == conv.parameters + 2 * (24 + 2 + 24) + 2 * (24 + 6 + 24)
    assert ecb.train_parameters > conv.train_parameters
    write_results(rows, tmp_path)
    lines = (tmp_path / 'ablation.md').read_text().splitlines()
    assert lines[3].endswith('| 30.300 | 0.173 | +0.200 | -0.048 to +0.448 | 0 of 3 |')
    assert lines[5].endswith('| - | - | - | - | 3 of 3 |')
    with (tmp_path / 'ablation.csv').open(newline='') as file:
        table = list(csv.DictReader(file))
    assert [row['psnr_seed1'] for row in table] == ['30.2', '30.4', '', '']
    assert json.loads((tmp_path / 'ablation.json').read_text())[2]['psnr'] == {'0': 29, '2': 29.4}
    pytest.importorskip('matplotlib')
    with Image.open(io.BytesIO(draw(rows, 'title'))) as picture:
        pixels = np.asarray(picture.convert('RGBA')).reshape(-1, 4)
    opaque = {tuple(map(int, pixel[:3])) for pixel in pixels if pixel[3] == 255}
    assert (pixels[:, 3] == 0).mean() > 0.5  # the page is the background
    # gray text, and the two hues of drawing.py
    assert {(128, 128, 128), (213, 94, 0), (58, 143, 208)} <= opaque
    assert (0, 0, 0) not in opaque


def test_variants_are_checked(experiment: Experiment, tmp_path: Path) -> None:
    def run(variants: Any) -> None:
        ablate(variants, (0,), tmp_path, upscaler=Any)

    for costs, message in (({'rounds': 0}, 'rounds is 0'), ({'size': (0, 8)}, 'size is 0')):
        with pytest.raises(InputError, match=message):
            ablate({'a': experiment}, (0,), tmp_path, upscaler=Any, **costs)
    with pytest.raises(InputError, match='no variants'):
        run({})
    with pytest.raises(InputError, match=r'data\.validation is empty'):
        run({'a': dataclasses.replace(experiment, data=DataConfig(train=('t',)))})
    with pytest.raises(InputError, match="'a/b' cannot be the name of a variant"):
        run({'a/b': experiment})
    with pytest.raises(InputError, match='the variant b differs from the first one in its data'):
        run({'a': experiment, 'b': with_model(experiment, scale=3)})
    with pytest.raises(InputError, match=r'a variable `experiment` .* and a function `variants'):
        load_ablation(ROOT / 'configs/smoke.py')


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('ablate_*.py')), ids=str)
def test_ready_made_ablations(path: Path) -> None:
    experiment, make = load_ablation(path)
    variants = make(experiment)
    assert len(variants) >= 2
    for e in variants.values():
        e.model.build_for_training(e.graph, 1)
        assert dataclasses.replace(e, model=experiment.model, graph=experiment.graph) == experiment
