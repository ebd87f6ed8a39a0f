"""Downloads, from a server on the loopback address."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fmen_jax.cli import main
from fmen_jax.errors import DownloadError, InputError
from fmen_jax.weights import download as module
from fmen_jax.weights.download import Published, download

CONTENT = bytes(range(256)) * 3000
NAME = 'fmen_s_x4_github'


class Server:
    """Serves `content`, and can drop the connection."""

    def __init__(self) -> None:
        self.requests = 0
        self.drop_after: int | None = None
        self.content = CONTENT
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(200)
                self.send_header('Content-Length', str(len(outer.content)))
                self.end_headers()
                self.wfile.write(outer.content[: outer.drop_after])

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}/weights.pt'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setenv('FMEN_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setitem(module.PUBLISHED, NAME, Published(server.url, digest, 'none'))
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def files(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / 'cache').iterdir())


def test_downloaded_once_and_cached(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = download(NAME)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [f'{NAME}.pt']
    assert download(NAME) == path
    assert server.requests == 1
    assert capsys.readouterr() == ('', '')  # a library does not print


def test_an_interrupted_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.drop_after = 300_000
    with pytest.raises(DownloadError, match='could not be downloaded.*put weights.pt from'):
        download(NAME)
    assert files(tmp_path) == []
    server.drop_after = None
    assert download(NAME).read_bytes() == CONTENT
    assert files(tmp_path) == [f'{NAME}.pt']


def test_wrong_content_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = b'other' + CONTENT[5:]
    with pytest.raises(DownloadError, match='does not match the known hash'):
        download(NAME)
    assert files(tmp_path) == []


def test_a_changed_file_in_the_cache_is_replaced(server: Server) -> None:
    path = download(NAME)
    path.write_bytes(b'rotten')
    assert download(NAME).read_bytes() == CONTENT
    assert server.requests == 2


def test_no_network_says_what_to_put_where(
    server: Server, monkeypatch: Any, tmp_path: Path
) -> None:
    dead = 'http://127.0.0.1:9/weights.pt'
    with pytest.raises(DownloadError) as caught:
        download(NAME, url=dead)
    for part in (dead, 'put weights.pt from', str(tmp_path / 'cache' / f'{NAME}.pt'), '--weights'):
        assert part in str(caught.value)


def test_many_at_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = {*pool.map(lambda _: download(NAME), range(8))}
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert files(tmp_path) == [f'{NAME}.pt']


@pytest.mark.parametrize('url', ['notaurl', 'file:///etc/passwd'])
def test_other_addresses_are_refused(url: str, server: Server) -> None:
    with pytest.raises(InputError, match='is not an address; expected https'):
        download(NAME, url=url)


def test_a_cache_that_cannot_be_written_says_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('FMEN_JAX_CACHE', str(tmp_path / 'file'))
    with pytest.raises(DownloadError, match='put weights.pt from'):
        download(NAME)
    with pytest.raises(SystemExit) as ended:
        main(['download', NAME])
    assert ended.value.code == 1


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="named 'fmen'; there are fmen_s_x4_github, fmen_s_x4_n"):
        download('fmen')


def test_command_line(server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(['download', NAME])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'cache' / f'{NAME}.pt')


@pytest.mark.parametrize('name', ['fmen_s_x4_github', 'fmen_s_x4_ntire2022'])
def test_hashes_are_those_of_the_published_files(name: str, shared: Any) -> None:
    published = module.PUBLISHED[name]
    path = shared(f'official/{name}{Path(published.filename).suffix}')
    assert hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256
