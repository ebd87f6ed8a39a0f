"""All that a training step changes, as one tree of arrays."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from fmen_jax.models.layers import Params


class TrainState(flax.struct.PyTreeNode):
    """Arrays alone: what is static is closed over by the step function."""

    step: Array
    """How many updates were made: int32."""
    params: Params
    batch_stats: Params
    """Running statistics of the batch norms; empty for a deploy graph."""
    ema: Params
    """Moving average of the parameters; empty if there is none."""
    opt_state: Any

    @property
    def variables(self) -> Params:
        """For `module.apply`: the parameters as they are."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def smoothed(self) -> Params:
        """For `module.apply`: the averaged parameters, or those as they are if there are none."""
        return {'params': self.ema or self.params, 'batch_stats': self.batch_stats}


def init_state(
    variables: Params, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """The state before the first step, from a network's variables (copied)."""
    copied = jax.tree.map(jnp.array, variables)
    params = copied['params']
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=copied.get('batch_stats', {}),
        ema=jax.tree.map(jnp.array, params) if ema else {},
        opt_state=optimizer.init(params),
    )
