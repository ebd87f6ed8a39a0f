"""`fmen-jax web`."""

import contextlib
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from http.server import HTTPServer
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from fmen_jax.errors import InputError, check_range
from fmen_jax.network import load
from fmen_jax.web.page import write_page
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

    A server should send three headers, as --serve does. Without 'Cross-Origin-Opener-Policy:
    same-origin' and 'Cross-Origin-Embedder-Policy: require-corp' the page computes with a single
    thread where there is no WebGPU. With "Content-Security-Policy: connect-src 'self'" the browser
    refuses connections to other addresses in the page's worker, which has the picture.

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
    with contextlib.ExitStack() as stack:
        stack.enter_context(_cleanup_on_signals())
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix='fmen_jax_web_'))
        folder = output or Path(temporary)
        server = stack.enter_context(make_server(folder, port)) if serve else None
        write_page(folder, networks, runtime, progress=sys.stderr.isatty())
        if output:
            print(output)
        if server:
            _serve(server, browser)
    return 0


@contextlib.contextmanager
def _cleanup_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program in such a way that temporary files are removed."""

    def end(number: int, frame: object) -> None:
        del frame
        sys.exit(128 + number)

    signals = [  # Windows has no SIGHUP, and nohup ignores it
        number
        for number in signal.Signals
        if number.name in ('SIGTERM', 'SIGHUP') and signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def _serve(server: HTTPServer, browser: bool) -> None:
    url = f'http://127.0.0.1:{server.server_port}/'
    print(f'{url} (Ctrl-C ends it)', flush=True)
    if browser:  # some browsers return only when they are closed
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    server.serve_forever()


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(web, prog='fmen-jax web', args=args)
