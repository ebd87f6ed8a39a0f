"""One training step: a pure function of state and batch.

Images are [N, H, W, C], uint8 or float, in 0..255; so is the loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from fmen_jax.models.layers import KEPT, Graph, Params
from fmen_jax.runtime import devices
from fmen_jax.training.state import TrainState

Batch = dict[str, Array]
"""`lr` [N, H, W, C] and `hr`, of the shape that the module gives: [N, scale H, scale W, C], or
before the pixel shuffle [N, H, W, C scale^2], whose loss is the same sum in another order."""


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Settings of a step."""

    loss: Literal['l1', 'l2', 'charbonnier'] = 'l1'
    """Mean over all values of |error|, error^2, or sqrt(error^2 + 1e-6)."""
    ema_decay: float = 0.0
    """Of the moving average of the parameters; 0 keeps none."""
    accumulate: int = 1
    """Parts of a batch that run one after the other, to save memory; batch norm sees each apart."""
    dtype: Literal['auto', 'float32', 'bfloat16', 'float64'] = 'auto'
    """Of images and activations; parameters, statistics and the loss are as the variables are.
    'auto' is bfloat16 on TPUs, whose products are of bfloat16 in any case, float32 elsewhere."""
    remat: Literal['auto', 'none', 'cheap', 'full'] = 'auto'
    """What the backward pass computes again instead of keeping it: nothing, or all but convolutions
    and batch statistics, or all. 'auto' is 'cheap' on a CPU, 'none' elsewhere (docs/tpu.md)."""
    packed: int = 0
    """Pixels of a row that are computed side by side, with the same result: 2 fills the lanes of a
    TPU (docs/tpu.md). 0 is 2 there, for even patches, and 1 elsewhere."""
    statistics: Literal['global', 'device'] = 'global'
    """Batch norms see the global batch, as on one device, or each device's part of it, which needs
    one exchange between devices in a step instead of 31."""

    def on(self, backend: str, graph: Graph = 'collapsed', patch: int = 2) -> 'StepConfig':
        """These settings with what depends on the backend ('tpu', 'gpu', 'cpu') decided."""
        tpu = backend == 'tpu'
        dtype = 'bfloat16' if tpu else 'float32'
        packed = 2 if tpu and graph != 'expanded' and patch % 2 == 0 else 1
        return dataclasses.replace(
            self,
            dtype=dtype if self.dtype == 'auto' else self.dtype,
            packed=self.packed or packed,
            remat=self.remat if self.remat != 'auto' else 'cheap' if backend == 'cpu' else 'none',
        )


class Metrics(flax.struct.PyTreeNode):
    """What a step tells, [] each; of the state before its update."""

    loss: Array
    gradient_norm: Array


def loss_of(error: Array, name: str) -> Array:
    """The mean loss of an error [N, H, W, C], in float32 at least."""
    error = error.astype(jnp.promote_types(error.dtype, jnp.float32))
    if name == 'l1':
        return jnp.abs(error).mean()
    if name == 'l2':
        return jnp.square(error).mean()
    return jnp.sqrt(jnp.square(error) + 1e-6).mean()


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    config: StepConfig,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of a network, to be jitted with the state donated.

    Under jit with a sharded batch the statistics of the batch norms are those of the global batch,
    or with config.statistics 'device' those of each part, for which `mesh` says where they are.
    """
    config = config.on(jax.default_backend())
    dtype = jnp.dtype(config.dtype)
    kept = (KEPT,) if config.remat == 'cheap' else ()

    def forward(params: Params, batch_stats: Params, lr: Array) -> tuple[Array, Any]:
        variables = {'params': params, 'batch_stats': batch_stats}
        output, update = module.apply(variables, lr, train=True, mutable=['batch_stats'])
        return output, update.get('batch_stats', {})

    def loss(params: Params, batch_stats: Params, batch: Batch) -> tuple[Array, Params]:
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        run = forward if config.remat == 'none' else jax.checkpoint(forward, policy=policy)
        # libtpu 0.0.42 crashes on a conversion that it moves into the first convolution's gradient,
        # with four patches a chip
        lr = lax.optimization_barrier(batch['lr'].astype(dtype))
        output, batch_stats = run(params, batch_stats, lr)
        wide = jnp.promote_types(dtype, jnp.float32)
        return loss_of(output.astype(wide) - batch['hr'].astype(wide), config.loss), batch_stats

    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(params: Params, batch_stats: Params, batch: Batch) -> Any:
        def part(carry: Any, piece: Batch) -> Any:
            batch_stats, total = carry
            (value, batch_stats), gradients = gradient(params, batch_stats, piece)
            return (batch_stats, jax.tree.map(jnp.add, total, (value, gradients))), None

        pieces = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], pieces)
        rest = jax.tree.map(lambda x: x[1:], pieces)
        (value, batch_stats), gradients = gradient(params, batch_stats, first)
        carry, _ = lax.scan(part, (batch_stats, (value, gradients)), rest)
        batch_stats, total = carry
        value, gradients = jax.tree.map(lambda x: x / config.accumulate, total)
        return (value, batch_stats), gradients

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        run = gradient if config.accumulate == 1 else accumulated
        if config.statistics == 'device' and mesh is not None:
            run = devices.on_each_device(run, mesh)
        (value, batch_stats), gradients = run(state.params, state.batch_stats, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        keep = config.ema_decay
        ema: Any = optax.incremental_update(params, state.ema, 1 - keep) if state.ema else {}
        new = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            ema=ema,
            opt_state=opt_state,
        )
        return new, Metrics(loss=value, gradient_norm=optax.tree.norm(gradients))

    return step
