"""Time of the command `fmen-jax upscale` on a small PNG, in total and by part."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import skimage.data

from fmen_jax.images.write import write_rgb8

_ROOT = Path(__file__).parent.parent

# The steps of the command, timed separately in a new process.
_PARTS = """
import json, sys, time
from pathlib import Path
clock = [('', time.perf_counter())]
part = lambda name: clock.append((name, time.perf_counter()))
import jax
part('import jax')
import fmen_jax.cli
from fmen_jax.network import load
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.inference import jobs
from fmen_jax.inference.planning import plan
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
part('import the rest')
keep_compiled()
network = load('fmen_s_x4')
part('load weights')
upscaler = Upscaler(network, InferenceSettings(engine=sys.argv[3]))
part('build the engine')
items = plan([sys.argv[1]], Path(sys.argv[2]), scale=4)
list(jobs.run(items, upscaler))
part('read, compile or find compiled, compute, write')
print(json.dumps([(n, t - clock[i][1]) for i, (n, t) in enumerate(clock[1:])]))
"""


def measure(*, quick: bool) -> dict[str, Any]:
    """Return rows for the first start, with an empty cache, and for later starts."""
    rounds = 1 if quick else 5
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture, out = folder / 'small.png', folder / 'out.png'
        write_rgb8(picture, skimage.data.astronaut()[:64, :64])
        environment = {
            **{k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'},
            'FMEN_JAX_CACHE': str(folder / 'cache'),
            'PYTHONPATH': str(_ROOT),
        }

        def seconds(*command: str) -> float:
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        python = sys.executable
        for engine in ('xla',) if quick else ('xla', 'auto'):
            verb = (python, '-m', 'fmen_jax', 'upscale', str(picture), '-o', str(out))
            command = (*verb, '--engine', engine)
            rows.append({'part': f'first start, {engine}', 'seconds': seconds(*command)})
            later = statistics.median(seconds(*command) for _ in range(rounds))
            rows.append({'part': f'later starts, {engine}', 'seconds': later})
            runs = [
                json.loads(
                    subprocess.run(
                        (python, '-c', _PARTS, str(picture), str(out), engine),
                        env=environment,
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                )
                for _ in range(rounds)
            ]
            for index, (part, _) in enumerate(runs[0]):
                taken = statistics.median(run[index][1] for run in runs)
                rows.append({'part': f'{engine}: {part}', 'seconds': taken})
        rows.append({'part': 'python alone', 'seconds': seconds(python, '-c', '')})
    return {'rows': rows, 'summary': {'later_start_seconds': rows[1]['seconds']}}
