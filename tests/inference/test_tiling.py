"""Tiles give the pixels of the whole image.

Bit-identical where oneDNN computes (Linux on x86-64). XLA's own convolutions round differently at
other widths: there, 8-bit pictures are identical and float32 agrees within 2e-6 of the range.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import skimage.data

from fmen_jax.errors import InputError
from fmen_jax.images.picture_rows import PictureRows
from fmen_jax.inference import engines, memory_plan, tiling
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.tiling import Limits, grid, largest_grid, spans
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.models import zoo
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network, load
from fmen_jax.runtime import cpu, onednn

PHOTO = skimage.data.astronaut()[:, 60:]


def network(scale: int) -> Network:
    """Of random weights that use the whole receptive field."""
    config = FMENConfig(scale=scale, n_feats=8, mid_feats=6, down_blocks=1, up_blocks=(1, 1))
    variables = initial_variables(config, 'deploy')
    # sharp attention, so that what is far away counts
    gained = jax.tree.map(lambda a: a * 2 if a.ndim == 4 else a, variables)
    return Network(config, 'deploy', gained)


def make_upscaler(net: Network, **settings: Any) -> Upscaler:
    return Upscaler(net, InferenceSettings(**settings))


def assert_same(found: np.ndarray, whole: np.ndarray) -> None:
    """0 differing 8-bit and 16-bit values; float32 as docs/upscaling.md states."""
    # measured with JAX 0.12 on a CPU with AVX-512: oneDNN rounds differently at other sizes
    inexact = jax.__version_info__ >= (0, 12) and 'avx512f' in cpu.features()
    exact = 'float32' in onednn.supported_dtypes() and not inexact
    if found.dtype != np.float32 or exact:
        np.testing.assert_array_equal(found, whole)
    else:
        np.testing.assert_allclose(found, whole, rtol=0, atol=2e-6 * np.abs(whole).max())


def floats(height: int, width: int) -> np.ndarray:
    return PHOTO[:height, :width].astype(np.float32) / 255


@pytest.mark.parametrize('length', [1, 7, 40, 41, 57, 100, 1001])
@pytest.mark.parametrize('halo', [0, 5, 16])
def test_spans_keep_every_pixel_once(length: int, halo: int) -> None:
    found = spans(length, 40, halo)
    kept = [pixel for span in found for pixel in range(span.first, span.last)]
    assert kept == list(range(length))
    for span in found:
        assert span.stop - span.start == min(40, length)
        assert span.start == 0 or span.first - span.start >= halo
        assert span.stop == length or span.stop - span.last >= halo
    with pytest.raises(InputError, match='a tile of 32 LR pixels consists of its halo alone'):
        spans(100, 32, 16)


def test_the_largest_grid_is_within_its_limits() -> None:
    def shape(height: int, width: int, window: int, band: int = 10**9) -> tuple[int, int]:
        return largest_grid(height, width, Limits(window, band), 34).shape

    assert shape(100, 200, 20_000) == (100, 200)
    assert shape(1000, 200, 40_000) == (200, 200)
    assert shape(10_000, 20_000, 500_000) == (707, 707)  # windows of full rows would be all halo
    assert shape(1000, 1000, 10) == (69, 69)
    # a wide image whose bands do not fit: lower and wider windows, each within both limits
    assert shape(10_000, 20_000, 500_000, band=4_000_000) == (200, 2500)
    assert shape(10_000, 20_000, 500_000, band=10) == (69, 7246)
    assert shape(1000, 200, 10**6, band=50_000) == (250, 200)
    assert grid(10, 20, 0, 34).overhead == 1


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('size', [(1, 1), (9, 80), (53, 41), (61, 90)])
@pytest.mark.parametrize('tile', [45, 57])
def test_tiled_is_whole(scale: int, size: tuple[int, int], tile: int) -> None:
    net, x = network(scale), floats(*size)
    whole = make_upscaler(net, tile=0)(x)
    assert_same(make_upscaler(net, tile=tile)(x), whole)
    assert_same(make_upscaler(net, tile=tile, batch=3)(x), whole)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiled_pictures_are_whole(dtype: Any) -> None:
    net = load('fmen_s_x4')
    x = PHOTO[:101, :130].astype(dtype) * (257 if dtype == np.uint16 else 1)
    whole = make_upscaler(net, tile=0)(x)
    tiled = make_upscaler(net, tile=80)(x)
    assert_same(tiled, whole)
    # the twin: one level more in one pixel of the input is seen
    x[50, 60, 1] += 1
    assert (make_upscaler(net, tile=80)(x) != whole).any()


def test_tiles_of_xlas_own_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound that holds where there is no oneDNN, on this machine as well."""
    monkeypatch.setattr(onednn, 'supported_dtypes', frozenset)
    net, x = network(2), floats(53, 41)
    assert_same(make_upscaler(net, tile=45)(x), make_upscaler(net, tile=0)(x))
    pixels = PHOTO[:101, :130]
    shipped = load('fmen_s_x4')
    assert_same(make_upscaler(shipped, tile=80)(pixels), make_upscaler(shipped, tile=0)(pixels))


def test_a_halo_that_is_too_small_shows() -> None:
    net, x = network(2), floats(61, 90)
    radius = net.config.receptive_radius
    assert radius
    whole = make_upscaler(net, tile=0)(x)
    for pad in (radius - 1, 4):
        short = make_upscaler(net, tile=45, tile_pad=pad)
        assert not short.exact
        assert (short(x) != whole).any(), pad


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize('engine', ['xla', 'onnxruntime', 'openvino'])
def test_published_weights_on_every_engine(engine: Any, shared: Callable[[str], Path]) -> None:
    net = load(shared('official/fmen_s_x4_github.pt'))
    x = floats(150, 107)
    reference = make_upscaler(net, tile=0)(x) * 255
    whole = make_upscaler(net, engine=engine, tile=0)(x) * 255
    tiled = make_upscaler(net, engine=engine, tile=96)(x) * 255
    if engine == 'xla':
        assert_same(tiled, whole)
    else:  # onnxruntime and OpenVINO choose other algorithms for other sizes
        assert np.abs(tiled - whole).max() <= 1e-3 * 255
    assert np.abs(whole - reference).max() <= 1e-3
    pixels = PHOTO[:150, :107]
    whole = make_upscaler(net, engine=engine, tile=0)(pixels)
    np.testing.assert_array_equal(make_upscaler(net, engine=engine, tile=96)(pixels), whole)
    deep = pixels.astype(np.uint16) * 257
    away = make_upscaler(net, engine=engine, tile=96)(deep).astype(int)
    away -= make_upscaler(net, engine=engine, tile=0)(deep)
    assert np.abs(away).max() <= (0 if engine == 'xla' else 1)
    assert np.count_nonzero(away) <= 1e-3 * away.size  # 0 on the CPUs that were tried
    with_short_halo = make_upscaler(net, engine=engine, tile=96, tile_pad=16)
    assert (with_short_halo(pixels) != whole).any()


@pytest.mark.parametrize('batch', [1, 2, 5])
def test_bands_follow_each_other_whatever_the_batch(batch: int) -> None:
    net, x = network(2), floats(130, 120)
    upscale = make_upscaler(net, tile=45, batch=batch)
    bands = [*upscale.bands(PictureRows(130, 120, lambda a, b: x[a:b]))]
    assert len(bands) > 3
    assert_same(np.concatenate(bands), make_upscaler(net, tile=0)(x))


def test_windows_run_in_batches() -> None:
    upscale, sizes = make_upscaler(network(2), tile=45, batch=3), []
    real = upscale.engine

    class Recording:
        name = 'recording'

        def __call__(self, x: np.ndarray) -> np.ndarray:
            sizes.append(len(x))
            return real(x)

    upscale.engine = Recording()
    upscale(floats(70, 61))
    assert sizes == [3, 3]  # 2 x 2 windows, the last ones padded to a static shape


def test_rows_are_read_once_and_in_order() -> None:
    x, reads = floats(200, 30), []

    def read(start: int, stop: int) -> np.ndarray:
        reads.append((start, stop))
        return x[start:stop]

    bands = [*make_upscaler(network(2), tile=60).bands(PictureRows(200, 30, read))]
    assert len(bands) > 3
    assert [start for start, _ in reads] == [0, *(stop for _, stop in reads[:-1])]


def test_out_of_memory_halves_the_tile_and_goes_on() -> None:
    net, x = network(2), floats(130, 90)
    whole = make_upscaler(net, tile=0)(x)
    upscale = make_upscaler(net, tile=100, batch=2)
    real, sizes = upscale.engine, []

    class Small:
        name = 'small'

        def __call__(self, x: np.ndarray) -> np.ndarray:
            sizes.append(x.shape)
            if x.shape[0] * x.shape[1] * x.shape[2] > 50 * 50:
                raise engines.OutOfMemoryError('too large')
            return real(x)

    upscale.engine = Small()
    assert_same(upscale(x), whole)
    assert (1, 50, 50, 3) in sizes
    upscale.engine = real
    tiny = make_upscaler(net, tile=100)
    tiny.engine = type('None', (), {'name': '', '__call__': lambda *_: _raise()})()
    with pytest.raises(InputError, match='too large'):
        tiny(x)


def _raise() -> None:
    raise engines.OutOfMemoryError('too large')


def test_xla_running_out_of_memory_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: Any) -> None:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    engine = engines.Xla(network(2), 'float32')
    monkeypatch.setattr(engine, '_function', exhausted)
    with pytest.raises(engines.OutOfMemoryError, match='1 x 30x20 pixels do not fit'):
        engine(np.zeros((1, 20, 30, 3), np.float32))


def test_auto_takes_what_the_memory_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, 'available_memory', lambda: 10_000_000)
    net, x = network(2), floats(300, 150)
    upscale, sizes = Upscaler(net), []
    real = upscale.engine

    class Recording:
        name = 'recording'

        def __call__(self, x: np.ndarray) -> np.ndarray:
            sizes.append(x.shape[1] * x.shape[2])
            return real(x)

    upscale.engine = Recording()
    assert_same(upscale(x), make_upscaler(net, tile=0)(x))
    assert len(sizes) > 1
    assert 60**2 < max(sizes) < 200**2


def test_types_and_channels() -> None:
    net = network(2)
    upscale = Upscaler(net)
    x = PHOTO[:20, :24]
    y = np.asarray(net(x[None].astype(np.float32)))[0]
    y = y - y.mean() + 128  # of no matter: only that both clamps are seen
    exact = np.asarray(net(x[None].astype(np.float32)))[0]
    assert exact.min() < 0 or exact.max() > 255
    np.testing.assert_array_equal(upscale(x), np.clip(np.rint(exact), 0, 255).astype(np.uint8))
    wide = upscale(x.astype(np.uint16) * 257)
    assert wide.dtype == np.uint16
    assert np.abs(wide / 257 - np.clip(exact, 0, 255)).max() < 0.01  # not cut to 8 bits
    real = upscale(x.astype(np.float32) / 255)
    assert np.abs(real * 255 - exact).max() < 0.005  # of about 600: neither rounded nor clamped
    gray = upscale(x[..., :1])
    mean = np.asarray(net(x[None, ..., :1].repeat(3, -1).astype(np.float32)))[0].mean(-1)
    assert (gray[..., 0] != np.clip(np.rint(mean), 0, 255)).mean() < 0.001
    alpha = x[..., 1:2]
    both = upscale(np.concatenate([x, alpha], -1))
    np.testing.assert_array_equal(both[..., :3], upscale(x))
    np.testing.assert_array_equal(both[..., 3:], upscale(alpha))
    constant = upscale(np.concatenate([x, np.full_like(alpha, 77)], -1))
    assert (constant[..., 3] == 77).all()
    with pytest.raises(InputError, match=r'pixels are float64\[2, 2, 3\]; expected uint8'):
        upscale(np.zeros((2, 2, 3)))


def test_self_ensemble_is_the_mean_of_eight_and_symmetric() -> None:
    net, x = network(2), floats(24, 17)
    ensemble = make_upscaler(net, self_ensemble=True, tile=0)
    single = make_upscaler(net, tile=0)
    by_hand = np.zeros((48, 34, 3))
    for turns in range(4):
        for mirror in (False, True):
            turned = np.rot90(x[:, ::-1] if mirror else x, turns)
            back = np.rot90(single(np.ascontiguousarray(turned)), -turns)
            by_hand += (back[:, ::-1] if mirror else back) / 8
    np.testing.assert_allclose(ensemble(x), by_hand, rtol=0, atol=1e-5)
    tiled = make_upscaler(net, self_ensemble=True, tile=45)
    assert_same(tiled(floats(61, 90)), ensemble(floats(61, 90)))


@pytest.mark.parametrize('size', [(17, 24), (16, 23)])
def test_the_form_for_tpus_gives_the_same_picture(size: tuple[int, int]) -> None:
    net, x = network(3), floats(*size)[None] * 255
    expected = engines.Xla(net, 'float32', for_tpu=False)(x)
    found = engines.Xla(net, 'float32', for_tpu=True)(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    assert found.shape == expected.shape


def test_networks_that_see_the_whole_image_say_so() -> None:
    config = dataclasses.replace(FMENConfig(), scale=2)
    assert Upscaler(Network(config, 'deploy', initial_variables(config, 'deploy'))).exact
    from fmen_jax.models import zoo

    rival = zoo.config('rlfn')
    x = np.zeros((1, 20, 20, 3), np.float32)
    variables = jax.eval_shape(rival.build().init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), dict(variables))
    assert not Upscaler(Network(rival, 'deploy', zeros)).exact
    assert tiling.grid(5, 5, 0, 0).shape == (5, 5)


@pytest.mark.parametrize(('name', 'affects'), [('rlfn', True), ('fmen_s', False)])
def test_the_fingerprint_has_the_tile_where_it_affects_the_output(name: str, affects: bool) -> None:
    config = zoo.config(name)
    net = Network(config, 'deploy', initial_variables(config, 'deploy'))
    made = {Upscaler(net, InferenceSettings(tile=tile)).fingerprint for tile in (0, 128)}
    assert len(made) == 1 + affects
