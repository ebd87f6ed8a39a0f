"""Explanations of a difference: each is one change of our side after which it vanishes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from fmen_jax.images.pixel_shuffle import pixel_unshuffle
from fmen_jax.models.layers import Params
from fmen_jax.network import Network
from fmen_jax.parity.layers import difference, name_of, run, wide
from fmen_jax.parity.report import Divergence, Row
from fmen_jax.porting import keys

IN_PLACE = (
    'the output of the network agrees, and so does what is computed from the layers that differ: '
    'their maps were changed in place (`out += x`) after the hook had seen them; clone in the hook'
)

DIV2K_MEAN = np.float32(255) * np.array([0.4488, 0.4371, 0.4040], np.float32)
"""RGB mean of DIV2K that EDSR subtracts from its input and adds to its output, in float32 there."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One input, and the output of the reference that our network does not give."""

    network: Network
    x: np.ndarray
    found: np.ndarray
    expected: np.ndarray
    tolerance: float
    """Largest absolute difference of equal outputs."""

    def solved_by(self, output: np.ndarray) -> bool:
        """Whether an output is that of the reference."""
        return difference(output, self.expected).error <= self.tolerance


Trial = tuple[str, Callable[[], np.ndarray]]


def of_forward(problem: Problem, divergence: Divergence | None) -> list[str]:
    """Return the explanations after which the output in eval mode is that of the reference."""
    trials = itertools.chain(
        _inputs(problem),
        _outputs(problem),
        _variables(problem, divergence),
        _slopes(problem),
        _borders(problem),
        _batch_statistics(problem),
    )
    return [
        f'the difference vanishes if {text}' for text, trial in trials if problem.solved_by(trial())
    ]


def _inputs(problem: Problem) -> Iterator[Trial]:
    module, variables = problem.network.module, wide(problem.network.variables)
    x = problem.x

    def output(given: np.ndarray) -> np.ndarray:
        return run(module, variables, given)

    yield 'the input is divided by 255', lambda: output(x / 255)
    yield (
        'the input is divided by 255 and the output multiplied by 255',
        lambda: output(x / 255) * 255,
    )
    yield 'the channels of the input are BGR', lambda: output(x[..., ::-1])
    yield (
        'the channels of input and output are BGR',
        lambda: output(x[..., ::-1])[..., ::-1],
    )
    if x.shape[-1] == 3:
        mean = DIV2K_MEAN.astype(x.dtype).reshape(1, 1, 1, 3)
        yield (
            'the mean of DIV2K is subtracted from the input and added to the output',
            lambda: output(x - mean) + mean,
        )
        yield 'the mean of DIV2K is subtracted from the input', lambda: output(x - mean)


def _outputs(problem: Problem) -> Iterator[Trial]:
    network = problem.network
    y = problem.found
    yield 'the output is clamped to 0..255', lambda: np.clip(y, 0, 255)
    yield 'the output is rounded', lambda: np.rint(y)
    scale, colors = network.config.scale, network.config.n_colors
    n, h, w, _ = problem.x.shape
    sizes = {'c': colors, 'dy': scale, 'dx': scale}
    shuffled = pixel_unshuffle(y, scale)
    for order in itertools.permutations(sizes):
        if order == ('c', 'dy', 'dx'):
            continue
        to = [3 + order.index(name) for name in ('dy', 'dx', 'c')]

        def reordered(order: Any = order, to: Any = to) -> np.ndarray:
            split = shuffled.reshape(n, h, w, *(sizes[name] for name in order))
            return split.transpose(0, 1, to[0], 2, to[1], to[2]).reshape(y.shape)

        yield (
            f'the pixel shuffle reads the channels in the order ({", ".join(order)}) instead of '
            '(c, dy, dx)',
            reordered,
        )


def _variables(problem: Problem, divergence: Divergence | None) -> Iterator[Trial]:
    network = problem.network
    variables = wide(network.variables)

    def output(changed: Params) -> Callable[[], np.ndarray]:
        return lambda: run(network.module, changed, problem.x)

    stats: Any = flatten_dict(variables.get('batch_stats', {}))
    for epsilon in (1e-3, 1e-4, 1e-6, 1e-8) if stats else ():
        # var + (epsilon - 1e-5) in a batch norm with 1e-5 stands for that epsilon
        moved = {p: v + (epsilon - 1e-5) if p[-1] == 'var' else v for p, v in stats.items()}
        yield (
            f'the epsilon of the batch norms is {epsilon:g} instead of 1e-05',
            output({**variables, 'batch_stats': unflatten_dict(moved)}),
        )
    params: Any = flatten_dict(variables['params'])
    kernels = [path for path, value in params.items() if value.ndim == 4 and value.shape[0] > 1]
    turns: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        'transposed (H and W exchanged)': lambda k: k.swapaxes(0, 1),
        'flipped (convolution instead of correlation)': lambda k: k[::-1, ::-1],
        'transposed (inputs and outputs exchanged)': lambda k: k.swapaxes(2, 3),
    }
    for text, turn in turns.items():
        fitting = [path for path in kernels if turn(params[path]).shape == params[path].shape]
        here = [path for path in fitting if divergence and _inside(path, divergence.layer)]
        for paths in [[path] for path in here] + [fitting]:
            changed = {path: turn(v) if path in paths else v for path, v in params.items()}
            key = keys.to_key(('params', *paths[0])) if paths else ''
            what = f'{key} is' if len(paths) == 1 else 'all kernels are'
            yield f'{what} {text}', output({**variables, 'params': unflatten_dict(changed)})
    for path in [p for p in params if divergence and _inside(p, divergence.layer)]:
        if path[-1] == 'bias':
            changed = {**params, path: 0 * params[path]}
            key = keys.to_key(('params', *path))
            yield f'{key} is zero', output({**variables, 'params': unflatten_dict(changed)})


def _inside(path: tuple[str, ...], layer: str) -> bool:
    """Whether a parameter belongs to a layer."""
    return bool(layer) and f'{keys.to_key(("params", *path))}.'.startswith(f'{layer}.')


def _slopes(problem: Problem) -> Iterator[Trial]:
    network = problem.network
    arguments = (wide(network.variables), problem.x)
    program = jax.make_jaxpr(network.module.apply)(*arguments)
    for slope in (0.01, 0.05, 0.1, 0.2, 0.25, 0.0):

        def output(slope: float = slope) -> np.ndarray:
            return np.asarray(_with_slope(program, slope)(*jax.tree.leaves(arguments))[0])

        yield f'the slope of every LeakyReLU is {slope:g}', output


def _with_slope(program: Any, slope: float) -> Callable[..., list[Any]]:
    """Return a traced program with another slope in its calls of `leaky_relu`."""

    def changed(equation: Any) -> Any:
        if equation.params.get('name') != 'leaky_relu':
            return equation
        (x,) = equation.invars
        other = jax.make_jaxpr(lambda x: jnp.where(x > 0, x, slope * x))(x.aval)
        return equation.replace(params={**equation.params, 'jaxpr': other})

    jaxpr = program.jaxpr.replace(eqns=[changed(equation) for equation in program.jaxpr.eqns])
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, program.consts))


def _borders(problem: Problem) -> Iterator[Trial]:
    network = problem.network
    if network.graph == 'deploy':
        return
    module = network.config.build('expanded')

    def rrrb(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        name = name_of(context.module.path) or ''
        if context.method_name == '__call__' and name.endswith('fea_conv'):
            inner = np.asarray(args[0])[:, 1:-1, 1:-1]
            args = (np.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0))),)
        return next_fun(*args, **kwargs)

    def attention(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_fun(*args, **kwargs)
        if context.method_name == '__call__' and kwargs.get('centered'):
            y, border = (np.asarray(part) for part in result)
            return y + border.reshape(1, 1, 1, -1), 0 * border
        return result

    def both(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        return attention(lambda *a, **k: rrrb(next_fun, a, k, context), args, kwargs, context)

    for text, interceptor in (
        ('the RRRBs pad with zeros instead of the bias', rrrb),
        ('the convolutions after batch norms pad with zeros', attention),
        ('RRRBs and attention blocks pad with zeros', both),
    ):
        yield (
            text,
            lambda f=interceptor: run(module, wide(network.variables), problem.x, f),
        )


def _batch_statistics(problem: Problem) -> Iterator[Trial]:
    network = problem.network
    one_value = problem.x.size == problem.x.shape[-1]  # per channel, which has no variance
    if one_value or 'batch_stats' not in network.variables:
        return

    def output() -> np.ndarray:
        y, _ = network.module.apply(
            wide(network.variables), problem.x, train=True, mutable=['batch_stats']
        )
        return np.asarray(y)

    yield 'batch norms use the statistics of the batch (the reference is in train mode)', output


def of_statistics(
    before: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    rows: Mapping[str, Row],
    ours: Mapping[str, np.ndarray],
) -> list[str]:
    """Return the momentum of the reference's batch norms, if another one explains the difference.

    Args:
      before: state dict before the step.
      theirs: running statistics of the reference after the step, by key.
      rows: rows of the stage by name.
      ours: our state dict with the running statistics after the step.
    """
    for name, row in rows.items():
        key = name.removeprefix('stats/')
        if not (name.startswith('stats/') and key.endswith('running_mean') and not row.equal):
            continue
        if before[key].shape != theirs[key].shape:
            return []
        start = np.float64(before[key])
        moved, expected = np.float64(ours[key]) - start, np.float64(theirs[key]) - start
        momentum = 0.1 * float((moved * expected).sum() / (moved * moved).sum())
        if np.abs(expected - momentum / 0.1 * moved).max() <= 1e-9 * np.abs(expected).max():
            return [
                f'the momentum of the batch norms is {momentum:.6g} instead of 0.1 (from {key}, '
                'the first statistics that differ)'
            ]
        return []
    return []
