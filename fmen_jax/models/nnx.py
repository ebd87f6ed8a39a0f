"""Networks as modules of Flax NNX, and back: `Network.to_nnx` and `Network.from_nnx`.

NNX modules hold their variables and are changed in place. `flax.nnx.bridge.ToNNX` runs a Linen
module without updating its batch statistics, and its `train()` and `eval()` do not reach Linen
modules, so that batch norms would never train; this module does both.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from fmen_jax.models.layers import Graph, Params
from fmen_jax.models.protocol import NetworkConfig


class NnxNetwork(nnx.Module):
    """A network as an NNX module, made by `Network.to_nnx`; it begins in eval mode.

    `model(x)` upscales images [N, H, W, C] in 0..255 to [N, s H, s W, C], not clamped. After
    `model.train()` batch norms use the statistics of the batch and update the running ones;
    `model.eval()` ends that. `params` is a tree of `nnx.Param`, `batch_stats` one of
    `nnx.BatchStat`, both with the names of the Linen variables.
    """

    def __init__(self, config: NetworkConfig, graph: Graph, variables: Params) -> None:
        """Build the module.

        Args:
          config: the configuration of the network.
          graph: the graph that is run.
          variables: the variables of the Linen module, nested dicts of arrays.
        """
        self.config = config
        self.graph: Graph = graph
        self.use_running_average = True
        self.params = nnx.data(_wrapped(variables['params'], nnx.Param))
        self.batch_stats = nnx.data(_wrapped(variables.get('batch_stats', {}), nnx.BatchStat))

    def __call__(self, x: Array | np.ndarray) -> Array:
        module = self.config.build(self.graph)
        variables = {'params': _values(self.params), 'batch_stats': _values(self.batch_stats)}
        if self.use_running_average:
            return module.apply(variables, x)  # pyright: ignore[reportReturnType]
        y, updated = module.apply(variables, x, train=True, mutable=['batch_stats'])
        new = dict(updated).get('batch_stats', {})
        _map_variables(lambda variable, value: variable.set_value(value), self.batch_stats, new)
        return y

    def variables(self) -> Params:
        """Return the variables of the Linen module, as nested dicts of NumPy arrays."""
        found = {'params': _values(self.params)}
        if self.batch_stats:
            found['batch_stats'] = _values(self.batch_stats)
        return jax.tree.map(np.asarray, found)


def _map_variables(function: Callable[..., Any], *trees: Any) -> Any:
    return jax.tree.map(function, *trees, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _values(tree: Any) -> Params:
    return _map_variables(lambda variable: variable.get_value(), tree)


def _wrapped(tree: Params, kind: type[nnx.Variable]) -> Any:
    return jax.tree.map(lambda leaf: kind(jax.numpy.asarray(leaf)), tree)
