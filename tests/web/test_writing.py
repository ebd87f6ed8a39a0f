"""Writing and serving the page, without a browser."""

import json
import shutil
import threading
import urllib.request
import webbrowser
from pathlib import Path

import pytest

from fmen_jax.errors import InputError
from fmen_jax.network import Network, load
from fmen_jax.web import page as page_module
from fmen_jax.web.page import write_page
from fmen_jax.web.runtime import FILES, PACKAGE, find_runtime
from fmen_jax.web.server import make_server
from tests.helpers import ROOT, run_cli

STATIC = ROOT / 'fmen_jax/web/static'


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of no files, for tests that do not open the page."""
    monkeypatch.setattr(page_module, 'extract_runtime', lambda archive, folder: None)


def test_files_of_the_page(no_runtime: None, tmp_path: Path) -> None:
    write_page(tmp_path / 'page', {'fmen_s_x3': load('fmen_s_x3')}, Path('unused'))
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


def test_networks_that_the_page_cannot_offer(no_runtime: None, tmp_path: Path) -> None:
    x2 = load('fmen_s_x2')
    cases: list[tuple[dict[str, Network], str]] = [
        ({}, 'found the scales none'),
        ({'a': x2, 'b': x2}, r'found the scales \[2, 2\]'),
    ]
    for networks, message in cases:
        with pytest.raises(InputError, match=message):
            write_page(tmp_path / 'page', networks, Path('unused'))
    assert not (tmp_path / 'page').exists()


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
    page_module.extract_runtime(runtime, tmp_path / 'ort')
    assert {path.name for path in (tmp_path / 'ort').iterdir()} == set(FILES)
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
        thread = threading.Thread(target=server.serve_forever)
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


def test_the_command(
    runtime: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
) -> None:
    assert run_cli('web') == 2
    assert 'choose -o FOLDER to write the page, --serve' in capsys.readouterr().err

    def stop(url: str) -> None:
        assert url.startswith('http://127.0.0.1:')
        raise KeyboardInterrupt

    monkeypatch.setattr(webbrowser, 'open', stop)
    args = ('web', '-o', tmp_path / 'page', '-w', weights, '--runtime', runtime, '--serve')
    assert run_cli(*args) == 130
    assert (tmp_path / 'page/tiny.onnx').is_file()
    assert (tmp_path / 'page/ort/ort.wasm.min.mjs').is_file()
    assert 'Ctrl-C ends it' in capsys.readouterr().out
