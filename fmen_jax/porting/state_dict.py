"""Strict conversion between state dicts of the published PyTorch code and our Flax variables."""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache, partial
from reprlib import repr as short
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fmen_jax.errors import InputError
from fmen_jax.models import zoo
from fmen_jax.models.layers import Graph, Params
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.porting import keys

StateDict = dict[str, np.ndarray]

# Keys under which training code stores the weights. Averaged weights (EMA) come first because they
# are the ones that are published.
_WRAPPERS = ('params_ema', 'params', 'state_dict', 'model_state_dict', 'model')
_PREFIXES = ('module.', 'model.')
_MAX_WRAPPERS = 8  # a dict in a pickle can contain itself


@dataclasses.dataclass(frozen=True)
class Ported:
    """A state dict converted to one of our networks."""

    config: NetworkConfig
    graph: Graph
    """Graph: 'deploy', or 'collapsed' for a train graph (which also runs as 'expanded')."""
    variables: Params
    """Variables as NumPy arrays in the dtypes of the checkpoint."""
    key_style: str
    """Naming scheme of the keys, one of `config.key_styles`."""
    wrapper: str
    """Wrappers and prefixes of the tensors, such as 'params_ema' or 'module.'; '' if none."""


def unwrap(tree: Mapping[str, Any]) -> tuple[StateDict, str]:
    """Return the bare state dict inside a checkpoint, and the wrappers and prefixes removed.

    Raises:
      InputError: If there are no tensors under any of the usual names, or too many wrappers.
    """
    wrapper: list[str] = []

    def remove(name: str) -> None:
        if len(wrapper) == _MAX_WRAPPERS:
            raise InputError(
                f'the tensors are inside more than {_MAX_WRAPPERS} wrappers or prefixes, '
                f'{"/".join(wrapper)}/...; expected {_MAX_WRAPPERS} or fewer.'
            )
        wrapper.append(name)

    while not all(isinstance(value, np.ndarray) for value in tree.values()):
        name = next((w for w in _WRAPPERS if isinstance(tree.get(w), Mapping)), None)
        if name is None:
            raise InputError(
                f'no state dict found: expected tensors by name, bare or under one of '
                f'{", ".join(_WRAPPERS)}; found {", ".join(map(short, list(tree)[:8]))}.'
            )
        remove(name)
        tree = tree[name]
    state = dict(tree)
    if not state:
        raise InputError('the checkpoint is empty; expected tensors by name.')
    if other := [key for key in state if not isinstance(key, str)]:
        raise InputError(f'the tensors have names such as {short(other[0])}; expected strings.')
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), ''):
        remove(prefix)
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, '/'.join(wrapper)


def _key(path: keys.Path) -> str:
    """Return the key of a variable path; a name that PyTorch does not have keeps its whole path."""
    return keys.to_key(path) or '/'.join(path)


def _path(key: str) -> keys.Path:
    return tuple(key.split('/')) if '/' in key else keys.to_path(key) or ()


def _expected(config: NetworkConfig, graph: Graph) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return key -> (shape in PyTorch's layout, whether it is a count), in the published order."""
    # the blocks that a stored configuration names may be defined anew, as in a notebook
    return _traced(config, graph) if config.in_metadata else _cached(config, graph)


def _traced(config: NetworkConfig, graph: Graph) -> dict[str, tuple[tuple[int, ...], bool]]:
    shape = (1, config.min_size, config.min_size, config.n_colors)
    module = config.build(graph)
    tree = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    leaves = cast('dict[keys.Path, jax.ShapeDtypeStruct]', flatten_dict(cast('Params', tree)))
    found = {}
    for path, leaf in leaves.items():
        dims = leaf.shape
        torch_shape = (dims[3], dims[2], *dims[:2]) if len(dims) == 4 else dims
        found[_key(path)] = (torch_shape, jnp.issubdtype(leaf.dtype, jnp.integer))
    position = partial(keys.position, order=config.key_order)
    return {key: found[key] for key in sorted(found, key=position)}


_cached = lru_cache(_traced)


def _check(state: StateDict, config: NetworkConfig, graph: Graph) -> None:
    """Compare a state dict with its configuration and report all faults in one error."""
    expected = _expected(config, graph)
    faults = [f'missing: {key}' for key in expected if key not in state]
    faults += [f'unexpected: {key}' for key in state if key not in expected]
    for key, array in state.items():
        if key not in expected:
            continue
        shape, is_count = expected[key]
        if array.shape != shape:
            faults.append(f'wrong shape: {key} is {array.shape}, expected {shape}')
        elif not jnp.issubdtype(array.dtype, jnp.integer if is_count else jnp.floating):
            kind = 'an integer' if is_count else 'a floating-point type'
            faults.append(f'wrong type: {key} is {array.dtype}, expected {kind}')
    if faults:
        raise InputError(
            f'the weights do not fit {config} ({"deploy" if graph == "deploy" else "train"} graph):'
            + ''.join(f'\n  {fault}' for fault in faults)
        )


def _in_default_style(
    state: StateDict, styles: Mapping[str, Mapping[str, str]]
) -> tuple[str, StateDict]:
    """Return the naming scheme of the keys, and the state dict with keys in the default one."""
    tops = {key.partition('.')[0] for key in state}
    default = next(iter(styles))
    style = next((name for name, renamed in styles.items() if tops & {*renamed.values()}), default)
    original = {theirs: ours for ours, theirs in styles[style].items()}
    renamed: StateDict = {}
    for key, value in state.items():
        if (name := keys.rename(key, original)) in renamed:
            raise InputError(f'{key} and {name} are two keys for one tensor: remove one of them.')
        renamed[name] = value
    return style, renamed


def to_variables(tree: Mapping[str, Any]) -> Ported:
    """Convert the tensors of a checkpoint to a configuration and variables.

    Args:
      tree: Mapping from key to array in PyTorch's layout, in any style, possibly wrapped.

    Raises:
      InputError: If the network is not supported, or keys are duplicate, missing, unexpected, or of
        the wrong shape or type. The message names all faults of the last four kinds.
    """
    state, wrapper = unwrap(tree)
    for network in zoo.CLASSES:
        style, renamed = _in_default_style(state, network.key_styles)
        shapes = {key: value.shape for key, value in renamed.items()}
        if (found := network.recognize(shapes)) is None:
            continue
        config, graph = found
        _check(renamed, config, graph)
        return Ported(config, graph, _unflatten(renamed), style, wrapper)
    names = ', '.join(list(state)[:4]) + (f', ... ({len(state)} in all)' if len(state) > 4 else '')
    expected = '; '.join(
        f'{c.__name__.removesuffix("Config")}: {c.example_keys}' for c in zoo.CLASSES
    )
    raise InputError(
        'these are not the weights of a supported network. Expected keys such as those of '
        f'{expected} (the last with 3 s^2 rows). Found {names}.'
    )


def to_variables_of(tree: Mapping[str, Any], config: NetworkConfig, graph: Graph) -> Ported:
    """Convert the tensors of a checkpoint whose configuration and graph are known.

    Raises:
      InputError: If keys are missing, unexpected, or of the wrong shape or type.
    """
    state, wrapper = unwrap(tree)
    _check(state, config, graph)
    return Ported(config, graph, _unflatten(state), config.default_key_style, wrapper)


def _unflatten(state: StateDict) -> Params:
    return unflatten_dict({_path(key): keys.to_flax_layout(a) for key, a in state.items()})


def to_state_dict(
    variables: Params, config: NetworkConfig, graph: Graph, *, key_style: str | None = None
) -> StateDict:
    """Convert variables to a bare state dict with the published keys, order, shapes and dtypes.

    Args:
      variables: `params` and, for a train graph, `batch_stats`.
      config: configuration of the network.
      graph: graph of the variables.
      key_style: naming scheme of the keys, one of `config.key_styles`; the first one if None.

    Raises:
      InputError: If the variables are not those of this network, or the key style is unknown or has
        no such graph.
    """
    default = config.default_key_style
    style = key_style or default
    if style not in config.key_styles:
        raise InputError(
            f'the key style {style!r} is unknown; expected {" or ".join(config.key_styles)}.'
        )
    if graph != 'deploy' and style != default:
        raise InputError(
            f'no train graph is known in the key style {style!r}: fold the network first, or '
            f'choose {default!r}.'
        )
    state = {}
    for path, leaf in flatten_dict(variables).items():
        array = np.asarray(leaf)
        if np.issubdtype(array.dtype, np.integer):
            array = array.astype(np.int64)  # PyTorch's dtype of counts; JAX uses 32 bits
        state[_key(path)] = keys.to_torch_layout(array).copy(order='C')
    _check(state, config, graph)
    return {
        keys.rename(key, config.key_styles[style]): state[key] for key in _expected(config, graph)
    }
