"""The optimizer and its learning-rate schedule."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import optax
import optax.contrib

from fmen_jax.errors import InputError, check_choice, check_range

OptimizerName = Literal['adam', 'adamw', 'lion', 'muon', 'sgd']
ScheduleName = Literal['halve', 'cosine', 'constant']


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer. The defaults are those of FMEN, as reported by third parties."""

    name: OptimizerName = 'adam'
    """Optimizer, from optax. 'muon' orthogonalizes the updates of the convolution kernels between
    head and tail, and updates all other parameters with Adam, both with Nesterov momentum."""
    learning_rate: float = 5e-4
    """Learning rate after the warm-up."""
    schedule: ScheduleName = 'halve'
    """Learning-rate schedule: 'halve' halves the rate after each of `parts` equal parts of the run,
    'cosine' decays it along a cosine to `floor` times `learning_rate`, and 'constant' does not
    change it."""
    parts: int = 5
    """Number of equal parts of the run, for the schedule 'halve'."""
    floor: float = 0.0
    """Final learning rate of the schedule 'cosine', as a fraction of `learning_rate`."""
    warmup_steps: int = 0
    """Number of warm-up steps, in which the learning rate rises linearly from 0."""
    b1: float = 0.9
    """Decay rate of the first moment; for sgd, the momentum; for muon, applies to its Adam part."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Constant added to the square root of the second moment, for adam and adamw."""
    beta: float = 0.95
    """Momentum of the orthogonalized updates, for muon."""
    weight_decay: float = 0.0
    """Weight decay, for adamw, lion and muon. For muon it applies to the orthogonalized kernels."""
    clip_norm: float = 0.0
    """Maximum global norm of the gradients; larger ones are scaled down to it. 0 means no limit."""

    def __post_init__(self) -> None:
        check_choice('optim.name', self.name, get_args(OptimizerName))
        check_choice('optim.schedule', self.schedule, get_args(ScheduleName))
        check_range('optim.parts', self.parts, least=1)
        for name in ('learning_rate', 'floor', 'warmup_steps', 'eps', 'weight_decay', 'clip_norm'):
            check_range(f'optim.{name}', getattr(self, name), least=0)
        for name in ('b1', 'b2', 'beta'):
            check_range(f'optim.{name}', getattr(self, name), least=0, below=1)
        if self.weight_decay and self.name in ('adam', 'sgd'):
            raise InputError(
                f'optim.weight_decay is {self.weight_decay}, but {self.name} has no weight decay: '
                'choose adamw, lion or muon, or set it to 0.'
            )


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step number, for a run of `steps` steps."""
    decay = steps - config.warmup_steps
    rate = config.learning_rate
    if config.schedule == 'constant':
        schedule = optax.constant_schedule(rate)
    elif config.schedule == 'cosine':
        schedule = optax.cosine_decay_schedule(rate, decay, config.floor)
    else:
        # Rounded up, so that the last part is the shortest.
        every = -(-decay // config.parts)
        schedule = optax.exponential_decay(rate, every, 0.5, staircase=True)
    if not config.warmup_steps:
        return schedule
    rise = optax.linear_schedule(0.0, rate, config.warmup_steps)
    return optax.join_schedules([rise, schedule], [config.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Return the optimizer for a run of `steps` steps."""
    schedule = make_schedule(config, steps)
    makers = {
        'adam': lambda: optax.adam(schedule, config.b1, config.b2, config.eps),
        'adamw': lambda: optax.adamw(
            schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
        ),
        'lion': lambda: optax.lion(
            schedule, config.b1, config.b2, weight_decay=config.weight_decay
        ),
        'muon': lambda: _muon(config, schedule),
        'sgd': lambda: optax.sgd(schedule, config.b1),
    }
    optimizer = makers[config.name]()
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


# Root mean square of the update of an orthogonalized kernel, before it is multiplied by the
# learning rate. It is close to that of Adam's updates, so that the same learning rate suits both
# (Liu et al., arXiv 2502.16982).
_MUON_RMS = 0.2


def _muon(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon for kernels [kh, kw, C, F], each treated as a matrix [kh kw C, F]."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)

    def dimension_numbers(params: Any) -> Any:
        def of(path: Any, value: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            inner = path[0].key not in ('head', 'tail_0')
            return matrix if inner and value.ndim == 4 else None

        return jax.tree_util.tree_map_with_path(of, params)

    return optax.contrib.muon(
        schedule,
        beta=config.beta,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=dimension_numbers,
        consistent_rms=_MUON_RMS,
    )
