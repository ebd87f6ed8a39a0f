"""ONNX Runtime Web, which the page runs networks with: the files of its npm package.

They are too large for the repository (41 MB). The package is downloaded once to the cache folder
and verified by its SHA-256.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from fmen_jax.errors import InputError
from fmen_jax.files import cache_folder, sha256
from fmen_jax.weights.download import Published, fetch

PACKAGE = Published(
    'https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz',
    'd2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71',
    'MIT',
)
FILES = (
    'ort.wasm.min.mjs',
    'ort-wasm-simd-threaded.mjs',
    'ort-wasm-simd-threaded.wasm',
    'ort.webgpu.min.mjs',
    'ort-wasm-simd-threaded.asyncify.mjs',
    'ort-wasm-simd-threaded.asyncify.wasm',
)
"""Files of the package's folder `dist` that the page uses: for the CPU, and for WebGPU."""


def find_runtime(archive: Path | None = None, *, progress: bool = False) -> Path:
    """Return the package as a file: `archive`, or the one in the cache, downloaded on first use.

    Args:
      archive: a file that contains the package.
      progress: whether to show a progress bar on standard error.

    Raises:
      InputError: If `archive` is not the package of this version.
      DownloadError: If the package could not be downloaded. The message says how to do it by hand.
    """
    if archive is None:
        path = cache_folder() / PACKAGE.filename
        return fetch(PACKAGE, path, option='--runtime', progress=progress)
    if not archive.is_file():
        raise InputError(f'{archive}: no such file; expected {PACKAGE.filename} of {PACKAGE.url}.')
    if (found := sha256(archive)) != PACKAGE.sha256:
        raise InputError(
            f'{archive} is not {PACKAGE.filename}: SHA-256 is {found}, expected {PACKAGE.sha256}. '
            f'Download it from {PACKAGE.url}.'
        )
    return archive


def read_runtime(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the package's files that the page uses."""
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = tar.extractfile(f'package/dist/{name}')
            assert member is not None, f'{name} is a folder in {archive}'
            yield name, member.read()
