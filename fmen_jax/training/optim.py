"""The optimiser and its schedule, from their settings."""

import dataclasses
from typing import Literal

import optax

from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimiser; the defaults are FMEN's, as third parties report them."""

    name: Literal['adam', 'adamw', 'lion', 'sgd'] = 'adam'
    """Which optimiser of optax."""
    learning_rate: float = 5e-4
    """At the start, after the warm-up."""
    schedule: Literal['halve', 'cosine', 'constant'] = 'halve'
    """'halve': by two after each of `parts` equal parts of the run; 'cosine': down to `floor`."""
    parts: int = 5
    """Of the run, for 'halve'."""
    floor: float = 0.0
    """Last learning rate of 'cosine', as a share of the first."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    b1: float = 0.9
    """Decay of the first moment (momentum for sgd)."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """For adamw and lion."""
    clip_norm: float = 0.0
    """Largest global norm of the gradients; 0 does not clip."""


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step of a run of `steps`."""
    decay = max(steps - config.warmup_steps, 1)
    rate = config.learning_rate
    if config.schedule == 'constant':
        schedule = optax.constant_schedule(rate)
    elif config.schedule == 'cosine':
        schedule = optax.cosine_decay_schedule(rate, decay, config.floor)
    else:
        # rounded up, so that the last part is the short one
        every = -(-decay // config.parts)
        schedule = optax.exponential_decay(rate, every, 0.5, staircase=True)
    if not config.warmup_steps:
        return schedule
    rise = optax.linear_schedule(0.0, rate, config.warmup_steps)
    return optax.join_schedules([rise, schedule], [config.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps`.

    Raises:
      InputError: settings that contradict each other.
    """
    if config.warmup_steps >= steps:
        raise InputError(f'warmup_steps is {config.warmup_steps}, but the run has {steps} steps.')
    if config.weight_decay and config.name in ('adam', 'sgd'):
        raise InputError(f'weight_decay is {config.weight_decay}, but {config.name} has none.')
    schedule = make_schedule(config, steps)
    makers = {
        'adam': lambda: optax.adam(schedule, config.b1, config.b2, config.eps),
        'adamw': lambda: optax.adamw(
            schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay
        ),
        'lion': lambda: optax.lion(
            schedule, config.b1, config.b2, weight_decay=config.weight_decay
        ),
        'sgd': lambda: optax.sgd(schedule, config.b1),
    }
    optimizer = makers[config.name]()
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
