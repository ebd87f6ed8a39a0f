"""Load a network with its weights from a checkpoint, run it, fold it and save it."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import Module
from jax.core import Tracer

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.files import sha256, write_text
from fmen_jax.models import zoo
from fmen_jax.models.cost import count_cost
from fmen_jax.models.layers import Graph, Params
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.runtime.compilation import jit
from fmen_jax.weights import hub
from fmen_jax.weights.model_card import Score, model_card
from fmen_jax.weights.names import resolve_weights

if TYPE_CHECKING:
    from fmen_jax.models.nnx import NnxNetwork


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network configuration with a graph and its variables; `net(x)` upscales images.

    Images are [N, H, W, 3], float, RGB in 0..255.
    """

    config: NetworkConfig
    graph: Graph
    """Graph to run: 'deploy', or the train graph in eval mode as 'collapsed' or 'expanded'."""
    variables: Params
    """Variables as nested dicts of NumPy arrays, in the dtypes of the checkpoint."""
    key_style: str | None = None
    """Naming scheme of the keys when saving, one of `config.key_styles`; None means the first."""
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

        The network is compiled once for each shape and dtype. float64 requires jax_enable_x64. It
        can be called inside `jax.jit`, `jax.grad` and other transformations.

        Raises:
          InputError: If x is not a floating-point array of this shape, is float16, or is float64
            without jax_enable_x64.
        """
        if not isinstance(x, np.ndarray | jax.Array):
            raise InputError(
                f'images are a {type(x).__name__}; expected an array of floats [N, H, W, C].'
            )
        self.check(x.shape, x.dtype)
        # Inside another transformation there are no compiler options: JAX takes them at the top.
        inside = isinstance(x, Tracer)
        apply = jax.jit(self.module.apply) if inside else self._apply
        with jax.default_matmul_precision(self.precision):
            return apply(self.variables, x)

    def check(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise InputError unless an array of this shape and dtype can be upscaled."""
        colors = self.config.n_colors
        if dtype == jnp.float16:
            raise InputError(
                'images are float16; expected float32, bfloat16 or float64, because activations of '
                'published weights exceed the range of float16.'
            )
        if dtype == jnp.float64 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise InputError(
                'images are float64, which JAX would round to float32. Convert them, such as by '
                "image.astype(numpy.float32), or allow float64: jax.config.update('jax_enable_x64',"
                ' True).'
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
            folded = jax.tree.map(lambda a: np.asarray(a, dtype), self.config.fold(wide))
        return dataclasses.replace(self, graph='deploy', variables=folded)

    def to_nnx(self) -> 'NnxNetwork':
        """Return a Flax NNX module with a copy of the variables, in eval mode.

        See `models.nnx.NnxNetwork`. It runs with JAX's default precision of products.
        """
        from fmen_jax.models.nnx import NnxNetwork

        return NnxNetwork(self.config, self.graph, self.variables)

    @classmethod
    def from_nnx(cls, model: 'NnxNetwork') -> 'Network':
        """Return a network with a copy of the variables of an NNX module made by `to_nnx`."""
        return cls(model.config, model.graph, model.variables())

    def state_dict(self, key_style: str | None = None) -> porting.StateDict:
        """Return the variables under the published key names, in PyTorch's layout and order."""
        return porting.to_state_dict(
            self.variables, self.config, self.graph, key_style=key_style or self.key_style
        )

    def save(self, path: str | Path, *, key_style: str | None = None) -> None:
        """Write a checkpoint that PyTorch can load: .pt, .pth or .safetensors.

        Raises:
          InputError: If the file extension is a different one, it is .pt or .pth and torch is not
            installed or the network needs metadata, or the key style does not support this graph.
        """
        path = Path(path)
        metadata = {'network': repr(self.config), 'range': '0..255 RGB'}
        if self.config.in_metadata:
            if path.suffix.lower() in porting.TORCH_EXTENSIONS:
                raise InputError(
                    f'{path}: {type(self.config).__name__} cannot be recognized from its tensors, '
                    'and this format has no metadata: save it as .safetensors.'
                )
            metadata['config'] = zoo.to_json(self.config, self.graph)
        porting.write(path, self.state_dict(key_style), metadata)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        name: str = '',
        licence: str = '',
        scores: Sequence[Score] = (),
    ) -> None:
        """Write a folder in the layout of the Hugging Face Hub, which `load` reads.

        The files are config.json, model.safetensors and a model card, README.md.

        Args:
          folder: folder to write to; created if it does not exist.
          name: name of the weights in the card; that of the folder if empty.
          licence: SPDX identifier of the license of the weights, such as Apache-2.0.
          scores: quality on benchmarks, for the card.
        """
        folder = Path(folder)
        self.save(folder / hub.WEIGHTS)
        write_text(folder / hub.CONFIG, json.dumps(self._config(), indent=1) + '\n')
        card = model_card(
            name or folder.name,
            scale=self.config.scale,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(self.variables['params'])),
            network=repr(self.config),
            licence=licence,
            scores=scores,
        )
        write_text(folder / 'README.md', card)

    def _config(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        settings: Any = self.config
        return {
            'library_name': 'fmen_jax',
            'network': type(self.config).__name__,
            'graph': 'deploy' if self.graph == 'deploy' else 'train',
            **json.loads(json.dumps(dataclasses.asdict(settings))),  # lists instead of tuples
        }

    def _check_folder(self, folder: Path) -> None:
        """Raise InputError if the folder's config.json contradicts its weights."""
        found, expected = hub.read_config(folder), self._config()
        if self.graph == 'deploy':  # weights do not tell these
            expected = {k: v for k, v in expected.items() if k not in self.config.train_only}
        wrong = [
            f'{key} is {found.get(key)!r} there and {value!r} in the weights'
            for key, value in expected.items()
            if found.get(key) != value
        ]
        if wrong:
            raise InputError(
                f'{folder / hub.CONFIG} does not belong to {hub.WEIGHTS}: {"; ".join(wrong)}. '
                f'Load {folder / hub.WEIGHTS} itself to ignore the configuration.'
            )


def load(
    weights: str | Path, *, precision: str = 'highest', allow_nonfinite: bool = False
) -> Network:
    """Load the network of a checkpoint; its keys and shapes determine configuration and scale.

    Args:
      weights: the name of weights shipped in the package (`weights.names.shipped`), a .pt, .pth or
        .safetensors file, the name of published weights (`weights.download.PUBLISHED`), which are
        downloaded on first use, a folder that `Network.save_pretrained` wrote, or the address of
        such a folder on the Hugging Face Hub, hf://OWNER/NAME.
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
    network = Network(ported.config, ported.graph, ported.variables, ported.key_style, precision)
    if path.name == hub.WEIGHTS and path != Path(weights):  # found in a folder
        network._check_folder(path.parent)
    return network


def _check_finite(path: Path, ported: porting.Ported) -> None:
    state = porting.to_state_dict(
        ported.variables, ported.config, ported.graph, key_style=ported.key_style
    )
    bad = [
        f'{name} ({int((~finite).sum())} of {finite.size})'
        for name, array in state.items()
        if not (finite := np.isfinite(array)).all()
    ]
    if bad:
        more = f' and {len(bad) - 3} more tensors' if len(bad) > 3 else ''
        raise InputError(
            f'{path}: NaN or infinity in {", ".join(bad[:3])}{more}. Either the file is damaged, '
            'or its training diverged. To load it nevertheless: allow_nonfinite=True in Python, or '
            '--allow-nonfinite with the commands upscale, evaluate, export and inspect.'
        )


def _read(path: Path) -> porting.Ported:
    tree = porting.read(path)
    stored = porting.read_metadata(path).get('config')
    try:
        if stored and (network := zoo.from_json(stored)):
            return porting.to_variables_of(tree, *network)
        return porting.to_variables(tree)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def describe(weights: str | Path) -> str:
    """Describe a checkpoint as lines of text: file, hash, network, key style, size and cost.

    Raises:
      InputError, DownloadError: As for `load`, except that non-finite weights are accepted.
    """
    path = resolve_weights(weights)
    ported = _read(path)
    config, graph = ported.config, ported.graph
    state = porting.to_state_dict(ported.variables, config, graph, key_style=ported.key_style)
    cost = count_cost(config.build(), 256, 256, config.n_colors)
    radius = config.receptive_radius
    lines = {
        'file': path,
        'sha256': sha256(path),
        'network': f'{zoo.name_of(config) or "unnamed configuration"}, x{config.scale}',
        'graph': 'deploy' if graph == 'deploy' else 'train',
        'key style': ported.key_style + (f', inside {ported.wrapper}' if ported.wrapper else ''),
        'configuration': config,
        'tensors': f'{len(state)}, {", ".join(sorted({str(a.dtype) for a in state.values()}))}',
        'parameters': f'{sum(a.size for a in jax.tree.leaves(ported.variables["params"])):,}'
        + ('' if graph == 'deploy' else f', {cost.parameters:,} when folded'),
        'multiply-adds': f'{cost.multiply_adds / 1e9:.2f} G for 256x256 LR pixels, when folded',
        'radius': 'an output pixel depends on '
        + (f'{radius} LR pixels on each side' if radius else 'the whole image'),
    }
    return '\n'.join(f'{name:<14} {value}' for name, value in lines.items())
