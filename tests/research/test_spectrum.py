"""Ring spectra of known signals, and a transform written out as a loop."""

import numpy as np
import pytest

from fmen_jax.errors import InputError
from fmen_jax.research.spectrum import decibels, fourier_ring_correlation, ring_power


def test_a_wave_has_its_power_in_its_ring() -> None:
    n, k, amplitude = 64, 12, 20.0
    wave = amplitude * np.cos(2 * np.pi * k * np.arange(n) / n)
    image = np.tile(wave[None, :, None], (n, 1, 1)) + 100
    power = ring_power(image, rings=32)
    assert power.frequency[np.nanargmax(power.value)] == pytest.approx(k / n, abs=1 / 64)
    # Hann's transform has the amplitudes 1/2 and 1/4 at the next frequencies, in both directions:
    # nine coefficients of each of the two peaks; nothing further away.
    assert np.nanmax(power.value[[*range(9), *range(15, 32)]]) < 1e-20 * np.nanmax(power.value)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))
    counts = np.bincount(np.floor(radius * 64).astype(int).ravel())[:32]
    assert np.nansum(power.value * counts) / n**2 == pytest.approx(amplitude**2 / 2)


def test_power_is_that_of_a_transform_written_out() -> None:
    image = np.random.default_rng(0).normal(size=(6, 5, 2))
    rings = 3
    sums, counts = np.zeros(rings), np.zeros(rings)
    rows, columns = ([np.sin(np.pi * i / size) ** 2 for i in range(size)] for size in (6, 5))
    window = np.outer(rows, columns)
    for c in range(2):
        away = image[:, :, c] - (image[:, :, c] * window).sum() / window.sum()
        for v in range(-3, 3):
            for u in range(-2, 3):
                radius = np.hypot(v / 6, u / 5)
                if radius == 0 or radius > 0.5:
                    continue
                total = 0
                for y in range(6):
                    for x in range(5):
                        phase = np.exp(-2j * np.pi * (v * y / 6 + u * x / 5))
                        total += window[y, x] * away[y, x] * phase
                ring = min(int(radius * 2 * rings), rings - 1)
                sums[ring] += abs(total) ** 2 / (window**2).sum()
                counts[ring] += 1
    expected = np.append(np.nan, sums[1:] / counts[1:])  # the first ring has only the mean
    np.testing.assert_allclose(ring_power(image, rings).value, expected, 1e-10)


def test_white_noise_has_its_variance_everywhere() -> None:
    noise = np.random.default_rng(0).normal(0, 5, (128, 96, 3))
    power = ring_power(noise, rings=16).value
    # A ring of n independent values has a relative standard error of about 1/sqrt(n); the first
    # has 3 x 40 of them.
    np.testing.assert_allclose(power, 25, rtol=0.4)
    np.testing.assert_allclose(power[4:], 25, rtol=0.1)
    mse = np.square(noise).mean()
    assert decibels(power[4:].mean()) == pytest.approx(-10 * np.log10(255**2 / mse), abs=0.2)


def test_correlation_of_equal_of_other_and_of_blurred_pictures() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 64, 64, 3))
    np.testing.assert_allclose(fourier_ring_correlation(a, 3 * a + 7).value[1:], 1)
    assert np.abs(fourier_ring_correlation(a, b).value[4:]).max() < 0.25
    np.testing.assert_allclose(fourier_ring_correlation(a, -a).value[1:], -1)
    spectrum = np.fft.fft2(a, axes=(0, 1))
    spectrum[np.abs(np.fft.fftfreq(64)) > 0.25] = 0  # rows: nothing above a quarter
    low = np.fft.ifft2(spectrum, axes=(0, 1)).real
    correlation = fourier_ring_correlation(a, low).value
    assert correlation[1:14].min() > 0.95
    assert correlation[-1] < 0.8


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(InputError, match='of one shape'):
        fourier_ring_correlation(np.zeros((8, 8, 3)), np.zeros((8, 9, 3)))
    with pytest.raises(InputError, match='at least 4 rows'):
        ring_power(np.zeros((3, 8, 3)))


def test_flat_pictures_have_no_power() -> None:
    flat = np.full((8, 8, 1), 9.0)
    assert np.nanmax(ring_power(flat, 4).value) < 1e-25
    assert np.isnan(fourier_ring_correlation(flat * 0, flat * 0, 4).value).all()
    assert decibels(np.zeros(1))[0] == -np.inf
