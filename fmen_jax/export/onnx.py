"""Export of the deploy graph as an ONNX model, built node by node.

Input `lr` [N, 3, H, W] and output `sr` [N, 3, s H, s W], float32, RGB in 0..255, not clamped. The
nodes of an FMEN are Conv, LeakyRelu, Sigmoid, Mul, Add and DepthToSpace in mode CRD, which equals
PyTorch's pixel shuffle.
"""

import hashlib
from typing import Any

import numpy as np

from fmen_jax.errors import InputError, check_range, require
from fmen_jax.network import Network

_OPSET = 17


def to_onnx(network: Network, *, shape: tuple[int, int, int] | None = None) -> bytes:
    """Return the folded network as a serialized ONNX model.

    N, H and W are dynamic, or fixed if `shape` (N, H, W) is given. The metadata of the model
    contains the scale, the value range, the configuration and the SHA-256 of the weights.

    Raises:
      InputError: If the network does not support ONNX, `shape` is too small for it, or onnx is not
        installed.
    """
    require('onnx', 'onnx', 'the ONNX export')
    import onnx
    from onnx import TensorProto, helper

    config = network.config
    if not config.supports_onnx:
        raise InputError(f'the ONNX export does not support {type(config).__name__}.')
    if shape:
        check_range('N of the shape', shape[0], least=1)
        check_range('the smaller of H and W of the shape', min(shape[1:]), least=config.min_size)
    state = network.fold().state_dict(config.default_key_style)
    graph = _Graph({key: np.asarray(value, np.float32) for key, value in state.items()})
    config.add_onnx_nodes(graph)
    n, h, w = shape or ('N', 'H', 'W')
    s, c = config.scale, config.n_colors
    size = (h * s, w * s) if shape else ('sH', 'sW')
    inputs = [helper.make_tensor_value_info('lr', TensorProto.FLOAT, [n, c, h, w])]
    outputs = [helper.make_tensor_value_info('sr', TensorProto.FLOAT, [n, c, *size])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, type(config).__name__, inputs, outputs, graph.weights),
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
        """Add a zero-padded convolution with the weights stored under `key`."""
        from onnx import numpy_helper

        names = [f'{key}.weight', f'{key}.bias']
        for name in names:
            self.used[name] = self._state[name]
            self.weights.append(numpy_helper.from_array(self._state[name], name))
        size = self._state[names[0]].shape[2]
        return self.add('Conv', x, *names, kernel_shape=[size] * 2, pads=[size // 2] * 4)
