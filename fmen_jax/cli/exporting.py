"""Verb for other programs: export."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fmen_jax.errors import InputError
from fmen_jax.files import check_ending, written_aside

ENDINGS = ('.onnx', '.stablehlo', '.safetensors', '.pth', '.pt')


def export(
    weights: Positional[str],
    output: Annotated[Path, arg(aliases=['-o'])],
    shape: tuple[int, int, int] | None = None,
    dialect: Literal['github', 'ntire2022'] = 'github',
) -> int:
    """Write a network, folded, for other programs; the ending of the output says which.

    .onnx: input lr [N, 3, H, W], output sr, float32 in 0..255, metadata with scale and hash.
    .stablehlo: for jax.export.deserialize on CPU, CUDA and TPU; JAX reads it for six months only.
    .safetensors, .pth, .pt: the published PyTorch code's keys.

    Args:
      weights: A checkpoint (.pt, .pth, .safetensors), or the name of published weights.
      output: The file.
      shape: N H W, for an ONNX model of one size; any size if not given.
      dialect: Key names of checkpoints.
    """
    from fmen_jax import pretrained

    ending = output.suffix.lower()
    check_ending(output, ENDINGS, 'an exported network')
    if shape and ending != '.onnx':
        raise InputError(f'{output}: a fixed shape is for .onnx; the others take any size.')
    network = pretrained.load(weights).fold()
    if ending == '.onnx':
        from fmen_jax.export.onnx import to_onnx

        data = to_onnx(network, shape=shape)
    elif ending == '.stablehlo':
        from fmen_jax.export.stablehlo import to_stablehlo

        data = to_stablehlo(network)
    else:
        network.save(output, dialect=dialect)
        print(output)
        return 0
    with written_aside(output) as aside:
        aside.write_bytes(data)
    print(output)
    return 0
