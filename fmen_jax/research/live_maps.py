"""The largest number of feature maps that are alive at one node of a network (paper, fig. 2)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import Module


def live_feature_maps(
    module: Module, height: int, width: int, features: int, colors: int = 3
) -> float:
    """Return the peak memory of a forward pass in feature maps [height, width, features].

    Counted in the traced program: at each operation, all values that depend on the image and are
    still needed, and the output. A convolution needs its input and its output at once; any other
    operation writes over an input that is as large and not needed afterwards. Weights do not count.
    """
    x = jax.ShapeDtypeStruct((1, height, width, colors), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    closed = jax.make_jaxpr(lambda image, variables: module.apply(variables, image))(x, variables)
    return _peak(closed.jaxpr) / (height * width * features)


def _peak(jaxpr: Any) -> int:
    """Return the largest number of live elements, given that the first input is the image."""
    last: dict[Any, int] = {}
    for i, equation in enumerate(jaxpr.eqns):
        last |= {var: i for var in equation.invars if not hasattr(var, 'val')}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars}
    live = {jaxpr.invars[0]: math.prod(jaxpr.invars[0].aval.shape)}
    peak = sum(live.values())
    for i, equation in enumerate(jaxpr.eqns):
        inputs = [var for var in equation.invars if not hasattr(var, 'val') and var in live]
        if not inputs:
            continue  # computed from the weights alone
        sizes = {var: math.prod(var.aval.shape) for var in equation.outvars}
        total = sum(live.values()) + sum(sizes.values())
        dying = {var: live[var] for var in inputs if last[var] == i}
        if equation.primitive.name != 'conv_general_dilated':
            output = sum(sizes.values())
            total -= min(max(dying.values(), default=0), output)
        peak = max(peak, total)
        live = {var: size for var, size in (live | sizes).items() if last.get(var, -1) > i}
    return peak
