"""Scaling of inference with image side and number of tiles, and of the train step with its batch.

Time and temporary bytes are given per LR pixel, and are constant where only the amount of work
matters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contenders, peak
from benchmarks.train import OURS, ours
from benchmarks.turns import in_turn
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.runtime.compilation import jit

SIDES = (16, 32, 64, 128, 256, 512)
TILES = (1, 4, 16)
STEPS = (2, 4, 8, 16, 32, 64)


def measure(*, quick: bool) -> dict[str, Any]:
    """Return rows by image side, by number of 64x64 tiles, and by batch of the step on 48x48."""
    net = contenders.network()
    run = contenders.xla(net)
    shapes = [('side', side, (1, side, side, 3)) for side in (SIDES[:1] if quick else SIDES)]
    shapes += [('tiles of 64x64', n, (n, 64, 64, 3)) for n in (TILES[:1] if quick else TILES)]
    found: list[dict[str, Any]] = []
    for kind, value, shape in shapes:
        x = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
        (times,) = in_turn({'': lambda x=x: run(x)}, 1 if quick else 5).values()
        program: Any = jit(net.module.apply, onednn='large')
        given = jax.ShapeDtypeStruct(shape, jnp.float32)
        plan = program.lower(net.variables, given).compile().memory_analysis()
        found.append(_row(kind, value, times, plan.temp_size_in_bytes, x.size // 3))
    config, patch = FMENConfig(scale=4), 16 if quick else 48
    for size in STEPS[:1] if quick else STEPS:
        step, temp = ours(OURS, config, peak.batch(config.scale, size, patch))
        (times,) = in_turn({'': step}, 1 if quick else 3).values()
        found.append(_row('train batch', size, times, temp, size * patch**2))
    return {'rows': found}


def _row(kind: str, value: int, times: list[float], temp: int, pixels: int) -> dict[str, Any]:
    seconds = float(np.median(times))
    return {
        'of': kind,
        'value': value,
        'seconds': seconds,
        'microseconds_per_pixel': seconds / pixels * 1e6,
        'temp_bytes': temp,
        'temp_bytes_per_pixel': temp / pixels,
    }
