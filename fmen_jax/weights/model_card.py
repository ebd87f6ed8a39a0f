"""Model cards of the Hugging Face Hub: README.md with metadata that the Hub evaluates."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Score:
    """Mean quality of a network on a benchmark."""

    data: str
    """Name of the benchmark, such as Set5."""
    protocol: str
    """Evaluation protocol, such as 'y (BT.601 luma, ...)'."""
    psnr: float
    """Mean PSNR in dB."""
    ssim: float
    """Mean SSIM."""


def model_card(
    name: str,
    *,
    scale: int,
    parameters: int,
    network: str,
    licence: str = '',
    scores: Sequence[Score] = (),
) -> str:
    """Return a model card as Markdown, with a model-index if there are scores.

    Args:
      name: name of the weights.
      scale: upscaling factor.
      parameters: number of parameters.
      network: configuration of the network as text.
      licence: SPDX identifier of the license of the weights, such as Apache-2.0; unknown if empty.
      scores: quality on benchmarks.
    """
    metadata: dict[str, Any] = {
        'library_name': 'fmen_jax',
        'pipeline_tag': 'image-to-image',
        'tags': ['super-resolution', f'x{scale}', 'jax', 'flax'],
    }
    if licence:
        metadata['license'] = licence.lower()
    if scores:
        metadata['model-index'] = [
            {'name': name, 'results': [_result(score, scale) for score in scores]}
        ]
    # JSON is YAML, which the Hub expects between the lines of hyphens.
    header = '\n'.join(f'{key}: {json.dumps(value)}' for key, value in metadata.items())
    table = ''
    if scores:
        rows = [f'| {s.data} | {s.psnr:.2f} | {s.ssim:.4f} | {s.protocol} |' for s in scores]
        table = '\n'.join(
            ['\n| data | PSNR dB | SSIM | protocol |', '|---|---|---|---|', *rows, '']
        )
    return f"""---
{header}
---

# {name}

A super-resolution network that enlarges pictures {scale} times, with {parameters:,} parameters.

    import fmen_jax
    net = fmen_jax.load('hf://OWNER/NAME')  # or the path of this folder
    image = fmen_jax.upscale(net, 'picture.jpg')

Configuration: `{network}`. Images are RGB in 0..255. `model.safetensors` has the keys and layouts
of the published PyTorch code.
{table}"""


def _result(score: Score, scale: int) -> dict[str, Any]:
    named = f'{score.data} x{scale}, {score.protocol}'
    return {
        'task': {'type': 'image-to-image', 'name': f'Super-resolution x{scale}'},
        'dataset': {'type': score.data, 'name': score.data},
        'metrics': [
            {'type': 'psnr', 'value': score.psnr, 'name': f'PSNR dB on {named}'},
            {'type': 'ssim', 'value': score.ssim, 'name': f'SSIM on {named}'},
        ],
    }
