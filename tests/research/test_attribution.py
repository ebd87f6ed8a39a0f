"""Local attribution maps: completeness, and a plain loop as oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network
from fmen_jax.research.attribution import BlurPath, attribute, detect, gini
from tests.helpers import assert_close

PHOTO = skimage.data.astronaut()[20:36, 200:217].astype(np.float64)  # 16 x 17
KERNEL = np.random.default_rng(0).normal(size=(3, 3))


def one_kernel(x: jax.Array) -> jax.Array:
    """The same 3x3 kernel for each channel, zero padding, no upscaling."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    return sum(
        KERNEL[i, j] * padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)
    )


def loop_kernel(sigma: float, size: int) -> np.ndarray:
    kernel = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i - size // 2, j - size // 2
            kernel[i, j] = np.exp(-(x * x + y * y) / (2 * (sigma + 1e-5) ** 2))
    return kernel / kernel.sum()


def loop_filter(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    reach = len(kernel) // 2
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    row, column = abs(y + i), abs(x + j)  # reflected, the edge not repeated
                    row = 2 * (height - 1) - row if row >= height else row
                    column = 2 * (width - 1) - column if column >= width else column
                    out[y, x] += kernel[i + reach, j + reach] * image[row, column]
    return out


def loop_attribution(image: np.ndarray, window: tuple[int, int, int], path: BlurPath) -> np.ndarray:
    """LAM of `one_kernel` with every derivative written out."""
    height, width, _ = image.shape
    sigmas = np.linspace(path.sigma, 0, path.steps + 1)
    kernels = [loop_kernel(sigma, path.size) for sigma in sigmas]
    total = np.zeros_like(image)
    for before, after in itertools.pairwise(kernels):
        here = loop_filter(image, after)
        step = loop_filter(image, (after - before) * path.steps)
        y = np.asarray(one_kernel(here[None])[0])
        upstream = np.zeros_like(y)
        row, column, side = window
        for i in range(row, row + side):
            for j in range(column, column + side):
                for c in range(3):
                    dy, dx = y[i, j, c] - y[i + 1, j, c], y[i, j, c] - y[i, j + 1, c]
                    edge = np.sqrt(dy * dy + dx * dx)
                    upstream[i, j, c] += (dy + dx) / edge
                    upstream[i + 1, j, c] -= dy / edge
                    upstream[i, j + 1, c] -= dx / edge
        gradient = np.zeros_like(image)
        for i in range(height):
            for j in range(width):
                for p in range(3):
                    for q in range(3):
                        y0, x0 = i + p - 1, j + q - 1
                        if 0 <= y0 < height and 0 <= x0 < width:
                            gradient[y0, x0] += KERNEL[p, q] * upstream[i, j]
        total += gradient * step
    return total / path.steps


def test_attribution_is_that_of_a_plain_loop(x64: None) -> None:
    image, window, path = PHOTO[:11, :12], (0, 7, 4), BlurPath(steps=3, size=5)
    found = attribute(one_kernel, image, window, path=path, batch=2)
    expected = loop_attribution(image, window, path)
    assert_close(found.signed, expected, 1e-9 * np.abs(expected).max())  # float64
    assert found.map.max() == 1


def test_attributions_sum_to_the_change_of_the_detector(x64: None) -> None:
    errors = []
    for steps in (50, 100, 200):
        found = attribute(one_kernel, PHOTO, (2, 3, 8), path=BlurPath(steps))
        errors.append(abs(found.signed.sum() / found.gain - 1))
    # The sum over the right ends of the steps converges with their first power.
    assert errors[2] < 0.6 * errors[1] < 0.6 * 0.6 * errors[0]
    assert errors[2] < 0.05


def test_a_network_is_attributed_inside_its_receptive_field() -> None:
    config = FMENConfig(scale=2, n_feats=8, mid_feats=6, down_blocks=0, up_blocks=(0,))
    net = Network(config, 'deploy', initial_variables(config, 'deploy', start='bicubic'))
    image = skimage.data.astronaut()[:32, 100:133]
    found = attribute(net, image, (20, 30, 6), path=BlurPath(steps=4))
    assert config.receptive_radius == 6
    rows, columns = np.nonzero(found.map)
    # LR rows 10 to 13 are read for the window's HR rows 20 to 26, columns 15 to 18 for 30 to 36.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 19, 9, 24)
    assert 0 < found.diffusion_index < 100
    again = attribute(net, image, (20, 30, 6), path=BlurPath(steps=4), batch=3)
    assert_close(again.signed, found.signed, 1e-5 * np.abs(found.signed).max())  # float32


def test_flat_pictures_have_no_attribution_and_no_nan() -> None:
    found = attribute(one_kernel, np.full((24, 24, 3), 7, np.uint8), (8, 8, 4))
    assert not found.signed.any()
    assert found.diffusion_index == pytest.approx(100)


def test_gini_of_one_pixel_and_of_equal_pixels() -> None:
    peak = np.zeros(1000)
    peak[3] = 1
    assert gini(peak) == pytest.approx(0.999, abs=1e-3)
    assert gini(np.ones((5, 7))) == pytest.approx(0, abs=1e-12)
    assert gini(np.array([1.0, 3.0])) == pytest.approx(0.25, abs=1e-6)


def test_path_ends_with_the_sharp_image() -> None:
    images = BlurPath(steps=2).images(PHOTO)
    assert images.shape == (3, *PHOTO.shape)
    assert_close(images[2], PHOTO, 1e-12)
    assert np.ptp(images[0]) < np.ptp(images[1]) < np.ptp(images[2])


def test_detector_counts_edges_in_the_window() -> None:
    image = np.zeros((1, 6, 6, 1), np.float32)
    image[0, :, 3:] = 5
    assert detect(image, 0, 0, 5)[0] == 25  # five rows with one edge of 5
    assert detect(image, 0, 3, 2)[0] == 0


@pytest.mark.parametrize(
    ('window', 'message'),
    [((9, 0, 7), 'inside the output'), ((-1, 0, 4), 'inside the output'), ((0, 0, 0), 'inside')],
)
def test_windows_outside_are_refused(window: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribute(one_kernel, PHOTO, window)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InputError, match='whole number s'):
        attribute(lambda x: x[:, :3], PHOTO)
    with pytest.raises(InputError, match='expected one image'):
        attribute(one_kernel, PHOTO[None])
    with pytest.raises(InputError, match='needs 5 or more'):
        attribute(one_kernel, PHOTO[:4], (0, 0, 2))
    with pytest.raises(InputError, match='odd size'):
        BlurPath(size=4)
