"""The optimizer and its learning-rate schedule."""

import dataclasses
import warnings
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
import optax.contrib

from fmen_jax.errors import FMENWarning, InputError, check_choice, check_range
from fmen_jax.models.layers import Params

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
    relative: bool = False
    """Multiply the update of each parameter array by the root mean square of its values, so that
    `learning_rate` is relative to them. The kernels of a folded network differ in scale by orders
    of magnitude, and equal updates change the small ones too much. Not for training from scratch:
    arrays of zeros, such as the biases of new batch norms, hardly change."""
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
    parts = [makers[config.name]()]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.relative:
        parts.append(optax.scale_by_param_block_rms(_LEAST_RMS))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def warn_of_large_updates(config: OptimConfig, params: Params) -> None:
    """Warn if the first updates would change the values of a kernel by more than a fifth.

    The updates of all optimizers but sgd have the size of the learning rate, whatever the size of
    the gradient. In training from scratch, they are small compared with every kernel. The kernels
    of a folded network, however, contain the gains of batch norms, which can be tiny.
    """
    if config.relative or config.name == 'sgd':
        return
    kernels = [
        (float(np.sqrt(np.mean(np.square(value)))), path)
        for path, value in jax.tree.leaves_with_path(params)
        if value.ndim == 4 and np.any(value)  # a kernel of zeros is meant to change
    ]
    rms, path = min(kernels, default=(np.inf, ()))
    size = config.learning_rate * (_MUON_RMS if config.name == 'muon' else 1)
    if size > _LARGE_UPDATE * rms:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        warnings.warn(
            f'the first updates have a root mean square of about {size:.2g}, and the kernel {name} '
            f'has one of {rms:.2g}: training will probably diverge, or undo what the weights have '
            'learned. Use --optim.relative, or a lower --optim.learning-rate.',
            FMENWarning,
            stacklevel=2,
        )


# Folded weights whose smallest kernel had an rms of 0.002 lost 0.13 dB in 100 steps of Adam at a
# learning rate of 5e-4 (docs/training.md). From scratch, the ratio is 0.1 at 2e-3.
_LARGE_UPDATE = 0.2

# Root mean square that `OptimConfig.relative` assumes at least, so that an array of zeros can
# change. The smallest kernel of the published weights has 1.4e-7.
_LEAST_RMS = 1e-7


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
