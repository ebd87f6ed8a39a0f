"""Resolution of weight names to files, and the cards of the weights shipped in the package."""

import json
from pathlib import Path
from typing import Any

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.weights import hub
from fmen_jax.weights.download import PUBLISHED, download

SHIPPED = Path(__file__).parent
"""Folder of the shipped weights: NAME.safetensors, each with its card NAME.json."""


def shipped() -> list[str]:
    """Return the names of the weights shipped in the package."""
    return sorted(path.stem for path in SHIPPED.glob('*.safetensors'))


def card(name: str) -> dict[str, Any]:
    """Return the card of shipped weights: data, settings, commit, scores, hash and licence.

    Raises:
      InputError: If no shipped weights have this name.
    """
    if name not in shipped():
        raise InputError(
            f'no weights named {name!r} are in the package; there are {", ".join(shipped())}.'
        )
    return json.loads((SHIPPED / f'{name}.json').read_text(encoding='utf-8'))


def resolve_weights(weights: str | Path) -> Path:
    """Return the file of weights given by a path, a name or an address.

    A path is that of a file or of a folder in the Hub's layout, a name that of shipped or published
    weights, and an address that of weights on the Hugging Face Hub, hf://OWNER/NAME. Published
    weights and those on the Hub are downloaded on first use.

    Raises:
      InputError: the name is unknown, or the folder has no weights.
      DownloadError: weights could not be downloaded.
    """
    if isinstance(weights, str) and weights.startswith(hub.PREFIX):
        return hub.weights_of_folder(hub.download_from_hub(weights))
    path = Path(weights)
    if path.is_dir():
        return hub.weights_of_folder(path)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    if path.name in shipped():
        return SHIPPED / f'{path.name}.safetensors'
    if path.name not in PUBLISHED:
        raise InputError(
            f'{weights} is neither a file nor a name of weights. Expected one of '
            f'{", ".join([*shipped(), *PUBLISHED])}, or a file with the extension '
            f'{" or ".join(porting.EXTENSIONS)}.'
        )
    return download(path.name)
