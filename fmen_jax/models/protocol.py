"""What a network tells the rest of the package: its configuration class has one Protocol.

Everything that is particular to a network stands in its own file, in a frozen dataclass that
subclasses `NetworkConfig`. Porting, folding, tiling, export and the tables of costs use these
members only.
"""

import dataclasses
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any, ClassVar, Protocol, Self

import flax.linen as nn
import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.models.layers import Graph, Params

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors of a state dict by key, in PyTorch's layout."""

MAX_SCALE = 16
"""Largest upscaling factor."""
MAX_BLOCKS = 1000
"""Largest number of blocks of one kind. Together with `_MAX_VALUE`, this limits the time and memory
that a configuration from somebody else's file can take before its tensors are looked at."""
_MAX_VALUE = 4096


class OnnxGraph(Protocol):
    """ONNX graph under construction; values are referred to by name."""

    def add(self, kind: str, *inputs: str, name: str = '', **attributes: Any) -> str:
        """Add a node of an ONNX operator, and return the name of its output."""
        ...

    def conv(self, x: str, key: str) -> str:
        """Add a zero-padded convolution with the weights stored under `key`."""
        ...


class NetworkConfig(Protocol):
    """Configuration of a network: a frozen dataclass with its hyper-parameters."""

    scale: int
    """Upscaling factor."""
    n_colors: int
    """Number of channels of the image."""

    key_styles: ClassVar[Mapping[str, Mapping[str, str]]] = {'github': {}}
    """Naming schemes of the keys in published checkpoints, the default one first. For each scheme,
    the first components of keys that differ from the names of our submodules."""
    key_order: ClassVar[tuple[str, ...]] = ()
    """Names of submodules in the order in which the published code defines them, which is the order
    of its state dicts. If empty, keys are sorted by name."""
    example_keys: ClassVar[str] = ''
    """A few keys of a checkpoint, shown when a checkpoint is not recognized."""
    train_only: ClassVar[frozenset[str]] = frozenset()
    """Names of the hyper-parameters that the deploy graph does not depend on."""
    min_size: ClassVar[int] = 1
    """Minimum height and width of an image in pixels."""
    supports_onnx: ClassVar[bool] = False
    """Whether `add_onnx_nodes` is implemented."""
    in_metadata: ClassVar[bool] = False
    """Whether a checkpoint stores the configuration in its metadata, because keys and shapes do not
    determine it. Such a checkpoint is a .safetensors file."""
    registers_activations: ClassVar[bool] = True
    """Whether the published code has its activations as modules, which the FLOPs of NTIRE 2022
    count."""

    def check_fields(self, least: Mapping[str, int]) -> None:
        """Check the types and the ranges of the hyper-parameters.

        Args:
          least: lowest value of a hyper-parameter by name, or of each element of a tuple; 1 for
            those that are absent.

        Raises:
          InputError: If a hyper-parameter does not have the type of its default, or a number is out
            of range.
        """
        config: Any = self
        limits = {'scale': MAX_SCALE, 'blocks': MAX_BLOCKS}
        for field in dataclasses.fields(config):
            name, value = field.name, getattr(config, field.name)
            kind = str if isinstance(field.default, str) else int
            values = value if isinstance(field.default, tuple) else (value,)
            each = ' each' if isinstance(field.default, tuple) else ''
            if not all(type(v) is kind for v in values):
                raise InputError(f'{name} is {short(value)}; expected {kind.__name__}{each}.')
            if kind is str:
                continue
            low, high = least.get(name, 1), limits.get(name, _MAX_VALUE)
            if not all(low <= v <= high for v in values):
                raise InputError(f'{name} is {short(value)}; expected {low} to {high}{each}.')

    @property
    def default_key_style(self) -> str:
        """The first of the key styles."""
        return next(iter(self.key_styles))

    @property
    def receptive_radius(self) -> int | None:
        """Receptive radius of an output pixel in LR pixels; None if it sees the whole image."""
        return None

    def build(self, graph: Graph = 'deploy') -> nn.Module:
        """Return the network as a Flax module: `apply(variables, x) -> y`."""
        ...

    @property
    def freezes_statistics(self) -> bool:
        """Whether training the 'collapsed' graph leaves running statistics as they are."""
        return False

    def build_for_training(self, graph: Graph, packed: int) -> nn.Module:
        """Return the network without its pixel shuffle, with output [N, H, W, C s^2].

        `packed` is the number of pixels to pack into the channels, see `tpu_layout.pack`; a network
        may ignore it.

        Raises:
          InputError: If training the network is not supported.
        """
        del graph, packed
        raise InputError(f'training {type(self).__name__} is not supported; choose an FMEN.')

    def initialize(self, params: Params, generator: np.random.Generator) -> Params:
        """Return the parameters before training, given some in PyTorch's default distribution."""
        del generator
        return params

    def build_for_tpu(self, width: int) -> nn.Module:
        """Return the deploy graph in the layout that is fastest on TPUs for images of this width.

        Its output may be reshaped to [N, s H, s W C], which a TPU does not pad to 128 channels.
        """
        del width
        return self.build()

    @classmethod
    def recognize(cls, shapes: Shapes) -> tuple[Self, Graph] | None:
        """Return the configuration and graph of a state dict; None if it is of another network.

        Keys are in the default style. A missing or misshapen tensor should not prevent recognition:
        it is named afterwards, when the state dict is compared with the configuration.
        """
        ...

    def fold(self, variables: Params) -> Params:
        """Return the deploy variables, given the variables of the train graph."""
        return variables

    def add_onnx_nodes(self, graph: OnnxGraph) -> None:
        """Add the nodes of the deploy graph, from the input `lr` to the output `sr`."""
        del graph
        raise InputError(f'{type(self).__name__} has no ONNX nodes; export StableHLO instead.')
