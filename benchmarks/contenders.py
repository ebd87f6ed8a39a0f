"""Contenders for upscaling x4 on the CPU, as functions of one image.

Images are [1, H, W, 3], float32, RGB in 0..255.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import torch_fmen
from fmen_jax.inference.engines import Xla, make_engine
from fmen_jax.models import zoo
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.network import Network

Contender = Callable[[np.ndarray], np.ndarray]


def network() -> Network:
    """Return FMEN-S x4, folded, with initial weights, which any machine can generate."""
    config = FMENConfig(scale=4)
    variables = initial_variables(config, 'collapsed', start='bicubic')
    return Network(config, 'collapsed', variables).fold()


def rival(name: str) -> Network:
    """Return another network of the zoo, with random weights."""
    config = zoo.config(name)
    x = np.zeros((1, 24, 24, 3), np.float32)
    shapes: Any = jax.eval_shape(config.build().init, jax.random.key(0), x)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda a: generator.normal(0, 0.02, a.shape).astype(np.float32), dict(shapes)
    )
    return Network(config, 'deploy', variables)


def compiled(net: Network, compile_: Callable = jax.jit) -> Contender:
    """Return our unmodified module compiled by plain `jax.jit`, or by another compiler function."""
    function = compile_(net.module.apply)
    return lambda x: np.asarray(function(net.variables, x))


def torch_module(net: Network) -> torch_fmen.TorchFMEN:
    """Return the deploy graph in plain PyTorch, with the same weights."""
    module = torch_fmen.TorchFMEN(net.config, deploy=True).eval()  # pyright: ignore[reportArgumentType]
    module.load_state_dict({k: torch.tensor(v) for k, v in net.state_dict('github').items()})
    return module


def of_torch(
    net: Network, *, channels_last: bool = False, compiled: bool = False, bfloat16: bool = False
) -> Contender:
    """Return PyTorch, eager or compiled, in either layout, in float32 or autocast to bfloat16."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = torch_module(net).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    run: Any = torch_fmen.compiled(module) if compiled else module

    def call(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
            given = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            return run(given).float().permute(0, 2, 3, 1).contiguous().numpy()

    return call


def torch_export(net: Network) -> bytes:
    """Return the ONNX file that a PyTorch user would export."""
    file, x = io.BytesIO(), torch.zeros(1, 3, 64, 64)
    with warnings.catch_warnings():  # the exporter without onnxscript is deprecated
        warnings.simplefilter('ignore')
        axes = {0: 'n', 2: 'h', 3: 'w'}
        torch.onnx.export(
            torch_module(net),
            (x,),
            file,  # pyright: ignore[reportArgumentType]
            dynamo=False,
            input_names=['x'],
            output_names=['y'],
            dynamic_axes={'x': axes, 'y': axes},
        )
    return file.getvalue()


def of_openvino(model: bytes, precision: str = 'f32') -> Contender:
    """Return OpenVINO running an ONNX file, as an OpenVINO user would run it."""
    import openvino

    hints = {'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY'}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), 'CPU', hints)

    def call(x: np.ndarray) -> np.ndarray:
        results = compiled(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return np.ascontiguousarray(results[0].transpose(0, 2, 3, 1))

    return call


def of_onnxruntime(model: bytes) -> Contender:
    """Return onnxruntime running an ONNX file, as an onnxruntime user would run it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])

    def call(x: np.ndarray) -> np.ndarray:
        (y,) = session.run(None, {'x': np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
        return np.ascontiguousarray(np.asarray(y).transpose(0, 2, 3, 1))

    return call


def ours(net: Network, **settings: Any) -> Contender:
    """Return one of our engines, made with the given settings of `make_engine`."""
    engine = make_engine(net, **settings)
    return lambda x: np.ascontiguousarray(engine(x))


def xla(net: Network) -> Contender:
    """Return our default engine, XLA in float32."""
    return Xla(net, 'float32')
