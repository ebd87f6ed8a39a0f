"""An experiment: all settings of a training run, and the Python files that define them."""

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
    """Images for training and for validation."""

    train: tuple[str, ...] = ()
    """Folders of HR images or of LR/HR pairs, or names such as div2k/bicubic_x4."""
    broken: Broken = 'refuse'
    """Treatment of images that cannot be read: refuse to start, or skip them."""
    validation: tuple[str, ...] = ()
    """Benchmark folders. The best checkpoint is the one with the highest mean PSNR over them."""
    protocol: str = 'y'
    """Evaluation protocol for validation: y, edsr-div2k or ntire-esr."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of the run, and how often it is logged, validated and saved."""

    steps: int = 1_000_000
    """Total number of updates."""
    log_every: int = 100
    """Number of steps between two log records."""
    validate_every: int = 5000
    """Number of steps between two validations. A checkpoint is saved after each validation."""
    checkpoint_every: int = 1000
    """Number of steps between two checkpoints."""
    keep: int = 2
    """Number of recent checkpoints to keep, besides the one with the best validation PSNR."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of a training run."""

    model: FMENConfig = FMENConfig()
    graph: Graph = 'collapsed'
    """Graph to train: 'collapsed' is the fast form of the train graph, 'expanded' is its reference
    form with the same values, and 'deploy' is the folded network, to fine-tune folded weights."""
    init_from: str = ''
    """Checkpoint or name of weights to start from. If empty, `start` selects the initial weights.
    If the weights are for another scale, their tail is converted to `model.scale` by area
    averaging."""
    start: Start = 'pytorch'
    """Initial weights: 'pytorch' draws them from PyTorch's default distribution; with 'bicubic',
    the head and the tail alone compute bicubic interpolation, so that training starts at its
    PSNR."""
    seed: int = 0
    """Seed for the initial weights. Batches have their own seed, `pipeline.seed`."""
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
"""Settings that do not affect the result, and may therefore differ when a run is resumed."""


def flat(settings: Any, prefix: str = '') -> dict[str, Any]:
    """Return nested settings as a flat dict, such as {'optim.learning_rate': 0.0005, ...}."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value, f'{prefix}{field.name}.')
        else:
            found[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return found


def load_experiment(path: Path) -> Experiment:
    """Return the variable `experiment` of a Python file.

    Raises:
      InputError: If the file does not exist or defines no experiment.
    """
    if not path.is_file():
        raise InputError(f'{path}: no such file; expected an experiment, such as configs/smoke.py.')
    found = runpy.run_path(str(path)).get('experiment')
    if not isinstance(found, Experiment):
        raise InputError(f'{path}: expected a variable `experiment` of type Experiment in it.')
    return found
