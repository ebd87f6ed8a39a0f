"""The deploy graph as a serialised JAX program for CPU, CUDA and TPU at once, weights inside.

`jax.export.deserialize(bytes).call(x)` runs it; x is [N, H, W, 3] float32 in 0..255, with any N, H
and W. JAX reads such a file for six months after it was written, and the file cannot be read by
older versions than wrote it: for keeping, there are safetensors and ONNX.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from fmen_jax.network import Network

PLATFORMS = ('cpu', 'cuda', 'tpu')


def to_stablehlo(network: Network) -> bytes:
    """The program as bytes, folded first, with symbolic N, H, W."""
    folded = network.fold()
    variables = jax.tree.map(jnp.asarray, folded.variables)

    def upscale(x: jax.Array) -> Any:
        with jax.default_matmul_precision(folded.precision):
            return folded.module.apply(variables, x)

    sizes = export.symbolic_shape('n, h, w')
    x = jax.ShapeDtypeStruct((*sizes, folded.config.n_colors), jnp.float32)
    return bytes(export.export(jax.jit(upscale), platforms=PLATFORMS)(x).serialize())
