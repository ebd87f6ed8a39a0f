"""Strict conversion between state dicts of the published PyTorch code and our Flax variables."""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fmen_jax.errors import InputError
from fmen_jax.models.esa import MIN_SIZE
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.layers import Graph, Params
from fmen_jax.models.zoo import Config
from fmen_jax.porting import keys
from fmen_jax.porting.hyperparameters import find

StateDict = dict[str, np.ndarray]

# Keys under which training code stores the weights. Averaged weights (EMA) come first because they
# are the ones that are published.
_WRAPPERS = ('params_ema', 'params', 'state_dict', 'model_state_dict', 'model')
_PREFIXES = ('module.', 'model.')


@dataclasses.dataclass(frozen=True)
class Ported:
    """A state dict converted to one of our networks."""

    config: Config
    graph: Graph
    """Graph: 'deploy', or 'collapsed' for a train graph (which also runs as 'expanded')."""
    variables: Params
    """Variables as NumPy arrays in the dtypes of the checkpoint."""
    dialect: str
    """Dialect of the key names, a key of `keys.DIALECTS`."""
    wrapper: str
    """Wrappers and prefixes of the tensors, such as 'params_ema' or 'module.'; '' if none."""


def unwrap(tree: Mapping[str, Any]) -> tuple[StateDict, str]:
    """Return the bare state dict inside a checkpoint, and the wrappers and prefixes removed.

    Raises:
      InputError: If there are no tensors under any of the usual names.
    """
    wrapper: list[str] = []
    while not all(isinstance(value, np.ndarray) for value in tree.values()):
        name = next((w for w in _WRAPPERS if isinstance(tree.get(w), Mapping)), None)
        if name is None:
            raise InputError(
                f'no state dict found: expected tensors by name, bare or under one of '
                f'{", ".join(_WRAPPERS)}; found {", ".join(map(str, list(tree)[:8]))}.'
            )
        wrapper.append(name)
        tree = tree[name]
    state = {str(key): value for key, value in tree.items()}
    if not state:
        raise InputError('the checkpoint is empty; expected tensors by name.')
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), ''):
        wrapper.append(prefix)
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, '/'.join(wrapper)


@lru_cache
def _expected(config: Config, graph: Graph) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return key -> (shape in PyTorch's layout, whether it is a count), in the published order."""
    shape = (1, MIN_SIZE, MIN_SIZE, config.n_colors)
    module = config.build(graph)
    tree = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    leaves = cast('dict[keys.Path, jax.ShapeDtypeStruct]', flatten_dict(cast('Params', tree)))
    found = {}
    for path, leaf in leaves.items():
        dims = leaf.shape
        torch_shape = (dims[3], dims[2], *dims[:2]) if len(dims) == 4 else dims
        found[keys.to_key(path) or ''] = (torch_shape, jnp.issubdtype(leaf.dtype, jnp.integer))
    return {key: found[key] for key in sorted(found, key=keys.position)}


def _check(state: StateDict, config: Config, graph: Graph) -> None:
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


def to_variables(tree: Mapping[str, Any]) -> Ported:
    """Convert the tensors of a checkpoint to a configuration and variables.

    Args:
      tree: Mapping from key to array in PyTorch's layout, in any dialect, possibly wrapped.

    Raises:
      InputError: If the network is not supported, or keys are duplicate, missing, unexpected, or of
        the wrong shape or type. The message names all faults of the last four kinds.
    """
    state, wrapper = unwrap(tree)
    found = {key.partition('.')[0] for key in state}
    spoken = (name for name, tops in keys.DIALECTS.items() if found & set(tops.values()))
    dialect = next(spoken, 'github')
    ours = {theirs: name for name, theirs in keys.DIALECTS[dialect].items()}
    spelled: StateDict = {}
    for key, value in state.items():
        if (name := keys.rename(key, ours)) in spelled:
            raise InputError(f'{key} and {name} are two keys for one tensor: remove one of them.')
        spelled[name] = value
    config, graph = find({key: value.shape for key, value in spelled.items()})
    _check(spelled, config, graph)
    flat = {keys.to_path(key): keys.to_flax_layout(value) for key, value in spelled.items()}
    if not isinstance(config, FMENConfig):
        dialect = 'ntire2022'  # source of the E-RFDN and RLFN checkpoints
    return Ported(config, graph, unflatten_dict(flat), dialect, wrapper)


def to_state_dict(
    variables: Params, config: Config, graph: Graph, *, dialect: str = 'github'
) -> StateDict:
    """Convert variables to a bare state dict with the published keys, order, shapes and dtypes.

    Raises:
      InputError: If the variables are not those of this network, or the dialect is unknown or has
        no such graph.
    """
    if dialect not in keys.DIALECTS:
        raise InputError(f'dialect {dialect!r} is unknown; expected {" or ".join(keys.DIALECTS)}.')
    if graph != 'deploy' and dialect != 'github':
        raise InputError(
            f'no train graph is known in the dialect {dialect!r}: fold the network first, or take '
            "the dialect 'github'."
        )
    state = {}
    for path, leaf in flatten_dict(variables).items():
        array = np.asarray(leaf)
        if np.issubdtype(array.dtype, np.integer):
            array = array.astype(np.int64)  # PyTorch's dtype of counts; JAX uses 32 bits
        state[keys.to_key(path) or '/'.join(path)] = keys.to_torch_layout(array).copy(order='C')
    _check(state, config, graph)
    return {
        keys.rename(key, keys.DIALECTS[dialect]): state[key] for key in _expected(config, graph)
    }
