"""A server of the page for this machine alone."""

import functools
import http.server
from pathlib import Path
from typing import Any


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


def make_server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder on the loopback address; run it with `serve_forever`.

    Args:
      folder: folder of the page, see `write_page`.
      port: port to listen on; 0 means a free one, which `server_port` tells.

    Raises:
      OSError: If the port is in use.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    return http.server.ThreadingHTTPServer(('127.0.0.1', port), handler)
