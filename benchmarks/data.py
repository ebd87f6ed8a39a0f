"""Throughput of the data pipeline compared with that of the train step, FMEN-S x4.

The data are four photographs of scikit-image, prepared once. Batches of 16 and 64 patches of 48x48
are read as in the training loop, through the same prefetching threads. The pipeline is measured
alone, not while the step runs: docs/performance.md gives the share of time that a training run
waited for data.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import skimage.data

from benchmarks import peak
from benchmarks.train import OURS, ours
from benchmarks.turns import in_turn, ratio, rows
from fmen_jax.data import prepared
from fmen_jax.data.batches import Batches, PipelineConfig, prefetched
from fmen_jax.images.write import write_rgb8
from fmen_jax.models.fmen import FMENConfig

PHOTOGRAPHS = ('astronaut', 'coffee', 'chelsea', 'rocket')


def measure(*, quick: bool) -> dict[str, Any]:
    """Return images per second, and how many times faster the pipeline is than the step."""
    config = FMENConfig(scale=4)
    found: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for photograph in PHOTOGRAPHS:
            picture = getattr(skimage.data, photograph)()
            write_rgb8(folder / 'pictures' / f'{photograph}.png', picture)
        source = prepared.open_source(
            prepared.prepare(folder / 'pictures', 4, output=folder / 'prepared')
        )
        for size, patch in ((2, 16),) if quick else ((16, 48), (64, 48)):
            settings = PipelineConfig(patch=patch, batch=size, ahead=2)
            batches = prefetched(Batches([source], settings, unshuffled=True), settings)
            step, _ = ours(OURS, config, peak.batch(config.scale, size, patch))
            # Many batches in a turn, because some have already been prefetched.
            count = 4 if quick else 1024 // size
            calls = {
                'pipeline': lambda b=batches, n=count: list(itertools.islice(b, n)),
                'step': lambda s=step: [s() for _ in range(2)],
            }
            times = in_turn(calls, 1 if quick else 5)
            each = {
                'pipeline': [t / count / size for t in times['pipeline']],
                'step': [t / 2 / size for t in times['step']],
            }
            for row in rows(each, batch=size, patch=patch):
                found.append(row | {'images_per_second': 1 / row['seconds']})
            summary[f'batch_{size}'] = {'pipeline_vs_step': ratio(each, 'step', 'pipeline')}
    return {
        'rows': found,
        'summary': summary,
        'pipeline_vs_step': min(s['pipeline_vs_step']['median'] for s in summary.values()),
    }
