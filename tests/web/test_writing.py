"""Writing and serving the page, without a browser."""

import _thread
import errno
import json
import shutil
import signal
import tempfile
import threading
import urllib.request
import webbrowser
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fmen_jax.cli import web as command
from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.protocol import NetworkConfig
from fmen_jax.models.rfdn import RFDNConfig
from fmen_jax.network import Network, load
from fmen_jax.web import page as page_module
from fmen_jax.web.page import write_page
from fmen_jax.web.runtime import FILES, PACKAGE, find_runtime, read_runtime
from fmen_jax.web.server import make_server
from tests.helpers import ROOT, run_cli

STATIC = ROOT / 'fmen_jax/web/static'


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of no files, for tests that do not open the page."""
    monkeypatch.setattr(page_module, 'find_runtime', lambda archive, progress: Path('unused'))
    monkeypatch.setattr(page_module, 'read_runtime', lambda archive: [])


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that may not be looked for: what is wrong must be found before its download."""
    monkeypatch.setattr(page_module, 'find_runtime', lambda *_, **__: pytest.fail('a download'))


def test_files_of_the_page(no_runtime: None, tmp_path: Path) -> None:
    write_page(tmp_path / 'page', {'fmen_s_x3': load('fmen_s_x3')})
    written = {path.name for path in (tmp_path / 'page').iterdir()}
    assert written == {path.name for path in STATIC.iterdir()} | {'fmen_s_x3.onnx', 'models.json'}
    models = json.loads((tmp_path / 'page/models.json').read_text())
    assert models == [{'name': 'fmen_s_x3', 'scale': 3, 'halo': 34, 'file': 'fmen_s_x3.onnx'}]


def test_scripts_import_what_is_there() -> None:
    for script in STATIC.glob('*.js'):
        for line in script.read_text(encoding='utf-8').splitlines():
            if line.startswith('import '):
                assert (STATIC / line.split("'")[1]).is_file(), f'{script.name}: {line}'


def test_the_page_forbids_other_connections() -> None:
    """On servers that send no such header, too."""
    policy = (
        (STATIC / 'index.html').read_text(encoding='utf-8').partition('content="default-src')[2]
    )
    assert policy.startswith(" 'none'; ")
    assert "connect-src 'self';" in policy


def test_an_existing_folder_keeps_its_mode(no_runtime: None, tmp_path: Path) -> None:
    (tmp_path / 'page').mkdir(mode=0o700)
    write_page(tmp_path / 'page', {'fmen_s_x3': load('fmen_s_x3')})
    assert (tmp_path / 'page').stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('extension', ['.js', '.onnx'])
def test_a_full_disk_leaves_the_old_page(
    no_runtime: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    write_page(tmp_path, {'fmen_s_x2': load('fmen_s_x2')})
    before = contents()
    write = Path.write_bytes

    def write_half(path: Path, data: bytes) -> None:
        if path.suffix == extension:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, data)

    monkeypatch.setattr(Path, 'write_bytes', write_half)
    with pytest.raises(OSError, match=rf"No space left on device: '.*\{extension}'"):
        write_page(tmp_path, {'fmen_s_x3': load('fmen_s_x3')})
    assert contents() == before


@pytest.mark.parametrize(
    ('configs', 'message'),
    [
        ({}, 'found the scales none'),
        ({'a': FMENConfig(scale=2), 'b': FMENConfig(scale=2)}, r'found the scales \[2, 2\]'),
        ({'e_rfdn': RFDNConfig()}, 'e_rfdn depends on the whole image'),
        ({'gray': FMENConfig(n_colors=1)}, 'gray has n_colors 1; expected 3'),
    ],
)
def test_networks_that_the_page_cannot_offer(
    no_download: None, tmp_path: Path, configs: dict[str, NetworkConfig], message: str
) -> None:
    networks = {name: Network(config, 'deploy', {}) for name, config in configs.items()}
    with pytest.raises(InputError, match=message):
        write_page(tmp_path / 'page', networks)
    assert not (tmp_path / 'page').exists()


def test_onnx_is_missing(
    no_download: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match='needs onnx, which is not installed'):
        write_page(tmp_path / 'page', {'fmen_s_x2': load('fmen_s_x2')})


def test_weights_of_one_name(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / 'other' / weights.name
    copy.parent.mkdir()
    shutil.copy(weights, copy)
    assert run_cli('web', '-o', tmp_path / 'page', '-w', weights, copy) == 2
    assert 'several weights are named tiny' in capsys.readouterr().err
    assert not (tmp_path / 'page').exists()


def test_the_runtime(runtime: Path, tmp_path: Path) -> None:
    assert find_runtime(runtime) == runtime
    assert [name for name, data in read_runtime(runtime) if data] == [*FILES]
    (tmp_path / 'other.tgz').write_bytes(b'other')
    with pytest.raises(InputError, match=f'expected {PACKAGE.sha256}. Download it from https'):
        find_runtime(tmp_path / 'other.tgz')
    with pytest.raises(InputError, match='no such file'):
        find_runtime(tmp_path / 'missing.tgz')


def test_the_server(tmp_path: Path) -> None:
    for name in ('page.js', 'ort.mjs', 'ort.wasm', 'net.onnx'):
        (tmp_path / name).write_bytes(b'')
    types = {}
    with make_server(tmp_path) as server:
        assert server.server_address[0] == '127.0.0.1'
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for path in sorted(tmp_path.iterdir()):
            url = f'http://127.0.0.1:{server.server_port}/{path.name}'
            with urllib.request.urlopen(url) as answer:
                headers = answer.headers
                types[path.name] = headers['Content-Type']
                assert headers['Cross-Origin-Opener-Policy'] == 'same-origin'
                assert headers['Cross-Origin-Embedder-Policy'] == 'require-corp'
                assert headers['Content-Security-Policy'] == "connect-src 'self'"
        server.shutdown()
        thread.join()
    assert types == {
        'net.onnx': 'application/octet-stream',
        'ort.mjs': 'text/javascript',
        'ort.wasm': 'application/wasm',
        'page.js': 'text/javascript',
    }


@pytest.mark.parametrize(('error', 'shown'), [(ConnectionResetError, ''), (KeyError, 'KeyError')])
def test_errors_of_connections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: type[Exception], shown: str
) -> None:
    with make_server(tmp_path) as server:
        try:
            raise error
        except error:
            server.handle_error(None, ('127.0.0.1', 9))
    found = capsys.readouterr().err
    assert (shown in found) if shown else not found


def test_a_port_in_use(
    no_download: None, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_server(tmp_path) as other:
        port = other.server_port
        assert run_cli('web', '--serve', '--port', port, '-w', weights) == 2
    message = f'--port is {port}, on which this machine cannot serve'
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP'])
def test_signals_leave_no_files(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f'this system has no {name}')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))

    def interrupted(folder: Path, *_: Any, **__: Any) -> NoReturn:
        (folder / 'page.js').write_text('')
        handler = signal.getsignal(number)
        assert callable(handler), f'{name} is not handled'
        handler(number, None)
        pytest.fail(f'{name} did not end the command')

    monkeypatch.setattr(command, 'write_page', interrupted)
    before = signal.signal(number, signal.SIG_DFL)  # nohup, for example, ignores SIGHUP
    try:
        assert run_cli('web', '--serve', '-w', weights) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert not any(tmp_path.iterdir())


def test_the_command(
    runtime: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
) -> None:
    assert run_cli('web') == 2
    assert 'choose -o FOLDER to write the page, --serve' in capsys.readouterr().err

    found: list[str] = []

    def stop(url: str) -> None:
        """A browser that does not return before it has the page."""
        try:
            with urllib.request.urlopen(url, timeout=10):
                found.append(url)
        finally:
            _thread.interrupt_main()

    monkeypatch.setattr(webbrowser, 'open', stop)
    args = ('web', '-o', tmp_path / 'page', '-w', weights, '--runtime', runtime, '--serve')
    # A shell lets its background jobs ignore SIGINT, and interrupt_main does nothing then.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_cli(*args) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert [url.startswith('http://127.0.0.1:') for url in found] == [True]
    assert (tmp_path / 'page/tiny.onnx').is_file()
    assert (tmp_path / 'page/ort/ort.wasm.min.mjs').is_file()
    assert 'Ctrl-C ends it' in capsys.readouterr().out
