"""A server of the page for this machine alone."""

import functools
import http.server
import sys
from pathlib import Path
from typing import Any

from fmen_jax.errors import InputError


class _Handler(http.server.SimpleHTTPRequestHandler):
    # Some systems register other types, with which browsers refuse to run the files.
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        '.js': 'text/javascript',
        '.mjs': 'text/javascript',
        '.wasm': 'application/wasm',
        '.onnx': 'application/octet-stream',
    }

    def end_headers(self) -> None:
        # Threads of WebAssembly share memory, which browsers allow on isolated pages only.
        self.send_header('Cross-Origin-Opener-Policy', 'same-origin')
        self.send_header('Cross-Origin-Embedder-Policy', 'require-corp')
        # The page says the same of itself; for its workers only a header counts.
        self.send_header('Content-Security-Policy', "connect-src 'self'")
        self.send_header('Cache-Control', 'no-cache')
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        del format, args


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # such as of a tab that was closed
            super().handle_error(request, client_address)


def make_server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder on the loopback address; run it with `serve_forever`.

    Args:
      folder: folder of the page, see `write_page`.
      port: port to listen on; 0 means a free one, which `server_port` tells.

    Raises:
      InputError: If the port is in use, or may not be used.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    try:
        return _Server(('127.0.0.1', port), handler)
    except OSError as error:
        raise InputError(
            f'--port is {port}, on which this machine cannot serve: {error.strerror}. Choose '
            'another port, or 0 for a free one.'
        ) from error
