"""One experiment: the packages' settings, composed; and experiment files."""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.data.prepared import Broken
from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import Start
from fmen_jax.models.layers import Graph
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pictures are trained on, and which are validated on."""

    train: tuple[str, ...] = ()
    """Folders of HR pictures or of pairs, or div2k/bicubic_x4 and the like."""
    broken: Broken = 'refuse'
    """What to do with pictures that cannot be read."""
    validation: tuple[str, ...] = ()
    """Benchmark folders; the best checkpoint is the one with the highest mean PSNR over them."""
    protocol: str = 'y'
    """How to validate: a name of `evaluation.protocols`."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and what is kept on the way."""

    steps: int = 1_000_000
    """Updates in all."""
    log_every: int = 100
    """Steps between two lines of the log."""
    validate_every: int = 5000
    """Steps between two validations; each is followed by a checkpoint."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 2
    """Last checkpoints that stay, beside the best one by validation PSNR."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a training run depends on."""

    model: FMENConfig = FMENConfig()
    graph: Graph = 'collapsed'
    """'collapsed' (the default), 'expanded' (the reference), or 'deploy' (fine-tunes folded
    weights)."""
    init_from: str = ''
    """A checkpoint or the name of weights to start from, of another scale too: its tail then gives
    means of areas; empty: as `start` says."""
    start: Start = 'pytorch'
    """Initial weights: 'pytorch', its default distribution, or 'bicubic', where head and tail make
    the bicubic upscale (`models.initial`)."""
    seed: int = 0
    """Of the initial weights; the data have their own."""
    data: DataConfig = DataConfig()
    pipeline: PipelineConfig = PipelineConfig()
    optim: OptimConfig = OptimConfig()
    step: StepConfig = StepConfig()
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        for name in ('steps', 'log_every', 'validate_every', 'checkpoint_every', 'keep'):
            if getattr(self.loop, name) < 1:
                raise InputError(f'loop.{name} is {getattr(self.loop, name)}; expected 1 or more.')
        batch, parts, decay = self.pipeline.batch, self.step.accumulate, self.step.ema_decay
        for name, value, least in (
            ('pipeline.patch', self.pipeline.patch, 1),
            ('pipeline.batch', batch, 1),
            ('pipeline.seed', self.pipeline.seed, 0),
            ('step.accumulate', parts, 1),
            ('optim.parts', self.optim.parts, 1),
        ):
            if value < least:
                raise InputError(f'{name} is {value}; expected {least} or more.')
        if batch % parts:
            raise InputError(
                f'step.accumulate is {parts}, which does not divide a batch of {batch}.'
            )
        if not 0 <= decay < 1:
            raise InputError(f'step.ema_decay is {decay}; expected 0, or less than 1.')
        if self.model.n_colors != 3:
            raise InputError(
                f'model.n_colors is {self.model.n_colors}; pictures are read as 3, RGB.'
            )


FREE = (
    *('pipeline.threads', 'pipeline.processes', 'pipeline.ahead'),
    'loop.log_every',
    'loop.keep',
)
"""Settings that do not change the outcome, and may differ when a run is resumed."""


def flat(settings: Any, prefix: str = '') -> dict[str, Any]:
    """Nested settings as {'optim.learning_rate': 0.0005, ...}."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value, f'{prefix}{field.name}.')
        else:
            found[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return found


def load_experiment(path: Path) -> Experiment:
    """The `experiment` of a Python file.

    Raises:
      InputError: no such file, or it has no experiment.
    """
    if not path.is_file():
        raise InputError(f'{path}: no such file; expected an experiment, such as configs/smoke.py.')
    found = runpy.run_path(str(path)).get('experiment')
    if not isinstance(found, Experiment):
        raise InputError(f'{path}: expected a variable `experiment` of type Experiment in it.')
    return found
