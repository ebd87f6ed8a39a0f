"""Downloads, from a server on the loopback address."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
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
    """Serves CONTENT with ranges; may drop the connection, or forget about ranges."""

    def __init__(self) -> None:
        self.requests: list[str | None] = []
        self.drop_after: int | None = None
        self.ranges = True
        self.content = CONTENT
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get('Range')
                outer.requests.append(wanted)
                start = int(wanted.removeprefix('bytes=')[:-1]) if wanted and outer.ranges else 0
                if start and start >= len(outer.content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                body = outer.content[start:]
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.drop_after])

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
    return sorted(p.name for p in (tmp_path / 'cache').iterdir() if p.suffix != '.lock')


def test_fetched_once_and_cached(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = download(NAME, report=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [f'{NAME}.pt']
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert download(NAME) == path
    assert server.requests == [None]


def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.drop_after = 300_000
    with pytest.raises(DownloadError, match='300000 of 768000 bytes.*By hand: put weights.pt'):
        download(NAME)
    assert files(tmp_path) == [f'{NAME}.pt.part']
    server.drop_after = None
    assert download(NAME).read_bytes() == CONTENT
    assert server.requests == [None, 'bytes=300000-']
    assert files(tmp_path) == [f'{NAME}.pt']


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    server.drop_after = 300_000
    with pytest.raises(DownloadError):
        download(NAME)
    server.drop_after, server.ranges = None, False
    assert download(NAME).read_bytes() == CONTENT


def test_a_whole_part_file_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / f'{NAME}.pt.part').write_bytes(CONTENT)
    assert download(NAME).read_bytes() == CONTENT


def test_wrong_content_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = b'other' + CONTENT[5:]
    with pytest.raises(DownloadError, match='SHA-256 is .*, expected'):
        download(NAME)
    assert files(tmp_path) == []


def test_a_changed_file_in_the_cache_is_noticed(server: Server) -> None:
    path = download(NAME)
    path.write_bytes(b'rotten')
    with pytest.raises(DownloadError, match='Delete the file and try again'):
        download(NAME)


def test_no_network_says_what_to_put_where(
    server: Server, monkeypatch: Any, tmp_path: Path
) -> None:
    dead = 'http://127.0.0.1:9/weights.pt'
    with pytest.raises(DownloadError) as caught:
        download(NAME, url=dead)
    for part in (dead, 'put weights.pt from', str(tmp_path / 'cache' / f'{NAME}.pt'), '--weights'):
        assert part in str(caught.value)


def test_many_at_once_fetch_it_once(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: download(NAME), range(8)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize('url', ['notaurl', 'file:///etc/passwd'])
def test_other_addresses_are_refused(url: str, server: Server) -> None:
    with pytest.raises(InputError, match='is not an address; expected https'):
        download(NAME, url=url)


def test_a_cache_that_cannot_be_written_says_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('FMEN_JAX_CACHE', str(tmp_path / 'file'))
    with pytest.raises(DownloadError, match='By hand: put weights.pt'):
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
