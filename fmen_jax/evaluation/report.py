"""Scores as Markdown, CSV and JSON, each with the protocol by which they were measured."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from fmen_jax.evaluation.scoring import ImageScore, Result

_COLUMNS = [field.name for field in dataclasses.fields(ImageScore)]


def as_markdown(results: Sequence[Result]) -> str:
    """Return a table of the means of all results, followed by a table of images for each result."""
    lines = [
        '| weights | data | scale | PSNR dB | SSIM | bicubic PSNR dB | SSIM | protocol |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for result in results:
        cells = [result.weights, result.data, f'x{result.scale}', *_cells(result.mean)]
        lines.append(f'| {" | ".join(cells)} | {result.protocol} |')
    for result in results:
        lines += [
            '',
            f'{result.weights} on {result.data} x{result.scale}, protocol {result.protocol}:',
            '',
            '| picture | PSNR dB | SSIM | bicubic PSNR dB | SSIM |',
            '|---|---|---|---|---|',
        ]
        rows = [*result.images, result.mean]
        lines += [f'| {" | ".join([score.name, *_cells(score)])} |' for score in rows]
    return '\n'.join(lines) + '\n'


def _cells(score: ImageScore) -> list[str]:
    values = dataclasses.astuple(score)[1:]
    return [f'{value:.{digits}f}' for value, digits in zip(values, (3, 4, 3, 4), strict=True)]


def as_csv(results: Sequence[Result]) -> str:
    """Return CSV with one row for each image and one for the mean of each result."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['weights', 'data', 'scale', 'protocol', *_COLUMNS])
    for result in results:
        for score in (*result.images, result.mean):
            head = (result.weights, result.data, result.scale, result.protocol.name)
            writer.writerow([*head, *dataclasses.astuple(score)])
    return text.getvalue()


def as_json(results: Sequence[Result]) -> str:
    """Return a JSON object for one result, or a list of objects for several.

    Each object has `weights`, `data`, `scale`, `protocol` (its name), `protocol_details`, `images`
    (a list of `name`, `psnr`, `ssim`, `bicubic_psnr`, `bicubic_ssim`) and `mean` (the same without
    a name). The infinite PSNR of equal images is written as null.
    """
    found = [_as_object(result) for result in results]
    return json.dumps(found[0] if len(found) == 1 else found, indent=1, allow_nan=False) + '\n'


def _as_object(result: Result) -> dict[str, Any]:
    def numbers(score: ImageScore) -> dict[str, Any]:
        fields = dataclasses.asdict(score).items()
        return {name: None if value == math.inf else value for name, value in fields}

    mean = numbers(result.mean)
    del mean['name']
    return {
        'weights': result.weights,
        'data': result.data,
        'scale': result.scale,
        'protocol': result.protocol.name,
        'protocol_details': dataclasses.asdict(result.protocol),
        'images': [numbers(score) for score in result.images],
        'mean': mean,
    }
