"""`fmen-jax web`."""

import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from fmen_jax.errors import InputError, check_range
from fmen_jax.network import load
from fmen_jax.web.page import write_page
from fmen_jax.web.runtime import find_runtime
from fmen_jax.web.server import make_server
from fmen_jax.weights.names import shipped


def web(
    output: Annotated[Path | None, arg(aliases=['-o'])] = None,
    serve: bool = False,
    weights: Annotated[list[str], arg(aliases=['-w'])] = [],  # noqa: B006
    port: int = 0,
    browser: bool = True,
    runtime: Path | None = None,
) -> int:
    """Write a page that upscales pictures in the browser, or open it on this machine.

    The page is a folder of static files for any web server, and loads nothing from elsewhere. It
    runs networks with ONNX Runtime Web, on the GPU where the browser has WebGPU. ONNX Runtime Web
    is downloaded once (33 MB). Pictures do not leave the browser.

    A server should send the headers 'Cross-Origin-Opener-Policy: same-origin' and
    'Cross-Origin-Embedder-Policy: require-corp', as --serve does: without them the page computes
    with a single thread where there is no WebGPU.

    Args:
      output: Folder for the page.
      serve: Serve the page on the loopback address and open it, until Ctrl-C. Without an output,
        the page is written to a temporary folder.
      weights: Checkpoints or names of weights, one for each scale; those of the package if omitted.
      port: Port to serve on. 0 means a free one.
      browser: Open the page in the default browser when it is served.
      runtime: npm package of ONNX Runtime Web, for machines without a connection. The message that
        it could not be downloaded says which file that is.
    """
    check_range('--port', port, least=0, below=65536)
    if output is None and not serve:
        raise InputError(
            'neither an output nor --serve was given: choose -o FOLDER to write the '
            'page, --serve to open it on this machine, or both.'
        )
    given = weights or shipped()
    names = [Path(name).stem for name in given]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f'several weights are named {", ".join(sorted(repeated))}; the page needs a different '
            'name for each network: rename the files.'
        )
    networks = {name: load(path) for name, path in zip(names, given, strict=True)}
    runtime_package = find_runtime(runtime, progress=sys.stderr.isatty())
    with tempfile.TemporaryDirectory(prefix='fmen_jax_web_') as temporary:
        folder = output or Path(temporary)
        write_page(folder, networks, runtime_package)
        if output:
            print(output)
        if serve:
            _serve(folder, port, browser)
    return 0


def _serve(folder: Path, port: int, browser: bool) -> None:
    with make_server(folder, port) as server:
        url = f'http://127.0.0.1:{server.server_port}/'
        print(f'{url} (Ctrl-C ends it)', flush=True)
        if browser:
            webbrowser.open(url)
        server.serve_forever()


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(web, prog='fmen-jax web', args=args)
