"""`fmen-jax inspect`."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from fmen_jax.errors import InputError, require
from fmen_jax.files import labels_of, sha256, write_text, written_aside
from fmen_jax.images.read import RGB8_EXTENSIONS, read_rgb8
from fmen_jax.network import load
from fmen_jax.research import inspection
from fmen_jax.research.page import render
from fmen_jax.runtime.compilation import keep_compiled
from fmen_jax.weights.names import resolve_weights


def inspect(
    weights: Positional[str],
    pictures: Positional[list[Path]],
    *,
    output: Annotated[Path, arg(aliases=['-o'])],
    against: str | None = None,
    quick: bool = False,
    lr: bool = False,
    window: tuple[int, int] | None = None,
    allow_nonfinite: bool = False,
) -> int:
    """Look inside a network: maps, attribution, receptive field, spectra, ranges and kernels.

    Writes inspect.html, a page that needs no other file, inspect.json with all numbers, and every
    figure as a PNG. docs/diagnostics.md explains how to read them.

    Args:
      weights: Checkpoint, or the name of weights in the package or of published weights.
      pictures: Pictures of 8 bits (HR, unless --lr), or folders of them.
      output: Folder for the results.
      against: A second checkpoint of the same scale to compare with; bicubic if omitted.
      quick: Draw one picture instead of four, and average over fewer samples: minutes on a slow
        machine. Scores and error spectra are the same.
      lr: The pictures are LR, to be upscaled; there is then no HR to compare with.
      window: Row and column, in HR pixels, of the 16x16 pixels that are attributed. If omitted,
        those with the strongest edges.
      allow_nonfinite: Accept weights with NaN or infinity, which are refused otherwise.
    """
    require('matplotlib', 'plots', 'fmen-jax inspect')
    keep_compiled()
    names = [weights, *([against] if against else [])]
    labels = labels_of(names)
    subjects = [
        inspection.Subject(label, load(name, allow_nonfinite=allow_nonfinite))
        for label, name in zip(labels, names, strict=True)
    ]
    paths = _pictures(pictures)
    scale = subjects[0].network.config.scale
    samples = [
        inspection.make_sample(label, read_rgb8(path), scale, is_lr=lr)
        for label, path in zip(labels_of(map(str, paths)), paths, strict=True)
    ]
    settings = inspection.QUICK if quick else inspection.Settings()
    found = inspection.inspect(
        subjects[0],
        samples,
        against=subjects[1] if against else None,
        settings=settings,
        window=window,
        say=lambda text: print(f'{text} ...', file=sys.stderr),
    )
    about = {
        'networks': {
            label: {'weights': name, 'sha256': sha256(resolve_weights(name))}
            for label, name in zip(labels, names, strict=True)
        },
        'pictures': {sample.name: str(path) for sample, path in zip(samples, paths, strict=True)},
        'settings': repr(settings),
    }
    footer = '; '.join(
        f'{label}: {about["networks"][label]["weights"]}, SHA-256 '
        f'{about["networks"][label]["sha256"]}'
        for label in labels
    )
    shown = 'LR' if lr else 'HR'
    text = (
        f'{subjects[0].network.config!r} on {len(samples)} {shown} '
        f'picture{"s" if len(samples) > 1 else ""}. docs/diagnostics.md explains each part.'
    )
    title = f'{labels[0]}, x{scale}' + (f', against {labels[1]}' if against else '')
    for section in found.sections:
        for figure in section.figures():
            with written_aside(output / f'{figure.name}.png') as aside:
                aside.write_bytes(figure.png)
    numbers = json.dumps(_finite({**about, **found.results}), indent=1, allow_nan=False)
    write_text(output / 'inspect.json', numbers + '\n')
    write_text(output / 'inspect.html', render(title, text, found.sections, footer))
    print(output / 'inspect.html')
    return 0


def _pictures(given: Sequence[Path]) -> list[Path]:
    """Return the given files, and the pictures in the given folders."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        # macOS leaves hidden files that end like images
        seen = (p for p in sorted(path.iterdir()) if not p.name.startswith('.'))
        inside = [p for p in seen if p.suffix.lower() in RGB8_EXTENSIONS]
        if not inside:
            raise InputError(f'{path}: holds no pictures; expected {", ".join(RGB8_EXTENSIONS)}.')
        found += inside
    return found


def _finite(value: Any) -> Any:
    """Return the same with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(inspect, prog='fmen-jax inspect', args=args)
