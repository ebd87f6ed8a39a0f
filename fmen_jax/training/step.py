"""The training step: a pure function of state and batch.

Images are [N, H, W, C], uint8 or float, in 0..255. The loss is computed in the same range.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from fmen_jax.errors import check_choice, check_range
from fmen_jax.models.layers import SAVED, Graph, Params
from fmen_jax.runtime import devices
from fmen_jax.training.state import TrainState

Batch = dict[str, Array]
"""Dict of `lr` [N, H, W, C] and `hr`, which has the shape of the module's output: either
[N, scale H, scale W, C] or, for an output before the pixel shuffle, [N, H, W, C scale^2]. The loss
is the same sum in both, in a different order."""


Loss = Literal['l1', 'l2', 'charbonnier']
Dtype = Literal['auto', 'float32', 'bfloat16', 'float64']
Remat = Literal['auto', 'none', 'cheap', 'full']
Statistics = Literal['global', 'device']


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Settings of a training step."""

    loss: Loss = 'l1'
    """Loss: the mean of |error| (l1), error^2 (l2) or sqrt(error^2 + 1e-6) (charbonnier)."""
    ema_decay: float = 0.0
    """Decay rate of the exponential moving average of the parameters. The averaged parameters are
    validated and saved as the weights. 0 disables averaging."""
    accumulate: int = 1
    """Number of parts into which a batch is split to save memory. Gradients are averaged over the
    parts; batch norms compute their statistics for each part separately."""
    dtype: Dtype = 'auto'
    """Dtype of images and activations. Parameters, batch statistics and the loss keep the dtype of
    the variables. 'auto' is bfloat16 on TPUs, which multiply in bfloat16 anyway, and float32
    elsewhere. On a CPU, bfloat16 requires AVX512-BF16 or AMX; other CPUs use float32 instead."""
    remat: Remat = 'auto'
    """Intermediate results that the backward pass recomputes instead of storing: none of them
    ('none'), all except convolutions and batch statistics ('cheap'), or all ('full'). 'auto' is
    'cheap' on a CPU and 'none' elsewhere (docs/tpu.md)."""
    packed: int = 0
    """Number of adjacent pixels of a row that are packed into the channel dimension. Does not
    change the result; 2 fills the lanes of a TPU (docs/tpu.md). 0 means 2 on TPUs if the patch
    size is even and the graph is not 'expanded', and 1 otherwise."""
    statistics: Statistics = 'global'
    """Batch over which batch norms compute their statistics: the global batch, as on a single
    device, or the part on each device, which needs one exchange between devices per step instead
    of 32."""

    def __post_init__(self) -> None:
        check_choice('step.loss', self.loss, get_args(Loss))
        check_choice('step.dtype', self.dtype, get_args(Dtype))
        check_choice('step.remat', self.remat, get_args(Remat))
        check_choice('step.statistics', self.statistics, get_args(Statistics))
        check_range('step.ema_decay', self.ema_decay, least=0, below=1)
        check_range('step.accumulate', self.accumulate, least=1)
        check_range('step.packed', self.packed, least=0)

    def on(self, backend: str, graph: Graph = 'collapsed', patch: int = 2) -> 'StepConfig':
        """Return these settings with every 'auto' resolved for a backend: 'tpu', 'gpu' or 'cpu'."""
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
    """Scalar metrics of a step, computed from the state before its update."""

    loss: Array
    gradient_norm: Array


def loss_of(error: Array, name: Loss) -> Array:
    """Return the mean loss of an error [N, H, W, C], computed in at least float32."""
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
    """Return the training step of a network; jit it with the state donated.

    Under jit with a sharded batch, batch norms use the statistics of the global batch or, if
    `config.statistics` is 'device', those of the part on each device of `mesh`.
    """
    config = config.on(jax.default_backend())
    dtype = jnp.dtype(config.dtype)
    saved_for_backward = (SAVED,) if config.remat == 'cheap' else ()

    def forward(params: Params, batch_stats: Params, lr: Array) -> tuple[Array, Any]:
        variables = {'params': params, 'batch_stats': batch_stats}
        output, update = module.apply(variables, lr, train=True, mutable=['batch_stats'])
        return output, update.get('batch_stats', {})

    def loss(params: Params, batch_stats: Params, batch: Batch) -> tuple[Array, Params]:
        policy = jax.checkpoint_policies.save_only_these_names(*saved_for_backward)
        run = forward if config.remat == 'none' else jax.checkpoint(forward, policy=policy)
        # Without the barrier, libtpu 0.0.42 moves the conversion into the gradient of the first
        # convolution, and crashes on it with four patches per chip.
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
        ema: Any = {}
        if state.ema:
            ema = optax.incremental_update(params, state.ema, 1 - config.ema_decay)
        new = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            ema=ema,
            opt_state=opt_state,
        )
        return new, Metrics(loss=value, gradient_norm=optax.tree.norm(gradients))

    return step
