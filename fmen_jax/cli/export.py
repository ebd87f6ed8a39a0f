"""`fmen-jax export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.export.stablehlo import to_stablehlo
from fmen_jax.files import check_ending, written_aside
from fmen_jax.network import load

ENDINGS = ('.onnx', '.stablehlo', '.safetensors', '.pth', '.pt')


def export(
    weights: Positional[str],
    output: Annotated[Path, arg(aliases=['-o'])],
    shape: tuple[int, int, int] | None = None,
    dialect: Literal['github', 'ntire2022'] = 'github',
    allow_nonfinite: bool = False,
) -> int:
    """Convert a network to another format, chosen by the ending of the output. It is folded first.

    .onnx: input lr [N, 3, H, W] and output sr, float32 in 0..255, with the scale and the hash of
    the weights as metadata. .stablehlo: for jax.export.deserialize on CPU, CUDA and TPU; JAX
    guarantees to read it for six months. .safetensors, .pth, .pt: a checkpoint with the keys of the
    published PyTorch code.

    Args:
      weights: Checkpoint (.pt, .pth or .safetensors), or the name of weights in the package or of
        published weights.
      output: File to write.
      shape: N H W of the input, for an ONNX model of one size; any size if omitted.
      dialect: Key names of a checkpoint.
      allow_nonfinite: Accept weights with NaN or infinity, which are refused otherwise.
    """
    ending = output.suffix.lower()
    check_ending(output, ENDINGS, 'an exported network')
    if shape and ending != '.onnx':
        raise InputError(f'{output}: a fixed shape is for .onnx; the others take any size.')
    network = load(weights, allow_nonfinite=allow_nonfinite).fold()
    if ending == '.onnx':
        data = to_onnx(network, shape=shape)
    elif ending == '.stablehlo':
        data = to_stablehlo(network)
    else:
        network.save(output, dialect=dialect)
        print(output)
        return 0
    with written_aside(output) as aside:
        aside.write_bytes(data)
    print(output)
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(export, prog='fmen-jax export', args=args)
