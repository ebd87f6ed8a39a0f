"""Export of the deploy graph as one serialized JAX program for CPU, CUDA and TPU, with weights.

`jax.export.deserialize(bytes).call(x)` runs it; x is [N, H, W, C] float32 in 0..255, with any N,
and any H and W that are not below the `min_size` of the network. JAX reads such a file for six
months after it was written, and versions of JAX older than the one that wrote it cannot read it.
Use safetensors or ONNX for long-term storage.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from fmen_jax.network import Network

PLATFORMS = ('cpu', 'cuda', 'tpu')


def to_stablehlo(network: Network) -> bytes:
    """Return the folded network as a serialized program with symbolic N, H and W."""
    folded = network.fold()
    variables = jax.tree.map(jnp.asarray, folded.variables)

    def upscale(x: jax.Array) -> Any:
        with jax.default_matmul_precision(folded.precision):
            return folded.module.apply(variables, x)

    least = folded.config.min_size
    sizes = export.symbolic_shape('n, h, w', constraints=[f'h >= {least}', f'w >= {least}'])
    x = jax.ShapeDtypeStruct((*sizes, folded.config.n_colors), jnp.float32)
    return bytes(export.export(jax.jit(upscale), platforms=PLATFORMS)(x).serialize())
