"""`fmen-jax ablate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from fmen_jax.cli.sweep import print_record
from fmen_jax.cli.usage import without_config
from fmen_jax.errors import require
from fmen_jax.files import written_aside
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.research.ablation import ablate, as_markdown, draw, load_ablation, write_results
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.training.experiment import Experiment

USAGE = """usage: fmen-jax ablate CONFIG --workdir DIR [--seeds S...] [options]

Train the variants of a network with the same seeds on the same batches, and compare them in a table
with confidence intervals: ablation.md, .csv, .json and .png in the folder DIR. The same command
resumes. CONFIG is a Python file with an `experiment` and a function `variants(experiment)`, such as
configs/ablate_backbone.py. Options override the settings of the experiment;
`fmen-jax ablate CONFIG --help` lists them.

  fmen-jax ablate configs/ablate_backbone.py --workdir runs/backbone --seeds 0 1 2 3 \\
      --data.train FOLDER --data.validation BENCHMARK
"""


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Train the variants of a network with several seeds and compare them, or resume."""

    workdir: Path
    """Folder of the ablation: the tables, the plot, and one folder for each variant."""
    experiment: Annotated[Experiment, arg(name='')]
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds for the initial weights."""
    size: tuple[int, int] = (180, 320)
    """Height and width in LR pixels at which costs are counted and measured."""
    rounds: int = 10
    """Number of times that each variant runs for its time."""
    plot: bool = True
    """Whether to write ablation.png, which needs matplotlib."""


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    if (code := without_config(args, USAGE)) is not None:
        return code
    path = Path(args[0])
    experiment, variants = load_ablation(path)
    given = tyro.cli(
        Ablate,
        args=args[1:],
        prog=f'fmen-jax ablate {args[0]}',
        default=Ablate(tyro.MISSING, experiment),
    )
    if given.plot:
        require('matplotlib', 'plots', 'the plot (see --no-plot)')
    keep_compiled()
    rows = ablate(
        variants(given.experiment),
        given.seeds,
        given.workdir,
        upscaler=Upscaler,
        size=given.size,
        rounds=given.rounds,
        report=print_record,
    )
    if rows is None:
        print(f'stopped; the same command resumes from the checkpoints in {given.workdir}')
        return 130
    write_results(rows, given.workdir)
    if given.plot:
        title = f'{path.stem}, {given.experiment.loop.steps} steps'
        with written_aside(given.workdir / 'ablation.png') as aside:
            aside.write_bytes(draw(rows, title))
    print(as_markdown(rows), end='')
    return 0
