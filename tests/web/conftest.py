"""Fixtures of the tests of the web page: the page, and a headless Chromium that opens it."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmen_jax import porting
from fmen_jax.errors import DownloadError
from fmen_jax.network import load
from fmen_jax.web.page import write_page
from fmen_jax.web.runtime import find_runtime
from fmen_jax.web.server import make_server
from fmen_jax.weights.names import shipped
from tests.helpers import Golden

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)


class Chromium:
    """A headless Chromium, driven by its DevTools protocol over a pipe, without a library."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._received = b''
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method and return its result."""
        number = next(self._numbers)
        message = {'id': number, 'method': method, 'params': params}
        if session:
            message['sessionId'] = session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive(60)
            if answer.get('id') == number:
                assert 'error' not in answer, f'{method}: {answer["error"]}'
                return answer['result']
            if 'method' in answer:
                self.events.append(answer)

    def _receive(self, seconds: float) -> dict[str, Any]:
        while b'\0' not in self._received:
            ready, _, _ = select.select([self._in], [], [], seconds)
            assert ready, f'Chromium did not answer within {seconds} s'
            data = os.read(self._in, 1 << 20)
            assert data, 'Chromium has ended'
            self._received += data
        message, _, self._received = self._received.partition(b'\0')
        return json.loads(message)


class Tab:
    """A page in Chromium, and the workers that it starts."""

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        chromium.events.clear()
        self.target = chromium.send('Target.createTarget', url='about:blank')['targetId']
        attached = chromium.send('Target.attachToTarget', targetId=self.target, flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log', 'DOM'):
            self.send(f'{domain}.enable')

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._chromium.send(method, self._session, **params)

    @property
    def problems(self) -> list[str]:
        """Texts of errors and warnings on the console, and of exceptions.

        Except for remarks of Chromium about this machine's graphics: it has no GPU.
        """
        found = []
        for event in self._chromium.events:
            params = event['params']
            match event['method']:
                case 'Runtime.consoleAPICalled' if params['type'] in ('error', 'warning', 'assert'):
                    found.append(str([a.get('value', a) for a in params['args']]))
                case 'Runtime.exceptionThrown':
                    found.append(str(params['exceptionDetails']))
                case 'Log.entryAdded':
                    entry = params['entry']
                    graphics = entry['source'] == 'rendering' or 'adapter' in entry['text']
                    if entry['level'] in ('error', 'warning') and not graphics:
                        found.append(f'{entry["text"]} {entry.get("url", "")}')
        return found

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        answer = self.send(
            'Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True
        )
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """Return the value of a JavaScript expression once it is truthy."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f'{expression} is {value!r} after {seconds} s'
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        self.send('Page.navigate', url=url)
        self.wait(f'location.href.startsWith({url!r}) && document.readyState == "complete"')

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in an input element."""
        root = self.send('DOM.getDocument')['root']['nodeId']
        node = self.send('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.send('DOM.setFileInputFiles', nodeId=node, files=[str(path)])

    def press(self, key: str) -> None:
        codes = {'Enter': 13, 'Tab': 9, ' ': 32, 'ArrowLeft': 37, 'ArrowRight': 39}
        common = {'key': key, 'windowsVirtualKeyCode': codes[key]}
        text = {'Enter': '\r', ' ': ' '}.get(key, '')
        self.send('Input.dispatchKeyEvent', type='keyDown', text=text, **common)
        self.send('Input.dispatchKeyEvent', type='keyUp', **common)

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        self.send(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )

    def screenshot(self, path: Path) -> None:
        data = self.send('Page.captureScreenshot', captureBeyondViewport=True)['data']
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def started(profile: Path, *flags: str) -> Iterator[Chromium]:
    """Start a headless Chromium; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip('Chromium is not installed (apt-get install chromium)')
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # Chromium reads file descriptor 3 and writes file descriptor 4. It runs as root in containers,
    # where its sandbox does not work.
    start = (
        'import fcntl, os, sys; '
        f'ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ({to_read}, {from_write})]; '
        'os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[1], sys.argv[1:])'
    )
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            start,
            CHROMIUM,
            '--headless=new',
            '--no-sandbox',
            '--remote-debugging-pipe',
            f'--user-data-dir={profile}',
            '--no-first-run',
            '--disable-background-networking',
            '--disable-component-update',
            '--disable-dev-shm-usage',
            '--enable-unsafe-swiftshader',
            *flags,
        ],
        pass_fds=(to_read, from_write),
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Chromium(to_write, from_read)
    finally:
        process.kill()
        process.wait()
        os.close(to_write)
        os.close(from_read)


@pytest.fixture(scope='session')
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A headless Chromium without WebGPU."""
    with started(tmp_path_factory.mktemp('profile')) as chromium:
        yield chromium


@contextlib.contextmanager
def opened(chromium: Chromium, tmp_path: Path) -> Iterator[Tab]:
    folder = tmp_path / 'downloads'
    chromium.send('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(folder))
    tab = Tab(chromium)
    try:
        yield tab
    finally:
        chromium.send('Target.closeTarget', targetId=tab.target)


@pytest.fixture
def tab(chromium: Chromium, tmp_path: Path) -> Iterator[Tab]:
    """A new tab, which stores downloads in `tmp_path / 'downloads'`."""
    with opened(chromium, tmp_path) as tab:
        yield tab


@pytest.fixture
def webgpu_tab(tmp_path: Path) -> Iterator[Tab]:
    """A tab with WebGPU, which SwiftShader computes on the CPU."""
    flags = (
        '--enable-unsafe-webgpu',
        '--enable-features=Vulkan,WebGPU',
        '--use-webgpu-adapter=swiftshader',
        '--use-vulkan=swiftshader',
    )
    with started(tmp_path / 'profile', *flags) as chromium, opened(chromium, tmp_path) as tab:
        yield tab


@pytest.fixture(scope='session')
def runtime() -> Path:
    """The npm package of ONNX Runtime Web; skips where it is not cached and there is no network."""
    try:
        return find_runtime()
    except DownloadError as error:
        pytest.skip(f'ONNX Runtime Web could not be downloaded: {error}')


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    with make_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/'
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope='session')
def tiny_network(tiny_x2: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small x2 network."""
    path = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
    porting.write(path, tiny_x2.below('train/'), {})
    return path


@pytest.fixture(scope='session')
def tiny_folder(
    tiny_network: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page with a small x2 network; its name has characters that are special in addresses."""
    folder = tmp_path_factory.mktemp('tiny_page')
    write_page(folder, {'tiny #1 100%': load(tiny_network)}, runtime)
    return folder


@pytest.fixture(scope='session')
def tiny_page(tiny_folder: Path) -> Iterator[str]:
    """The address of the page with a small x2 network."""
    with served(tiny_folder) as url:
        yield url


@pytest.fixture
def altered_page(tiny_folder: Path, tmp_path: Path) -> Iterator[Callable[[str, str | None], str]]:
    """Serve the page with other contents of one file, or without it (None); the address."""
    folder = tmp_path / 'altered'
    shutil.copytree(tiny_folder, folder)

    with contextlib.ExitStack() as stack:

        def serve(name: str, text: str | None) -> str:
            (folder / name).unlink(missing_ok=True)
            if text is not None:
                (folder / name).write_text(text, encoding='utf-8')
            return stack.enter_context(served(folder))

        yield serve


@pytest.fixture(scope='session')
def page(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page with the weights of the package."""
    folder = tmp_path_factory.mktemp('page')
    write_page(folder, {name: load(name) for name in shipped()}, runtime)
    with served(folder) as url:
        yield url
