"""`fmen-jax train`."""

import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tyro.conf import arg

from fmen_jax.cli.usage import without_config
from fmen_jax.errors import FMENError, InputError
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.runtime import devices
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.training import loop
from fmen_jax.training.experiment import Experiment, load_experiment

USAGE = """usage: fmen-jax train CONFIG --workdir DIR [options]

Train a network, or resume the run in the folder DIR: the same command does both. CONFIG is a Python
file with a variable `experiment`, such as configs/quickstart.py. Options override its settings;
`fmen-jax train CONFIG --help` lists all of them with their values in that file.

  fmen-jax train configs/quickstart.py --workdir runs/quickstart \\
      --data.train FOLDER --data.validation BENCHMARK

SIGTERM and Ctrl-C save a checkpoint and end the run, also during a validation.
"""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network, or resume the run in the workdir: the same command does both."""

    workdir: Path
    """Folder of the run: settings, metrics, TensorBoard, pictures, checkpoints and weights."""
    experiment: Annotated[Experiment, arg(name='')]
    cluster: str = ''
    """Cluster of several processes: 'auto' for a TPU pod, SLURM, Open MPI or Kubernetes, or
    HOST:PORT of process 0, together with --processes and --process."""
    processes: int | None = None
    """Number of processes in the cluster HOST:PORT."""
    process: int | None = None
    """Index of this process in the cluster HOST:PORT, from 0."""
    profile: int = 0
    """Number of steps of which a trace is written to WORKDIR/profile, for TensorBoard or
    Perfetto."""


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    if (code := without_config(args, USAGE)) is not None:
        return code
    given = tyro.cli(
        Train,
        args=args[1:],
        prog=f'fmen-jax train {args[0]}',
        default=Train(tyro.MISSING, load_experiment(Path(args[0]))),
    )
    devices.join(given.cluster, given.processes, given.process)
    keep_compiled()
    try:
        weights = loop.train(
            given.experiment,
            given.workdir,
            upscaler=Upscaler,
            profile=given.profile,
            report=lambda r: print(_line(r), flush=True),
        )
    except FMENError as error:
        if jax.process_count() == 1:
            raise
        print(f'error: {error}', file=sys.stderr, flush=True)
        # A normal exit would wait for the other processes.
        os._exit(2 if isinstance(error, InputError) else 1)
    print(weights or f'stopped; the same command resumes from the checkpoint in {given.workdir}')
    return 0 if weights else 130


def _line(record: dict[str, Any]) -> str:
    """Return a record of the training log as a line of text."""
    if 'validation_psnr' in record:
        means = [
            f'{name} {psnr:.3f} dB (bicubic {record["bicubic_psnr"][name]:.3f})'
            for name, psnr in record['validation_psnr'].items()
        ]
        return f'step {record["step"]}  validation {", ".join(means)}'
    left = datetime.timedelta(seconds=round(record['seconds_left']))
    return (
        f'step {record["step"]}  loss {record["loss"]:.4f}  '
        f'{record["images_per_second"]:.1f} images/s  '
        f'waited for data {record["waited_for_data"]:.0%}  {left} left'
    )
