"""The deploy graph lowers for accelerators that this machine has not."""

import jax
import jax.numpy as jnp
import pytest

from fmen_jax.models import zoo


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_deploy_graph_lowers_for_tpu_and_cuda_with_symbolic_sizes(scale: int) -> None:
    module = zoo.config('fmen_s', scale=scale).build('deploy')
    n, h, w = jax.export.symbolic_shape('n, h, w')
    x = jax.ShapeDtypeStruct((n, h, w, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    exported = jax.export.export(jax.jit(module.apply), platforms=['tpu', 'cuda'])(variables, x)
    assert exported.platforms == ('tpu', 'cuda')
    assert str(exported.out_avals[0].shape) == str((n, scale * h, scale * w, 3))
    # once for each platform, as their lowerings differ
    assert exported.mlir_module().count('= stablehlo.convolution(') == 2 * 34
