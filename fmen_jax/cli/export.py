"""`fmen-jax export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.export.stablehlo import to_stablehlo
from fmen_jax.files import check_extension, written_aside
from fmen_jax.network import load

CHECKPOINTS = ('.safetensors', '.pth', '.pt')
EXTENSIONS = ('.onnx', '.stablehlo', *CHECKPOINTS)


def export(
    weights: Positional[str],
    output: Annotated[Path, arg(aliases=['-o'])],
    shape: tuple[int, int, int] | None = None,
    key_style: str | None = None,
    fold: bool = True,
    allow_nonfinite: bool = False,
) -> int:
    """Fold a network, and convert it to the format that the file extension of the output names.

    .onnx: input lr [N, 3, H, W] and output sr, float32 in 0..255, with the scale and the hash of
    the weights as metadata. .stablehlo: for jax.export.deserialize on CPU, CUDA and TPU; JAX
    guarantees to read it for six months. .safetensors, .pth, .pt: a checkpoint with the keys of the
    published PyTorch code.

    Args:
      weights: Checkpoint (.pt, .pth or .safetensors), or the name of weights in the package or of
        published weights.
      output: File to write.
      shape: N H W of the input, for an ONNX model of one size; any size if omitted.
      key_style: Naming scheme of the keys of a checkpoint: github or ntire2022 for an FMEN. If
        omitted, that of the input.
      fold: Fold a train graph to the deploy graph. --no-fold keeps the train graph; it is supported
        for checkpoints only.
      allow_nonfinite: Accept weights with NaN or infinity, which are refused otherwise.
    """
    suffix = output.suffix.lower()
    check_extension(output, EXTENSIONS, 'an exported network')
    if shape and suffix != '.onnx':
        raise InputError(f'{output}: a fixed shape is supported for .onnx only; omit --shape.')
    if suffix not in CHECKPOINTS and (key_style or not fold):
        raise InputError(
            f'{output}: --key-style and --no-fold are supported for checkpoints only '
            f'({", ".join(CHECKPOINTS)}); omit them, or choose another output.'
        )
    network = load(weights, allow_nonfinite=allow_nonfinite)
    if fold:
        network = network.fold()
    if suffix == '.onnx':
        data = to_onnx(network, shape=shape)
    elif suffix == '.stablehlo':
        data = to_stablehlo(network)
    else:
        network.save(output, key_style=key_style)
        print(output)
        return 0
    with written_aside(output) as aside:
        aside.write_bytes(data)
    print(output)
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(export, prog='fmen-jax export', args=args)
