"""Our layers beside those of the reference: as the network runs, and each on the reference's input.

Maps are [N, H, W, C]. Two things that the networks here compute differently are put into one form:

- A batch norm before a convolution returns its result less the border value, and the border value;
  the map that is compared is their sum, and the input of the convolution that sum with its border.
- A map may be padded before a layer or by it: the inner part is compared, and the frame as well
  where both have one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from fmen_jax.models.layers import Params
from fmen_jax.parity.dump import Maps
from fmen_jax.porting import keys

Where = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest difference of two maps."""

    error: float
    """Largest absolute difference; infinite if the shapes do not match or one map is not finite."""
    where: Where = ()
    """Its position (n, y, x, c)."""
    ours: float = float('nan')
    reference: float = float('nan')
    frame: float = 0.0
    """Largest difference in the outermost pixels."""
    interior: float = 0.0
    """Largest difference elsewhere; that of the frame if there is nothing else."""
    note: str = ''


@dataclasses.dataclass(frozen=True)
class Event:
    """One input or output of a layer that was given the values of the reference up to there."""

    name: str
    side: Literal['in', 'out']
    difference: Difference
    scale: float
    """Range of the values of the reference."""

    @property
    def share(self) -> float:
        """Difference as a share of the range."""
        return self.difference.error / self.scale


def range_of(array: np.ndarray) -> float:
    """Return max - min of an array, or the largest magnitude if all values are equal; never 0."""
    if not array.size or not np.isfinite(array).all():
        return 1.0
    return float(np.ptp(array) or np.abs(array).max() or 1.0)


def aligned(ours: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return two maps of one shape: if only one is padded by a pixel, its frame is cut off."""
    if ours.shape == reference.shape:
        return ours, reference
    if ours.ndim == reference.ndim == 4 and min(ours.shape[1:3] + reference.shape[1:3]) > 2:
        if ours[:, 1:-1, 1:-1].shape == reference.shape:
            return ours[:, 1:-1, 1:-1], reference
        if reference[:, 1:-1, 1:-1].shape == ours.shape:
            return ours, reference[:, 1:-1, 1:-1]
    return None


def difference(ours: Any, reference: Any) -> Difference:
    """Compare two arrays or numbers; maps [N, H, W, C] also by frame and interior."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    pair = aligned(ours, reference)
    if pair is None:
        shapes = f'shape {list(ours.shape)}; the reference has {list(reference.shape)}'
        return Difference(float('inf'), note=shapes)
    if not ours.size:
        return Difference(0.0)
    error = np.abs(np.float64(pair[0]) - np.float64(pair[1]))
    error = np.where(np.isfinite(error), error, np.inf)
    where = np.unravel_index(int(error.argmax()), error.shape)
    frame = interior = 0.0
    if error.ndim == 4:
        inner = error[:, 1:-1, 1:-1]
        ring = [error[:, :1], error[:, -1:], error[:, :, :1], error[:, :, -1:]]
        frame = float(max(part.max() for part in ring))
        interior = float(inner.max()) if inner.size else frame
    return Difference(
        float(error[where]),
        tuple(map(int, where)),
        float(pair[0][where]),
        float(pair[1][where]),
        frame,
        interior,
    )


def name_of(path: tuple[str, ...]) -> str | None:
    """Return the PyTorch name of a Flax module; '' for the whole network."""
    if not path:
        return ''
    key = keys.to_key(('params', *path, 'bias'))
    return key.removesuffix('.bias') if key else None


def wide(variables: Params, dtype: Any = np.float64) -> Params:
    """Return the variables in one floating-point dtype; counts are kept."""
    return jax.tree.map(
        lambda a: np.asarray(a) if np.asarray(a).dtype.kind in 'iu' else np.asarray(a, dtype),
        variables,
    )


def run(
    module: nn.Module, variables: Params, x: np.ndarray, interceptor: Callable | None = None
) -> np.ndarray:
    """Run a network in eval mode, without compilation, in the dtype of x."""
    with jax.default_matmul_precision('highest'):
        if interceptor is None:
            return np.asarray(module.apply(variables, x))
        with nn.intercept_methods(interceptor):
            return np.asarray(module.apply(variables, x))


def outputs_of(module: nn.Module, variables: Params, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the output of every layer, in the order in which they finish; '' is the network."""
    found: dict[str, np.ndarray] = {}

    def interceptor(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_fun(*args, **kwargs)
        if context.method_name == '__call__' and (name := name_of(context.module.path)) is not None:
            found[name] = _output(result, kwargs)
        return result

    run(module, variables, x, interceptor)
    return found


def local_events(
    module: nn.Module, variables: Params, x: np.ndarray, reference: Maps
) -> list[Event]:
    """Compare every layer on the inputs of the reference.

    Each layer is given the input that the reference had there, and what runs after it is given the
    output that the reference had. So the difference at an event is made between the event before it
    and itself, whatever is different elsewhere.
    """
    events: list[Event] = []

    def note(name: str, side: Literal['in', 'out'], ours: np.ndarray, theirs: np.ndarray) -> None:
        events.append(Event(name, side, difference(ours, theirs), range_of(theirs)))

    def interceptor(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        name = name_of(context.module.path)
        if context.method_name != '__call__' or name not in reference.outputs:
            return next_fun(*args, **kwargs)
        if name and name in reference.inputs:
            theirs, ours = reference.inputs[name], _input(args)
            note(name, 'in', ours, theirs)
            args = _feed(args, ours, theirs)
        result = next_fun(*args, **kwargs)
        theirs, ours = reference.outputs[name], _output(result, kwargs)
        note(name, 'out', ours, theirs)
        return _replaced(result, kwargs, theirs) if theirs.shape == ours.shape else result

    run(module, variables, x, interceptor)
    return events


def _output(result: Any, kwargs: dict[str, Any]) -> np.ndarray:
    if isinstance(result, tuple):  # a batch norm: the map and its border value
        y, border = (np.asarray(part) for part in result)
        return y + border.reshape(1, 1, 1, -1) if kwargs.get('centered') else y
    return np.asarray(result)


def _replaced(result: Any, kwargs: dict[str, Any], theirs: np.ndarray) -> Any:
    if not isinstance(result, tuple):
        return theirs
    border = np.asarray(result[1])
    centered = theirs - border.reshape(1, 1, 1, -1) if kwargs.get('centered') else theirs
    return centered.astype(theirs.dtype), border


def _has_border(args: tuple[Any, ...]) -> bool:
    """Return whether a layer is a convolution after a batch norm, which is given its border."""
    return len(args) == 2 and np.ndim(args[1]) == 1


def _input(args: tuple[Any, ...]) -> np.ndarray:
    x = np.asarray(args[0])
    if not _has_border(args):
        return x
    border = np.asarray(args[1]).reshape(1, 1, 1, -1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))) + border
    return padded.astype(x.dtype)


def _feed(args: tuple[Any, ...], ours: np.ndarray, theirs: np.ndarray) -> tuple[Any, ...]:
    """Return the arguments of a layer with the input of the reference in place of ours."""
    fed = ours.copy()
    if fed.shape == theirs.shape:
        fed = theirs
    elif fed[:, 1:-1, 1:-1].shape == theirs.shape:
        fed[:, 1:-1, 1:-1] = theirs
    elif theirs[:, 1:-1, 1:-1].shape == fed.shape:
        fed = theirs[:, 1:-1, 1:-1]
    if not _has_border(args):
        return (fed, *args[1:])
    border = fed[0, 0, 0]
    return fed[:, 1:-1, 1:-1] - border.reshape(1, 1, 1, -1), border
