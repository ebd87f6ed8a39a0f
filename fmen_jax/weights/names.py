"""Which file a name of weights stands for, and the cards of the weights in the package."""

import json
from pathlib import Path
from typing import Any

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.weights.download import PUBLISHED, download

SHIPPED = Path(__file__).parent
"""Folder of the weights in the package: NAME.safetensors, each with its card, NAME.json."""


def shipped() -> list[str]:
    """The names of the weights in the package."""
    return sorted(path.stem for path in SHIPPED.glob('*.safetensors'))


def card(name: str) -> dict[str, Any]:
    """The card of weights in the package: data, settings, commit, scores, hash and licence."""
    return json.loads((SHIPPED / f'{name}.json').read_text(encoding='utf-8'))


def resolve_weights(weights: str | Path) -> Path:
    """The file of some weights: a path, or the name of weights in the package or published ones.

    Published weights are downloaded when they are first used.

    Raises:
      InputError: no such name.
      DownloadError: published weights could not be fetched.
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
