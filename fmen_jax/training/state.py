"""The training state: everything that a training step changes, as one tree of arrays."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from fmen_jax.models.layers import Params


class TrainState(flax.struct.PyTreeNode):
    """Arrays of the training state. The step function closes over everything that is static."""

    step: Array
    """Number of updates so far, int32."""
    params: Params
    batch_stats: Params
    """Running statistics of the batch norms; empty for a deploy graph."""
    ema: Params
    """Exponential moving average of the parameters; empty if averaging is disabled."""
    opt_state: Any

    @property
    def variables(self) -> Params:
        """Variables for `module.apply`, with the current parameters."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def smoothed(self) -> Params:
        """Variables for `module.apply`, with the averaged parameters.

        If averaging is disabled, these are the current parameters.
        """
        return {'params': self.ema or self.params, 'batch_stats': self.batch_stats}


def init_state(
    variables: Params, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Return the state before the first step, with a copy of the variables of a network."""
    copied = jax.tree.map(jnp.array, variables)
    params = copied['params']
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=copied.get('batch_stats', {}),
        ema=jax.tree.map(jnp.array, params) if ema else {},
        opt_state=optimizer.init(params),
    )
