"""Folders and addresses of the Hugging Face Hub."""

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmen_jax
from fmen_jax.errors import DownloadError, InputError
from fmen_jax.files import sha256
from fmen_jax.network import Network
from fmen_jax.weights.hub import weights_of_folder
from fmen_jax.weights.model_card import Score, model_card
from fmen_jax.weights.names import card
from tests.helpers import ROOT

SCORES = [Score('Set5', 'y', 37.5, 0.9589), Score('Set14', 'y', 33.1, 0.9131)]
COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture
def network(weights: Path) -> Network:
    """A small train graph."""
    return fmen_jax.load(weights)


def same(a: Network, b: Network) -> bool:
    states = a.state_dict(), b.state_dict()
    return list(states[0]) == list(states[1]) and all(
        np.array_equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.mark.parametrize('folded', [False, True])
def test_a_folder_comes_back(network: Network, tmp_path: Path, folded: bool) -> None:
    network = network.fold() if folded else network
    # a train-only setting, which the folded weights do not tell
    config = dataclasses.replace(network.config, backbone_expand_ratio=2 if not folded else 4)
    network = dataclasses.replace(network, config=config)
    network.save_pretrained(tmp_path / 'mine', name='mine', licence='Apache-2.0', scores=SCORES)
    assert {path.name for path in (tmp_path / 'mine').iterdir()} == {
        *('config.json', 'model.safetensors', 'README.md')
    }
    assert same(fmen_jax.load(tmp_path / 'mine'), network)
    assert same(fmen_jax.load(str(tmp_path / 'mine')), network)
    config_file = json.loads((tmp_path / 'mine/config.json').read_text())
    assert config_file['network'] == 'FMENConfig'
    assert config_file['scale'] == 2


def test_a_contradicting_configuration(network: Network, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / 'mine')
    path = tmp_path / 'mine/config.json'
    path.write_text(path.read_text().replace('"scale": 2', '"scale": 3'))
    with pytest.raises(InputError, match='scale is 3 there and 2 in the weights'):
        fmen_jax.load(tmp_path / 'mine')
    assert same(fmen_jax.load(tmp_path / 'mine/model.safetensors'), network)
    for text, message in (
        ('{', 'not a JSON file'),
        ('[' * 10**6, 'not a JSON file'),
        ('[]', 'holds a list; expected an object'),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            fmen_jax.load(tmp_path / 'mine')


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(InputError, match='a folder without model.safetensors; expected a check'):
        fmen_jax.load(tmp_path)


def test_the_card_is_what_the_hub_reads() -> None:
    hub = pytest.importorskip('huggingface_hub', reason='the extra `hub` is not installed')
    text = model_card(
        'mine', scale=2, parameters=1234, network='N()', licence='Apache-2.0', scores=SCORES
    )
    data = hub.ModelCard(text).data
    assert (data.library_name, data.license) == ('fmen_jax', 'apache-2.0')
    assert data.pipeline_tag == 'image-to-image'
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ('Set5', 'psnr'): 37.5,
        ('Set5', 'ssim'): 0.9589,
        ('Set14', 'psnr'): 33.1,
        ('Set14', 'ssim'): 0.9131,
    }
    assert '| Set5 | 37.50 | 0.9589 | y |' in text
    plain = hub.ModelCard(model_card('mine', scale=2, parameters=1, network='N()')).data
    assert plain.eval_results is None
    assert plain.license is None


class Hub:
    """A server with the part of the Hub's protocol that downloads need."""

    def __init__(self, folder: Path) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = folder / self.path.rpartition('/')[2]
                if '/someone/mine/resolve/' not in self.path or not path.is_file():
                    self.send_response(404)
                    self.send_header('X-Error-Code', 'RepoNotFound')
                    self.send_header('Content-Length', '0')
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header('ETag', f'"{sha256(path)}"')
                self.send_header('X-Repo-Commit', COMMIT)
                self.send_header('Content-Length', str(path.stat().st_size))
                self.end_headers()
                if body:
                    self.wfile.write(path.read_bytes())

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}'


@pytest.fixture
def hub(network: Network, tmp_path: Path) -> Iterator[Hub]:
    network.save_pretrained(tmp_path / 'served')
    hub = Hub(tmp_path / 'served')
    thread = threading.Thread(target=hub.http.serve_forever)
    thread.start()
    yield hub
    hub.http.shutdown()
    thread.join()
    hub.http.server_close()


def load_elsewhere(address: str, home: Path, **environment: str) -> str:
    """`load` in another process, because huggingface_hub reads its environment once."""
    code = f'import fmen_jax; print(fmen_jax.load({address!r}).config)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'HF_HOME': str(home), 'PYTHONPATH': str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_from_the_hub_and_then_without_a_connection(
    hub: Hub, network: Network, tmp_path: Path
) -> None:
    pytest.importorskip('huggingface_hub', reason='the extra `hub` is not installed')
    home = tmp_path / 'home'
    first = load_elsewhere('hf://someone/mine', home, HF_ENDPOINT=hub.url)
    assert first == str(network.config)
    cached = home / f'hub/models--someone--mine/snapshots/{COMMIT}'
    assert weights_of_folder(cached).is_file()
    again = load_elsewhere('hf://someone/mine', home, HF_HUB_OFFLINE='1')
    assert again == str(network.config)
    absent = load_elsewhere('hf://someone/other', home, HF_ENDPOINT=hub.url)
    assert 'DownloadError: hf://someone/other could not be downloaded' in absent


@pytest.mark.parametrize('address', ['hf://mine', 'hf://a/b/c', 'hf:///mine', 'hf://a b/c'])
def test_malformed_addresses(address: str) -> None:
    pytest.importorskip('huggingface_hub', reason='the extra `hub` is not installed')
    with pytest.raises((InputError, DownloadError), match='is not an address'):
        fmen_jax.load(address)


def test_any_failure_of_a_download_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip('huggingface_hub', reason='the extra `hub` is not installed')

    def fail(*args: Any, **options: Any) -> None:
        raise Exception('the connection was closed')  # as httpx.HTTPError, which is no OSError

    monkeypatch.setattr(hub, 'hf_hub_download', fail)
    with pytest.raises(DownloadError, match='could not be downloaded: the connection was closed'):
        fmen_jax.load('hf://someone/mine')


def test_what_is_shared_of_the_shipped_weights(tmp_path: Path) -> None:
    (tmp_path / 'here/fmen_s_x4').mkdir(parents=True)  # not what the name means to the script
    command = [sys.executable, ROOT / 'scripts/share_weights.py', tmp_path]
    options = ['--url', 'https://a.b/c/', '--date', '2026-01-02']
    subprocess.run([*command, *options], check=True, cwd=tmp_path / 'here')
    entry = json.loads((tmp_path / '4x-FMEN-S.json').read_text())
    # required by src/lib/schema.ts of OpenModelDB/open-model-database
    required = {
        *('name', 'author', 'license', 'tags', 'description', 'date', 'architecture', 'size'),
        *('scale', 'inputChannels', 'outputChannels', 'resources', 'images'),
    }
    assert required <= set(entry)
    shipped = ROOT / 'fmen_jax/weights/fmen_s_x4.safetensors'
    assert entry['resources'] == [
        {
            'platform': 'pytorch',
            'type': 'safetensors',
            'size': shipped.stat().st_size,
            'sha256': sha256(shipped),
            'urls': ['https://a.b/c/fmen_s_x4.safetensors'],
        }
    ]
    assert (entry['scale'], entry['date']) == (4, '2026-01-02')
    folder = tmp_path / 'fmen_s_x4'
    assert same(fmen_jax.load(folder), fmen_jax.load('fmen_s_x4'))
    psnr = card('fmen_s_x4')['measured']['Set5']['psnr']
    assert f'| Set5 | {psnr:.2f} |' in (folder / 'README.md').read_text()
