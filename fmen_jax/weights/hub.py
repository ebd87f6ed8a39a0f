"""Weights on the Hugging Face Hub, and folders in its layout: config.json and model.safetensors."""

import json
from pathlib import Path
from typing import Any

from fmen_jax import __version__
from fmen_jax.errors import DownloadError, InputError, require

PREFIX = 'hf://'
WEIGHTS = 'model.safetensors'
CONFIG = 'config.json'


def download_from_hub(address: str) -> Path:
    """Return the local folder of weights on the Hub, downloaded on first use.

    Files are stored in the cache of huggingface_hub, and found there without a connection.

    Args:
      address: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION with a branch, tag or commit.

    Raises:
      InputError: If the address is malformed, or huggingface_hub is not installed.
      DownloadError: If the files do not exist or could not be downloaded.
    """
    repository, _, revision = address.removeprefix(PREFIX).partition('@')
    if len(repository.split('/')) != 2 or not all(repository.split('/')):
        raise InputError(f'{address} is not an address; expected hf://OWNER/NAME[@REVISION].')
    require('huggingface_hub', 'hub', 'loading from the Hugging Face Hub')
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        paths = [
            huggingface_hub.hf_hub_download(
                repository,
                name,
                revision=revision or None,
                library_name='fmen_jax',
                library_version=__version__,
            )
            for name in (CONFIG, WEIGHTS)
        ]
    except HFValidationError as error:
        raise InputError(f'{address} is not an address: {error}') from error
    except Exception as error:  # of the Hub, of the HTTP client, or of the disk
        reason = str(error).strip().splitlines()
        raise DownloadError(
            f'{address} could not be downloaded: {reason[0] if reason else type(error).__name__} '
            f'Expected a model with {CONFIG} and {WEIGHTS}; `hf auth login` gives access to '
            'private ones.'
        ) from error
    return Path(paths[-1]).parent


def weights_of_folder(folder: Path) -> Path:
    """Return the weights of a folder in the Hub's layout.

    Raises:
      InputError: If the folder lacks one of the two files.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f'{folder} is a folder without {" and ".join(missing)}; expected a checkpoint, or a '
            f'folder with {CONFIG} and {WEIGHTS}, as `network.save_pretrained` writes it.'
        )
    return folder / WEIGHTS


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder.

    Raises:
      InputError: If it is not a JSON object.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path}: not a JSON file: {error}') from error
    if not isinstance(found, dict):
        raise InputError(f'{path}: holds a {type(found).__name__}; expected an object.')
    return found
