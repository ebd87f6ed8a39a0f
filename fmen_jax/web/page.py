"""The page as a folder of static files that any web server can serve."""

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.network import Network
from fmen_jax.web.runtime import extract_runtime


def write_page(folder: Path, networks: Mapping[str, Network], runtime: Path) -> None:
    """Write the page, the networks as ONNX models and ONNX Runtime Web to a folder.

    The folder is self-contained: the page loads nothing from other places. Existing files of the
    same names are replaced.

    Args:
      folder: where to write; created if it does not exist.
      networks: networks by name, in the order in which the page offers them.
      runtime: npm package of ONNX Runtime Web, see `find_runtime`.

    Raises:
      InputError: If a network depends on the whole image, so that no tile is exact, or does not
        support ONNX; or two networks have the same scale.
    """
    models = []
    for name, network in networks.items():
        halo = network.config.receptive_radius
        if halo is None:
            raise InputError(
                f'{name} depends on the whole image, and the page upscales in tiles: choose a '
                'network with a receptive radius (`fmen-jax info` prints it), such as an FMEN.'
            )
        models.append(
            {'name': name, 'scale': network.config.scale, 'halo': halo, 'file': f'{name}.onnx'}
        )
    scales = [model['scale'] for model in models]
    if not models or len(set(scales)) < len(scales):
        raise InputError(
            f'the page offers one network for each scale; found the scales {scales or "none"}.'
        )
    onnx = {f'{name}.onnx': to_onnx(network) for name, network in networks.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files('fmen_jax.web') / 'static') as static:
        shutil.copytree(static, folder, dirs_exist_ok=True)
    extract_runtime(runtime, folder / 'ort')
    for name, data in onnx.items():
        (folder / name).write_bytes(data)
    (folder / 'models.json').write_text(json.dumps(models, indent=1) + '\n', encoding='utf-8')
