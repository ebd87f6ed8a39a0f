"""What happens inside a network: maps, ranges and saturation of its blocks.

`observe` reads the inside of a Flax Linen module. The other functions take plain arrays of any
network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jax import Array

from fmen_jax.models.layers import Params
from fmen_jax.runtime.compilation import jit

FLOAT16_MAX = 65504.0
LOW, HIGH = 0.05, 0.95
"""Values of an attention map below and above which a sigmoid counts as saturated."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """Arrays inside a network for one batch, by the path of the module, such as 'HFABs_0/squeeze'.

    Arrays are [N, H, W, C] with the size and number of channels of the module.
    """

    inputs: dict[str, np.ndarray]
    """First argument of each attention block: of each module that sows a map named `attention`."""
    outputs: dict[str, np.ndarray]
    """Output of each module, in the order of execution, where it is one array."""
    attention: dict[str, np.ndarray]
    """Attention map of each attention block, in 0..1."""


def observe(module: nn.Module, variables: Params, x: Array | np.ndarray) -> Observed:
    """Run a network on images [N, H, W, C], and return what its modules take and return.

    Args:
      module: a network, run as `module.apply(variables, x)`.
      variables: its variables.
      x: images in the range of the network.
    """
    order: list[str] = []

    def run(variables: Params, x: Array) -> tuple[dict[str, Array], dict[str, Array], Any]:
        taken: dict[str, Array] = {}
        returned: dict[str, Array] = {}

        def record(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = function(*args, **kwargs)
            if context.method_name == '__call__' and context.module.path:
                path = '/'.join(context.module.path)
                if isinstance(result, Array):
                    taken[path], returned[path] = args[0], result
                    order.append(path)
            return result

        with nn.intercept_methods(record):
            _, sown = module.apply(variables, x, mutable=['intermediates'])
        attention = _attention_of(dict(sown).get('intermediates', {}))
        return {path: taken[path] for path in attention}, returned, attention

    found = jit(run)(variables, x)
    inputs, outputs, attention = ({k: np.asarray(v) for k, v in part.items()} for part in found)
    places = {path: place for place, path in enumerate(order)}  # jit returns dicts sorted by name

    def ordered(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(sorted(part.items(), key=lambda item: places[item[0]]))

    return Observed(ordered(inputs), ordered(outputs), ordered(attention))


def _attention_of(sown: Mapping[str, Any], path: str = '') -> dict[str, Array]:
    """Return the maps sown as `attention`, by the path of the module that sowed them."""
    found: dict[str, Array] = {}
    for name, value in sown.items():
        if isinstance(value, Mapping):
            found |= _attention_of(value, f'{path}/{name}' if path else name)
        elif name == 'attention':
            found[path] = value[-1]
    return found


def mean_map(features: np.ndarray) -> np.ndarray:
    """Return the mean over channels of [H, W, C], shifted and scaled to -1..1: [H, W].

    This is what Fig. 8 of the FMEN paper shows. A flat map becomes 0.
    """
    mean = features.mean(2, dtype=np.float64)
    low, high = mean.min(), mean.max()
    return 2 * (mean - low) / (high - low) - 1 if high > low else np.zeros_like(mean)


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of the values of one module over a batch; levels of the network, for all channels."""

    min: float
    max: float
    rms: float
    outside_float16: float
    """Share of the values, 0..1, that float16 cannot hold: above 65504 in magnitude, or NaN."""


def range_of(values: np.ndarray) -> Range:
    """Return the range of an array of any shape."""
    wide = values.astype(np.float64)
    outside = ~(np.abs(wide) <= FLOAT16_MAX)
    rms = np.sqrt(np.square(wide).mean())
    return Range(float(wide.min()), float(wide.max()), float(rms), float(outside.mean()))


def channel_ranges(values: np.ndarray) -> list[Range]:
    """Return the range of each channel of [..., C]."""
    return [range_of(values[..., channel]) for channel in range(values.shape[-1])]


@dataclasses.dataclass(frozen=True)
class Saturation:
    """How far the values of an attention map are from the middle of its sigmoid."""

    low: float
    """Share of the values, 0..1, that are below 0.05."""
    high: float
    """Share of the values, 0..1, that are above 0.95."""
    mean: float
    std: float


def saturation_of(attention: np.ndarray) -> Saturation:
    """Return the saturation of an attention map of any shape, with values in 0..1."""
    wide = attention.astype(np.float64)
    low, high = (wide < LOW).mean(), (wide > HIGH).mean()
    return Saturation(float(low), float(high), float(wide.mean()), float(wide.std()))
