"""Resolution of weight names to files, and the cards of the weights shipped in the package."""

import json
from pathlib import Path
from typing import Any

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.weights.download import PUBLISHED, download

SHIPPED = Path(__file__).parent
"""Folder of the shipped weights: NAME.safetensors, each with its card NAME.json."""


def shipped() -> list[str]:
    """Return the names of the weights shipped in the package."""
    return sorted(path.stem for path in SHIPPED.glob('*.safetensors'))


def card(name: str) -> dict[str, Any]:
    """Return the card of shipped weights: data, settings, commit, scores, hash and licence."""
    return json.loads((SHIPPED / f'{name}.json').read_text(encoding='utf-8'))


def resolve_weights(weights: str | Path) -> Path:
    """Return the file of weights given by a path or by the name of shipped or published weights.

    Published weights are downloaded on first use.

    Raises:
      InputError: the name is unknown.
      DownloadError: published weights could not be downloaded.
    """
    path = Path(weights)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    if path.name in shipped():
        return SHIPPED / f'{path.name}.safetensors'
    if path.name not in PUBLISHED:
        raise InputError(
            f'{weights} is neither a file nor a name of weights; those are '
            f'{", ".join([*shipped(), *PUBLISHED])}, and a file ends in '
            f'{", ".join(porting.ENDINGS)}.'
        )
    return download(path.name)
