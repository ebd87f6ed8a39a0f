"""Load a network with its weights from a checkpoint, run it, fold it and save it."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import Module

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.files import sha256
from fmen_jax.models import zoo
from fmen_jax.models.cost import count_cost
from fmen_jax.models.layers import Graph, Params
from fmen_jax.models.reparam import fold
from fmen_jax.runtime.compilation import jit
from fmen_jax.weights.names import resolve_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network configuration with a graph and its variables; `net(x)` upscales images.

    Images are [N, H, W, 3], float, RGB in 0..255.
    """

    config: zoo.Config
    graph: Graph
    """Graph to run: 'deploy', or the train graph in eval mode as 'collapsed' or 'expanded'."""
    variables: Params
    """Variables as nested dicts of NumPy arrays, in the dtypes of the checkpoint."""
    dialect: str = 'github'
    """Naming scheme of the keys when saving, one of `porting.keys.DIALECTS`."""
    precision: str = 'highest'
    """Precision of products, see `jax.default_matmul_precision`. 'default' is faster on
    accelerators."""

    @cached_property
    def module(self) -> Module:
        """Flax module of the network, to be used as `module.apply(variables, x)`."""
        return self.config.build(self.graph)

    @cached_property
    def _apply(self) -> Any:
        return jit(self.module.apply)

    def __call__(self, x: np.ndarray | jax.Array) -> jax.Array:
        """Upscale [N, H, W, 3] in 0..255 to [N, s H, s W, 3], not clamped, in the dtype of x.

        The network is compiled once for each shape and dtype. float64 requires jax_enable_x64.

        Raises:
          InputError: If x is not a floating-point array of this shape, or is float16.
        """
        if not isinstance(x, np.ndarray | jax.Array):
            raise InputError(f'images are a {type(x).__name__}; expected an array [N, H, W, C].')
        self.check(x.shape, x.dtype)
        with jax.default_matmul_precision(self.precision):
            return self._apply(self.variables, x)

    def check(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise InputError unless an array of this shape and dtype can be upscaled."""
        colors = self.config.n_colors
        if dtype == jnp.float16:
            raise InputError(
                'images are float16, whose range the activations of published weights leave: '
                'expected float32, bfloat16 or float64.'
            )
        fits = len(shape) == 4 and shape[3] == colors and min(shape) > 0
        if not (fits and jnp.issubdtype(dtype, jnp.floating)):
            raise InputError(
                f'images are {dtype}{list(shape)}; expected floats [N, H, W, {colors}] in 0..255, '
                'such as image[None].astype(numpy.float32).'
            )

    def fold(self) -> 'Network':
        """Return the network folded to its deploy graph, or itself if it is already folded.

        Folding is done in float64. The result is rounded once, to float32 or to the dtype of the
        checkpoint if that is wider.
        """
        if self.graph == 'deploy':
            return self
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(self.variables['params'])}
        dtype = np.result_type(np.float32, *dtypes)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: np.asarray(a, np.float64), self.variables)
            folded = jax.tree.map(lambda a: np.asarray(a, dtype), fold(wide))
        return dataclasses.replace(self, graph='deploy', variables=folded)

    def state_dict(self, dialect: str | None = None) -> porting.StateDict:
        """Return the variables under the published key names, in PyTorch's layout and order."""
        return porting.to_state_dict(
            self.variables, self.config, self.graph, dialect=dialect or self.dialect
        )

    def save(self, path: str | Path, *, dialect: str | None = None) -> None:
        """Write a checkpoint that PyTorch can load: .pt, .pth or .safetensors.

        Raises:
          InputError: If the file extension is a different one, it is .pt or .pth and torch is not
            installed, or the dialect does not support this graph.
        """
        metadata = {'network': repr(self.config), 'range': '0..255 RGB'}
        porting.write(Path(path), self.state_dict(dialect), metadata)


def load(
    weights: str | Path, *, precision: str = 'highest', allow_nonfinite: bool = False
) -> Network:
    """Load the network of a checkpoint; its keys and shapes determine configuration and scale.

    Args:
      weights: the name of weights shipped in the package (`weights.names.shipped`), a .pt, .pth or
        .safetensors file, or the name of published weights (`weights.download.PUBLISHED`), which
        are downloaded on first use.
      precision: precision of products on accelerators, see `Network`.
      allow_nonfinite: whether to accept weights that contain NaN or infinity, which make every
        output NaN; for research.

    Raises:
      InputError: If the file or name does not exist, the weights are not those of a supported
        network, or they are not finite.
      DownloadError: If published weights could not be downloaded. The message says which file to
        put where.
    """
    path = resolve_weights(weights)
    ported = _read(path)
    if not allow_nonfinite:
        _check_finite(path, ported)
    return Network(ported.config, ported.graph, ported.variables, ported.dialect, precision)


def _check_finite(path: Path, ported: porting.Ported) -> None:
    state = porting.to_state_dict(
        ported.variables, ported.config, ported.graph, dialect=ported.dialect
    )
    bad = [
        f'{name} ({int((~finite).sum())} of {finite.size})'
        for name, array in state.items()
        if not (finite := np.isfinite(array)).all()
    ]
    if bad:
        more = f' and {len(bad) - 3} more tensors' if len(bad) > 3 else ''
        raise InputError(
            f'{path}: holds NaN or infinity in {", ".join(bad[:3])}{more}, which makes outputs '
            'NaN: the file is damaged, or its training diverged. allow-nonfinite loads it anyway.'
        )


def _read(path: Path) -> porting.Ported:
    tree = porting.read(path)
    try:
        return porting.to_variables(tree)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def describe(weights: str | Path) -> str:
    """Describe a checkpoint as lines of text: file, hash, network, dialect, size and cost.

    Raises:
      InputError, DownloadError: As for `load`, except that non-finite weights are accepted.
    """
    path = resolve_weights(weights)
    ported = _read(path)
    config, graph = ported.config, ported.graph
    state = porting.to_state_dict(ported.variables, config, graph, dialect=ported.dialect)
    cost = count_cost(config.build(), 256, 256, config.n_colors)
    radius = config.receptive_radius
    lines = {
        'file': path,
        'sha256': sha256(path),
        'network': f'{zoo.name_of(config) or "of its own size"}, x{config.scale}',
        'graph': 'deploy' if graph == 'deploy' else 'train',
        'dialect': ported.dialect + (f', inside {ported.wrapper}' if ported.wrapper else ''),
        'configuration': config,
        'tensors': f'{len(state)}, {", ".join(sorted({str(a.dtype) for a in state.values()}))}',
        'parameters': f'{sum(a.size for a in jax.tree.leaves(ported.variables["params"])):,}'
        + ('' if graph == 'deploy' else f', {cost.parameters:,} when folded'),
        'multiply-adds': f'{cost.multiply_adds / 1e9:.2f} G for 256x256 LR pixels, when folded',
        'radius': 'an output pixel depends on '
        + (f'{radius} LR pixels on each side' if radius else 'the whole image'),
    }
    return '\n'.join(f'{name:<14} {value}' for name, value in lines.items())
