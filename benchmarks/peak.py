"""Peak memory of a process that only runs three train steps."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

_ROOT = Path(__file__).parent.parent


def batch(scale: int, size: int, patch: int) -> dict[str, np.ndarray]:
    """Return `lr`, uint8 noise [N, p, p, 3], and `hr`, its nearest-neighbor enlargement."""
    lr = np.random.default_rng(0).integers(0, 256, (size, patch, patch, 3), np.uint8)
    return {'lr': lr, 'hr': lr.repeat(scale, 1).repeat(scale, 2)}


def of(name: str, config: Any, size: int, patch: int) -> int:
    """Return the peak resident bytes of a new process that trains a contender of `train`."""
    settings = json.dumps([name, dataclasses.asdict(config), size, patch])
    command = [sys.executable, '-m', 'benchmarks.peak', settings]
    found = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def resident(pid: int | str = 'self') -> int:
    """Return the peak resident bytes of a Linux process.

    getrusage is not used, because its peak would start from that of the parent process.
    """
    status = Path(f'/proc/{pid}/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024


def main(settings: str) -> None:
    """Import only what the contender needs, run three steps, and print the peak in bytes."""
    name, values, size, patch = json.loads(settings)
    images = batch(values['scale'], size, patch)
    if name.startswith('torch'):
        from benchmarks.torch_fmen import train_step

        config: Any = types.SimpleNamespace(**values)
        step = train_step(name, config, images, rate=1e-4)
    else:
        from benchmarks.train import ours
        from fmen_jax.models.fmen import FMENConfig

        step, _ = ours(name, FMENConfig(**values), images)
    for _ in range(3):
        step()
    sys.stdout.write(f'{resident()}\n')


if __name__ == '__main__':
    main(sys.argv[1])
