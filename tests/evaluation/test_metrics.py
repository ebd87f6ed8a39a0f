"""PSNR and SSIM against scikit-image's, and the protocols built on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fmen_jax.errors import InputError
from fmen_jax.evaluation import metrics, protocols
from tests.helpers import assert_close, differs

TRUTH = skimage.data.astronaut()[100:180, 150:250].astype(np.float64)
NOISY = TRUTH + np.random.default_rng(0).normal(0, 9, TRUTH.shape)


def their_ssim(a: np.ndarray, b: np.ndarray) -> float:
    return structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
    )


def test_psnr_and_ssim_are_scikit_images() -> None:
    assert_close(
        metrics.psnr(NOISY, TRUTH), peak_signal_noise_ratio(TRUTH, NOISY, data_range=255), 1e-10
    )
    assert_close(metrics.ssim(NOISY, TRUTH), their_ssim(NOISY, TRUTH), 1e-12)
    assert differs(metrics.ssim(NOISY + 1, TRUTH), their_ssim(NOISY, TRUTH), 1e-6)


def test_luma_is_scikit_images() -> None:
    assert_close(metrics.luma(TRUTH)[..., 0], rgb2ycbcr(TRUTH / 255)[..., 0], 1e-10)


def test_equal_images() -> None:
    assert metrics.psnr(TRUTH, TRUTH) == np.inf
    assert_close(metrics.ssim(TRUTH, TRUTH), 1.0, 1e-12)


def test_a_pixel_that_is_not_a_number() -> None:
    broken = np.where(np.arange(3) == 1, np.nan, TRUTH)
    assert np.isnan(metrics.psnr(broken, TRUTH))


@pytest.mark.parametrize('name', protocols.PROTOCOLS)
def test_jax_gives_what_numpy_gives(name: str) -> None:
    rule = protocols.protocol(name)
    expected = rule.score(NOISY, TRUTH, scale=4)
    score = jax.jit(lambda a, b: rule.score(a, b, scale=4))
    single = score(jnp.asarray(NOISY, jnp.float32), jnp.asarray(TRUTH, jnp.float32))
    assert_close(single, expected, 1e-3)
    with jax.enable_x64(True):
        assert_close(score(jnp.asarray(NOISY), jnp.asarray(TRUTH)), expected, 1e-10)


@pytest.mark.parametrize(('name', 'crop'), [('y', 3), ('edsr-div2k', 9), ('ntire-esr', 4)])
def test_protocols_against_scikit_image(name: str, crop: int) -> None:
    score = protocols.protocol(name).score(NOISY, TRUTH, scale=3)
    output, target = np.clip(np.rint(NOISY), 0, 255), TRUTH
    if name == 'y':
        output, target = (rgb2ycbcr(image / 255)[..., :1] for image in (output, target))
    output, target = (image[crop:-crop, crop:-crop] for image in (output, target))
    assert_close(score.psnr, peak_signal_noise_ratio(target, output, data_range=255), 1e-9)
    assert_close(score.ssim, their_ssim(output, target), 1e-12)


def test_a_protocol_says_what_it_does() -> None:
    texts = [str(rule) for rule in protocols.PROTOCOLS.values()]
    assert texts == [
        'y (BT.601 luma, 1 x scale pixels cropped, rounded to 8 bits)',
        'edsr-div2k (RGB, 1 x scale + 6 pixels cropped, rounded to 8 bits)',
        'ntire-esr (RGB, 4 pixels cropped, rounded to 8 bits)',
    ]


@pytest.mark.parametrize(
    ('a', 'b', 'message'),
    [
        (TRUTH, TRUTH[1:], r'float64\[80, 100, 3\] and float64\[79, 100, 3\]; expected two floats'),
        (TRUTH.astype(np.uint8), TRUTH, r'uint8\[80, 100, 3\]'),
        (TRUTH[:10], TRUTH[:10], 'SSIM needs 11 or more'),
    ],
)
def test_bad_input(a: Any, b: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.ssim(a, b)


def test_nothing_left_after_the_crop() -> None:
    with pytest.raises(InputError, match='nothing left when 10 pixels are cropped'):
        protocols.protocol('edsr-div2k').score(TRUTH[:20], TRUTH[:20], scale=4)
    with pytest.raises(InputError, match="no protocol is named 'Y'; there are y, edsr-div2k"):
        protocols.protocol('Y')
