"""Engines that run a folded network: XLA, onnxruntime and OpenVINO behind one interface."""

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fmen_jax.errors import FMENError, InputError, require
from fmen_jax.export.onnx import to_onnx
from fmen_jax.inference import calibration
from fmen_jax.network import Network
from fmen_jax.runtime import devices
from fmen_jax.runtime.compilation import jit, supported_dtype
from fmen_jax.runtime.memory import ran_out

Name = Literal['auto', 'xla', 'onnxruntime', 'openvino']
"""Name of an engine. 'auto' is, on a CPU, the fastest installed engine as measured by
`inference.calibration`, and 'xla' elsewhere."""

Dtype = Literal['float32', 'bfloat16']


_PROGRAMS = 64
"""Maximum number of input shapes whose compiled programs are cached, at about 4 MB each. A folder
may have thousands of shapes; a picture in tiles has 9, and 18 with its rotations."""


class OutOfMemoryError(FMENError):
    """The input does not fit into memory; a smaller one may."""


class Engine(Protocol):
    """Maps [N, H, W, 3] float32 in 0..255 to [N, s H, s W, 3] float32, not clamped."""

    name: str
    dtype: str
    """Dtype of the computation; float32 if bfloat16 was requested but is not supported."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


def make_engine(network: Network, name: Name = 'xla', dtype: Dtype = 'float32') -> Engine:
    """Build the engine that runs a network; the network is folded first.

    Raises:
      InputError: the engine's package is not installed, or the engine does not support the dtype.
    """
    network = network.fold()
    supported: str = dtype
    if name != 'onnxruntime':  # which refuses bfloat16 on every machine
        backend = 'cpu' if name == 'openvino' else jax.default_backend()
        supported = supported_dtype(dtype, backend)
    if name != 'auto':
        return _ENGINES[name](network, supported)
    makers = {
        each: functools.partial(_ENGINES[each], network, supported)
        for each in installed(network, supported)
    }
    return calibration.fastest(makers, of=f'{network.config} {supported}')


def installed(network: Network, dtype: str) -> list[str]:
    """Return the engines that can run a network on this machine, in a dtype that it supports."""
    onnx = importlib.util.find_spec('onnx')
    if jax.default_backend() != 'cpu' or not (onnx and network.config.supports_onnx):
        return ['xla']
    others = ('openvino', 'onnxruntime') if dtype == 'float32' else ('openvino',)
    return ['xla', *(name for name in others if importlib.util.find_spec(name))]


class Xla:
    """JAX on any backend and on all devices of this process; compiled for each input shape."""

    name = 'xla'

    def __init__(self, network: Network, dtype: str, *, for_tpu: bool | None = None) -> None:
        """Put the weights on the devices.

        `for_tpu` selects the layout for TPUs: two adjacent pixels share the lanes, and the output
        consists of whole rows, so that its three colors are not padded to 128 lanes. None means
        that the backend decides.
        """
        self._network = network
        variables = network.variables
        for_tpu = jax.default_backend() == 'tpu' if for_tpu is None else for_tpu
        self.dtype = dtype
        if dtype == 'bfloat16':
            variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), variables)
        self._devices = jax.local_devices()
        self._variables = devices.replicate(devices.make_mesh(devices=self._devices), variables)

        def function(variables: Any, x: jax.Array) -> jax.Array:
            module = network.config.build_for_tpu(x.shape[2]) if for_tpu else network.module
            y: Any = module.apply(variables, x.astype(dtype))
            return y.astype(jnp.float32)

        self._function = jit(function, onednn='always')
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self._shapes.add(x.shape)
        if len(self._shapes) > _PROGRAMS:
            self._function.clear_cache()
            self._shapes = {x.shape}
        with _memory_for(x), jax.default_matmul_precision(self._network.precision):
            # A single device takes the NumPy array directly, which saves 3 to 10 % of the time of a
            # small picture.
            images: Any = x
            if len(self._devices) > 1:
                images = jax.device_put(x, devices.spread(self._devices, x.shape))
            y = np.asarray(self._function(self._variables, images))
            return y.reshape(*y.shape[:2], -1, x.shape[3])


class OnnxRuntime:
    """onnxruntime on a CPU; runs the model exported by `to_onnx`."""

    name = 'onnxruntime'

    def __init__(self, network: Network, dtype: str) -> None:
        require('onnxruntime', 'onnxruntime', '--engine onnxruntime')
        self.dtype = dtype
        if dtype != 'float32':
            raise InputError(
                'the engine onnxruntime computes in float32 only; for bfloat16 choose xla or '
                'openvino.'
            )
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            to_onnx(network), providers=['CPUExecutionProvider']
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        given = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        with _memory_for(x):
            (y,) = self._session.run(None, {'lr': given})
        return np.asarray(y).transpose(0, 2, 3, 1)


class OpenVino:
    """OpenVINO on a CPU; runs the model exported by `to_onnx`, in float32 by default."""

    name = 'openvino'

    def __init__(self, network: Network, dtype: str) -> None:
        require('openvino', 'openvino', '--engine openvino')
        self.dtype = dtype
        # OpenVINO's telemetry sends data out, and it forks, which JAX's threads do not survive.
        sys.modules.setdefault('openvino_telemetry', None)  # pyright: ignore[reportArgumentType]
        import openvino

        # OpenVINO defaults to bfloat16 where the CPU supports it, so the dtype is always set.
        hint = {'float32': 'f32', 'bfloat16': 'bf16'}[dtype]
        core = openvino.Core()
        model = core.read_model(to_onnx(network))
        self._compiled = core.compile_model(
            model, 'CPU', {'INFERENCE_PRECISION_HINT': hint, 'PERFORMANCE_HINT': 'LATENCY'}
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with _memory_for(x):
            results = self._compiled(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return np.asarray(results[0]).transpose(0, 2, 3, 1)


_ENGINES: dict[str, Callable[[Network, str], Engine]] = {
    'xla': Xla,
    'onnxruntime': OnnxRuntime,
    'openvino': OpenVino,
}


@contextlib.contextmanager
def _memory_for(x: np.ndarray) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        n, height, width, _ = x.shape
        raise OutOfMemoryError(
            f'{n} x {width}x{height} pixels do not fit into memory: choose a smaller tile.'
        ) from error
