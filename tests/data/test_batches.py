"""Batches: aligned, augmented, and a function of (seed, step) alone."""

import collections
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmen_jax.data.batches import Batches, PipelineConfig, prefetched
from fmen_jax.data.prepared import Source, open_source, prepare
from fmen_jax.errors import InputError
from fmen_jax.images.bicubic import imresize
from fmen_jax.images.pixel_shuffle import pixel_shuffle
from fmen_jax.images.symmetries import dihedral
from tests.helpers import PHOTO, lay_out, save

CONFIG = PipelineConfig(patch=8, batch=12, seed=3)


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Source:
    return open_source(prepare(lay_out(tmp_path / 'photos', 'HR alone'), 2))


def test_shapes_and_alignment(tmp_path: Path, cache: Path) -> None:
    """An HR image of constant 2x2 blocks and an LR image of the same values tell any slip."""
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    save(tmp_path / 'x/HR/a.png', values.repeat(2, 0).repeat(2, 1))
    save(tmp_path / 'x/LR_bicubic/X2/ax2.png', values)
    batches = Batches([open_source(prepare(tmp_path / 'x', 2))], CONFIG)
    for step in range(5):
        batch = batches[step]
        assert batch['lr'].shape == (12, 8, 8, 3)
        assert batch['hr'].shape == (12, 16, 16, 3)
        assert batch['lr'].dtype == batch['hr'].dtype == np.uint8
        np.testing.assert_array_equal(batch['hr'], batch['lr'].repeat(2, 1).repeat(2, 2))


def test_unshuffled_is_what_the_pixel_shuffle_undoes(source: Source) -> None:
    plain, unshuffled = (Batches([source], CONFIG, unshuffled=u)[3] for u in (False, True))
    assert unshuffled['hr'].shape == (12, 8, 8, 12)
    np.testing.assert_array_equal(pixel_shuffle(unshuffled['hr'], 2), plain['hr'])
    np.testing.assert_array_equal(unshuffled['lr'], plain['lr'])


def test_a_patch_is_cut_out_of_its_picture(source: Source) -> None:
    config = dataclasses.replace(CONFIG, flips=False)
    pictures = [source.pixels(i)[0] for i in range(2)]
    windows = [
        np.lib.stride_tricks.sliding_window_view(p, (8, 8), axis=(0, 1)).reshape(-1, 3, 8, 8)
        for p in pictures
    ]
    known = {w.transpose(1, 2, 0).tobytes() for w in np.concatenate(windows)}
    for patch in Batches([source], config)[7]['lr']:
        assert patch.tobytes() in known
    turned = [patch.tobytes() in known for patch in Batches([source], CONFIG)[7]['lr']]
    assert not all(turned)


def test_every_place_is_equally_probable(tmp_path: Path, cache: Path) -> None:
    """A picture of the size of a patch and one with 9 places: 1 to 9, within five deviations."""
    save(tmp_path / 'x/a.png', np.zeros((16, 16, 3), np.uint8))
    save(tmp_path / 'x/b.png', np.full((20, 20, 3), 200, np.uint8))
    config = dataclasses.replace(CONFIG, batch=2000)
    share = (Batches([open_source(prepare(tmp_path / 'x', 2))], config)[0]['lr'] == 0).mean()
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / 2000) ** 0.5


def test_positions_are_drawn_by_the_interpolation_error(tmp_path: Path, cache: Path) -> None:
    """The share of each position against the sums of a loop, within five deviations."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (24, 28, 3), np.uint8)
    noise[:, 14:] //= 4  # less to restore at the right
    save(tmp_path / 'x/a.png', np.full((40, 40, 3), 9, np.uint8))
    save(tmp_path / 'x/b.png', noise)
    source = open_source(prepare(tmp_path / 'x', 2))
    assert source.interpolation_error(0).max() == 0
    lr, hr = source.pixels(1)
    error = np.abs(imresize(lr.astype(np.float64), 2) - hr)
    squares = itertools.product(range(0, 24, 2), range(0, 28, 2))
    by_loop = np.array([error[y : y + 2, x : x + 2].mean() for y, x in squares]).reshape(12, 14)
    np.testing.assert_allclose(source.interpolation_error(1), by_loop, rtol=1e-5)
    config = dataclasses.replace(CONFIG, batch=4000, sampling='error', flips=False)
    batch = Batches([source], config)[0]['lr']
    assert (batch == 9).all((1, 2, 3)).sum() == 0
    sums = {
        lr[y : y + 8, x : x + 8].tobytes(): by_loop[y : y + 8, x : x + 8].sum()
        for y in range(5)
        for x in range(7)
    }
    drawn = collections.Counter(patch.tobytes() for patch in batch)
    assert drawn.keys() <= sums.keys()
    for patch, weight in sums.items():
        share = weight / sum(sums.values())
        assert abs(drawn[patch] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


def test_pictures_without_any_error_are_drawn_all_the_same(tmp_path: Path, cache: Path) -> None:
    save(tmp_path / 'x/a.png', np.full((40, 40, 3), 9, np.uint8))
    config = dataclasses.replace(CONFIG, sampling='error')
    batch = Batches([open_source(prepare(tmp_path / 'x', 2))], config)[0]
    assert (batch['lr'] == 9).all()


@pytest.mark.parametrize('sampling', ['uniform', 'error'])
def test_a_batch_depends_on_seed_and_step_alone(source: Source, sampling: Any) -> None:
    config = dataclasses.replace(CONFIG, sampling=sampling)
    batches = Batches([source], config)
    again = Batches([open_source(source.folder)], config)
    np.testing.assert_array_equal(batches[5]['hr'], again[5]['hr'])
    other = Batches([source], dataclasses.replace(config, seed=4))
    assert (batches[5]['hr'] != other[5]['hr']).any()
    assert (batches[5]['hr'] != batches[6]['hr']).any()
    patches = np.concatenate([batches[i]['lr'] for i in range(20)])
    assert len({patch.tobytes() for patch in patches}) > 0.9 * len(patches)


@pytest.mark.parametrize('processes', [2, 3])
def test_processes_share_the_same_global_batch(source: Source, processes: int) -> None:
    whole = Batches([source], CONFIG)
    parts = [Batches([source], CONFIG, process=i, processes=processes) for i in range(processes)]
    for step in (0, 9):
        joined = np.concatenate([part[step]['lr'] for part in parts])
        np.testing.assert_array_equal(joined, whole[step]['lr'])


@pytest.mark.parametrize('threads', [1, 2, 5])
@pytest.mark.parametrize('start', [0, 6])
def test_prefetching_keeps_order_and_resumes(source: Source, threads: int, start: int) -> None:
    batches = Batches([source], CONFIG)
    ahead = prefetched(batches, dataclasses.replace(CONFIG, threads=threads), start=start)
    for step, batch in enumerate(itertools.islice(ahead, 12), start):
        np.testing.assert_array_equal(batch['lr'], batches[step]['lr'])
        np.testing.assert_array_equal(batch['hr'], batches[step]['hr'])


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(source: Source) -> None:
    batches = Batches([source], CONFIG)
    ahead = prefetched(batches, dataclasses.replace(CONFIG, processes=2), start=3)
    for step, batch in enumerate(itertools.islice(ahead, 7), 3):
        np.testing.assert_array_equal(batch['lr'], batches[step]['lr'])
        np.testing.assert_array_equal(batch['hr'], batches[step]['hr'])


def test_the_eight_symmetries() -> None:
    image = np.arange(2 * 3 * 3 * 1).reshape(2, 3, 3, 1)
    turned = [dihedral(image, which) for which in range(8)]
    assert len({t.tobytes() for t in turned}) == 8
    expected = {
        np.rot90(m, k, axes=(1, 2)).tobytes() for m in (image, image[:, ::-1]) for k in range(4)
    }
    assert {np.ascontiguousarray(t).tobytes() for t in turned} == expected
    # and they commute with making the picture smaller; to a level where rows and columns swap,
    # as imresize rounds between its passes
    for which in range(8):
        small = imresize(np.ascontiguousarray(dihedral(PHOTO[:56, :56], which)), 1 / 2)
        turned = dihedral(imresize(PHOTO[:56, :56], 1 / 2), which)
        assert abs(small.astype(int) - turned).max() <= (1 if which & 4 else 0)


def test_faults(source: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='2 pictures are smaller than a patch of 30 LR pixels'):
        Batches([source], dataclasses.replace(CONFIG, patch=30))
    with pytest.raises(InputError, match='pipeline.batch is 12, which 5 processes cannot share'):
        Batches([source], CONFIG, processes=5)
    other = open_source(prepare(tmp_path / 'photos', 3))
    with pytest.raises(InputError, match=r'scales \[2, 3\]; expected one'):
        Batches([source, other], CONFIG)
