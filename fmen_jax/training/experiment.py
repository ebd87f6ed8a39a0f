"""An experiment: all settings of a training run, and the Python files that define them."""

import dataclasses
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fmen_jax.data.batches import PipelineConfig
from fmen_jax.data.prepared import Broken
from fmen_jax.errors import InputError, check_choice, check_range
from fmen_jax.evaluation import protocols
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import Start
from fmen_jax.models.layers import Graph
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.training.optimizer import OptimConfig
from fmen_jax.training.step import StepConfig

Changed = Literal['refuse', 'accept']
"""Treatment of training images that have changed since the run began."""

if TYPE_CHECKING:
    Model = NetworkConfig
else:
    Model = Any  # so that tyro takes the options from the class of the default; not from a Protocol


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images for training and for validation."""

    train: tuple[str, ...] = ()
    """Folders of HR images or of LR/HR pairs, or names such as div2k/bicubic_x4."""
    broken: Broken = 'refuse'
    """Treatment of images that cannot be read: refuse to start, or skip them."""
    changed: Changed = 'refuse'
    """Treatment of training images that were added, removed or changed since the run began: refuse
    to resume, or accept them, in which case the result is not that of an uninterrupted run."""
    validation: tuple[str, ...] = ()
    """Benchmark folders. The best checkpoint is the one with the highest mean PSNR over them."""
    protocol: str = 'y'
    """Evaluation protocol for validation: y, edsr-div2k or ntire-esr."""

    def __post_init__(self) -> None:
        check_choice('data.broken', self.broken, get_args(Broken))
        check_choice('data.changed', self.changed, get_args(Changed))
        check_choice('data.protocol', self.protocol, list(protocols.PROTOCOLS))


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
    keep_last: int = 2
    """Number of recent checkpoints that are kept, in addition to the one with the best validation
    PSNR."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(f'loop.{field.name}', getattr(self, field.name), least=1)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of a training run."""

    model: Model = FMENConfig()
    graph: Graph = 'collapsed'
    """Graph to train: 'collapsed' is the fast form of the train graph, 'expanded' is its reference
    form with the same values, and 'deploy' is the folded network, to fine-tune folded weights
    (with `optim.relative`)."""
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
        check_choice('graph', self.graph, get_args(Graph))
        check_choice('start', self.start, get_args(Start))
        check_range('seed', self.seed, least=0)
        if self.pipeline.batch % self.step.accumulate:
            raise InputError(
                f'step.accumulate is {self.step.accumulate}, which does not divide pipeline.batch, '
                f'{self.pipeline.batch}: choose a divisor.'
            )
        if self.pipeline.patch < self.model.min_size:
            raise InputError(
                f'pipeline.patch is {self.pipeline.patch}, but this network needs images of '
                f'{self.model.min_size} or more pixels in width and height: choose larger patches.'
            )
        if self.optim.warmup_steps >= self.loop.steps:
            raise InputError(
                f'optim.warmup_steps is {self.optim.warmup_steps}, but loop.steps is '
                f'{self.loop.steps}: choose a warm-up that is shorter than the run.'
            )
        if self.model.n_colors != 3:
            raise InputError(
                f'model.n_colors is {self.model.n_colors}; expected 3, because pictures are read '
                'as RGB.'
            )


FREE = (
    *('pipeline.threads', 'pipeline.processes', 'pipeline.ahead'),
    'data.changed',
    'loop.log_every',
    'loop.keep_last',
)
"""Settings that do not affect the result, and may therefore differ when a run is resumed."""


def flat(settings: Any, prefix: str = '') -> dict[str, Any]:
    """Return nested settings as a flat dict, such as {'optim.learning_rate': 0.0005, ...}."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f'{prefix}{field.name}.')
        else:
            values[prefix + field.name] = list(value) if isinstance(value, tuple) else value
    return values


def load_experiment(path: Path) -> Experiment:
    """Return the variable `experiment` of a Python file.

    Raises:
      InputError: If the file does not exist or defines no experiment.
    """
    if not path.is_file():
        raise InputError(
            f'{path}: there is no such file; expected a Python file that defines an experiment, '
            'such as configs/smoke.py.'
        )
    experiment = runpy.run_path(str(path)).get('experiment')
    if not isinstance(experiment, Experiment):
        raise InputError(
            f'{path} defines no variable `experiment` of type Experiment; expected one, as in '
            'configs/smoke.py.'
        )
    return experiment
