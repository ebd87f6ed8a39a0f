"""Export of the deploy graph as an ONNX model, built node by node.

Input `lr` [N, 3, H, W] and output `sr` [N, 3, s H, s W], float32, RGB in 0..255, not clamped. The
nodes are Conv, LeakyRelu, Sigmoid, Mul, Add and DepthToSpace in mode CRD, which equals PyTorch's
pixel shuffle.
"""

import hashlib
from typing import Any

import numpy as np

from fmen_jax.errors import InputError, require
from fmen_jax.models.fmen import SLOPE, FMENConfig
from fmen_jax.network import Network

_OPSET = 17


def exportable(network: Network) -> bool:
    """Return whether `to_onnx` supports the network, which must be an FMEN."""
    return isinstance(network.config, FMENConfig)


def to_onnx(network: Network, *, shape: tuple[int, int, int] | None = None) -> bytes:
    """Return the folded network as a serialised ONNX model.

    N, H and W are dynamic, or fixed if `shape` (N, H, W) is given. The metadata of the model
    contains the scale, the value range, the configuration and the SHA-256 of the weights.

    Raises:
      InputError: the network is not an FMEN, or onnx is not installed.
    """
    require('onnx', 'onnx', 'the ONNX export')
    import onnx
    from onnx import TensorProto, helper

    config = network.config
    if not isinstance(config, FMENConfig):
        raise InputError(f'the ONNX export knows FMEN, not {type(config).__name__}.')
    state = network.fold().state_dict('github')
    graph = _Graph({key: np.asarray(value, np.float32) for key, value in state.items()})
    output = _network(graph, config)
    n, h, w = shape or ('N', 'H', 'W')
    s, c = config.scale, config.n_colors
    size = (h * s, w * s) if shape else ('sH', 'sW')
    inputs = [helper.make_tensor_value_info('lr', TensorProto.FLOAT, [n, c, h, w])]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [n, c, *size])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, 'FMEN', inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid('', _OPSET)],
        ir_version=8,
        producer_name='fmen_jax',
    )
    digest = hashlib.sha256(b''.join(graph.used[key].tobytes() for key in sorted(graph.used)))
    helper.set_model_props(
        model,
        {
            'scale': str(s),
            'range': '0..255 RGB',
            'network': repr(config),
            'weights_sha256': digest.hexdigest(),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """ONNX nodes in the order of computation; values are referred to by name."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.used: dict[str, np.ndarray] = {}
        self._state = state

    def add(self, kind: str, *inputs: str, name: str = '', **attributes: Any) -> str:
        from onnx import helper

        output = name or f'{kind}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, [*inputs], [output], name=output, **attributes))
        return output

    def conv(self, x: str, key: str) -> str:
        """Add a zero-padded 3x3 convolution with the weights stored under `key`."""
        from onnx import numpy_helper

        names = [f'{key}.weight', f'{key}.bias']
        for name in names:
            self.used[name] = self._state[name]
            self.weights.append(numpy_helper.from_array(self._state[name], name))
        return self.add('Conv', x, *names, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def act(self, x: str) -> str:
        return self.add('LeakyRelu', x, alpha=SLOPE)


def _network(graph: _Graph, config: FMENConfig) -> str:
    x = graph.conv('lr', 'head')
    h = _attention(graph, graph.conv(x, 'warmup.0'), 'warmup.1', config.up_blocks[0])
    for i, erbs in enumerate(config.up_blocks[1:]):
        h = _attention(graph, _erb(graph, h, f'ERBs.{i}'), f'HFABs.{i}', erbs)
    h = graph.add('Add', graph.conv(h, 'lr_conv'), x)
    h = graph.conv(h, 'tail.0')
    return graph.add('DepthToSpace', h, name='sr', blocksize=config.scale, mode='CRD')


def _erb(graph: _Graph, x: str, key: str) -> str:
    y = graph.act(graph.conv(x, f'{key}.conv1.rep_conv'))
    return graph.conv(y, f'{key}.conv2.rep_conv')


def _attention(graph: _Graph, x: str, key: str, erbs: int) -> str:
    y = graph.act(graph.conv(x, f'{key}.squeeze'))
    for j in range(erbs):
        y = _erb(graph, y, f'{key}.convs.{j}')
    y = graph.conv(graph.act(y), f'{key}.excitate')
    return graph.add('Mul', graph.add('Sigmoid', y), x)
