"""The page as a folder of static files that any web server can serve."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.files import written_aside
from fmen_jax.network import Network
from fmen_jax.web.runtime import find_runtime, read_runtime


def write_page(
    folder: Path,
    networks: Mapping[str, Network],
    runtime: Path | None = None,
    *,
    progress: bool = False,
) -> None:
    """Write the page, the networks as ONNX models and ONNX Runtime Web to a folder.

    The folder is self-contained: the page loads nothing from other places. Existing files of the
    same names are replaced atomically, the list of networks last.

    Args:
      folder: where to write; created if it does not exist.
      networks: networks by name, in the order in which the page offers them.
      runtime: npm package of ONNX Runtime Web; found in the cache or downloaded if None, see
        `find_runtime`.
      progress: whether to show the progress of its download on standard error.

    Raises:
      InputError: If a network is not for RGB, depends on the whole image, so that no tile is exact,
        or does not support ONNX; if two networks have the same scale; if onnx is not installed; or
        if `runtime` is not the package.
      DownloadError: If the package could not be downloaded.
      OSError: If a file could not be written.
    """
    models = []
    for name, network in networks.items():
        halo = network.config.receptive_radius
        if halo is None:
            raise InputError(
                f'{name} depends on the whole image, and the page upscales in tiles: choose a '
                'network with a receptive radius (`fmen-jax info` prints it), such as an FMEN.'
            )
        if (colors := network.config.n_colors) != 3:
            raise InputError(
                f'{name} has n_colors {colors}; expected 3, because the page upscales pictures in '
                'RGB: choose another network.'
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
    package = find_runtime(runtime, progress=progress)
    for file in (resources.files('fmen_jax.web') / 'static').iterdir():
        _write(folder / file.name, file.read_bytes())
    for name, data in read_runtime(package):
        _write(folder / 'ort' / name, data)
    for name, data in onnx.items():
        _write(folder / name, data)
    _write(folder / 'models.json', (json.dumps(models, indent=1) + '\n').encode())


def _write(path: Path, data: bytes) -> None:
    try:
        with written_aside(path) as aside:
            aside.write_bytes(data)
    except OSError as error:  # that of a full disk has no file name
        raise OSError(error.errno, error.strerror, str(path)) from error
