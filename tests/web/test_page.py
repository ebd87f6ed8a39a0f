"""The page in headless Chromium, against the command line."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fmen_jax.images.read import filled
from fmen_jax.inference import tiling
from tests.helpers import ROOT, run_cli, save

pytestmark = pytest.mark.skipif('sys.platform == "win32"', reason='the pipe needs POSIX')

PHOTO = skimage.data.astronaut()[60:110, 190:260]
"""A real picture, 70 x 50: eyes and hair."""
ONE_LEVEL = 1
"""Float32 sums in another order differ by less than 0.01; rounding makes one level of it."""


def open_page(tab: Any, url: str) -> None:
    tab.open(url)
    tab.wait('document.body.dataset.ready')


def choose(tab: Any, path: Path) -> None:
    tab.choose('#file', path)
    tab.wait(f'document.getElementById("picture").textContent.startsWith("{path.name}: ")')


def upscaled(tab: Any, downloads: Path, name: str, seconds: float = 60) -> np.ndarray:
    """Start, wait for the result, and download it by its button."""
    tab.run('document.getElementById("start").click()')
    return downloaded(tab, downloads, name, seconds)


def downloaded(tab: Any, downloads: Path, name: str, seconds: float = 60) -> np.ndarray:
    ended = '["result", "error"].some((id) => !document.getElementById(id).hidden)'
    tab.wait(ended, seconds)
    assert tab.run('document.getElementById("error").textContent') == ''
    tab.run('document.getElementById("download").click()')
    tab.wait('true')
    for _ in range(200):
        if (downloads / name).exists():
            break
        tab.run('new Promise((resolve) => setTimeout(resolve, 20))')
    with Image.open(downloads / name) as image:
        image.load()
        return np.asarray(image)


def by_command(picture: Path, output: Path, weights: str | Path) -> np.ndarray:
    assert run_cli('upscale', picture, '-o', output, '-w', weights, '--engine', 'xla') == 0
    return np.asarray(Image.open(output))


def largest_difference(found: np.ndarray, expected: np.ndarray) -> int:
    assert found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected).max())


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_the_same_as_the_command(tab: Any, page: str, tmp_path: Path, scale: int) -> None:
    save(tmp_path / 'photo.png', PHOTO)
    open_page(tab, page)
    choose(tab, tmp_path / 'photo.png')
    tab.run(f'document.querySelectorAll("input[name=model]")[{scale - 2}].click()')
    found = upscaled(tab, tmp_path / 'downloads', f'photo_x{scale}.png')
    expected = by_command(tmp_path / 'photo.png', tmp_path / 'out.png', f'fmen_s_x{scale}')
    assert largest_difference(found, expected) <= ONE_LEVEL
    assert largest_difference(found, np.roll(expected, 1, 1)) > 50  # the bound can fail
    assert tab.problems == []
    status = tab.run('document.getElementById("status").textContent')
    assert status.startswith('Done in ')


def test_transparency_is_kept(tab: Any, tiny_page: str, tiny_network: Path, tmp_path: Path) -> None:
    # larger than a tile in both directions
    photo = skimage.data.astronaut()[:270, 100:380]
    alpha = np.tile(np.arange(280).clip(0, 255).astype(np.uint8), (270, 1))
    alpha[:, :12] = 0  # a hidden region wider than what is filled in
    save(tmp_path / 'glass.png', np.dstack([photo, alpha]))
    open_page(tab, tiny_page)
    choose(tab, tmp_path / 'glass.png')
    found = upscaled(tab, tmp_path / 'downloads', 'glass_x2.png')
    expected = by_command(tmp_path / 'glass.png', tmp_path / 'out.png', tiny_network)
    assert largest_difference(found, expected) <= ONE_LEVEL
    assert tab.problems == []


@pytest.mark.slow
def test_webgpu(webgpu_tab: Any, tiny_page: str, tiny_network: Path, tmp_path: Path) -> None:
    tab = webgpu_tab
    save(tmp_path / 'photo.png', PHOTO[:24, :20])
    open_page(tab, tiny_page)
    if not tab.run('navigator.gpu?.requestAdapter().then((adapter) => !!adapter)'):
        pytest.skip('this Chromium has no software adapter for WebGPU')
    choose(tab, tmp_path / 'photo.png')
    found = upscaled(tab, tmp_path / 'downloads', 'photo_x2.png')
    expected = by_command(tmp_path / 'photo.png', tmp_path / 'out.png', tiny_network)
    assert largest_difference(found, expected) <= ONE_LEVEL
    assert tab.run('document.getElementById("provider").textContent').endswith('with WebGPU.')
    assert tab.problems == []


def test_a_tile_that_fails_on_the_gpu(tab: Any, altered_page: Callable[..., str]) -> None:
    fails_on_tiles = """
        export const env = {wasm: {}};
        export class Tensor { constructor(type, data, dims) { this.height = dims[2]; } }
        export const InferenceSession = {create: async () => ({run: async ({lr}) => {
          if (lr.height > 16) throw new Error('out of memory');
          return {sr: {getData: async () => null, dispose() {}}};
        }})};
    """
    open_page(tab, altered_page('ort/ort.webgpu.min.mjs', fails_on_tiles))
    before, after, length = tab.run(
        """(async () => {
          Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => ({})}});
          const [{file}] = await (await fetch('models.json')).json();
          const network = await (await import('./network.js')).openNetwork(file);
          const before = network.provider;
          const y = await network.run(new Float32Array(3 * 20 * 20), 20, 20);
          return [before, network.provider, y.length];
        })()"""
    )
    assert before == 'WebGPU'
    assert after.startswith('WebAssembly')
    assert length == 3 * 40 * 40


@pytest.mark.parametrize('kind', ['gray', 'constant alpha', 'jpeg'])
def test_kinds_of_pictures(
    tab: Any, tiny_page: str, tiny_network: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ('p.jpg' if kind == 'jpeg' else 'p.png')
    alpha = np.full((50, 70), 100, np.uint8)
    save(path, {'gray': PHOTO[..., 1], 'jpeg': PHOTO}.get(kind, np.dstack([PHOTO, alpha])))
    open_page(tab, tiny_page)
    choose(tab, path)
    found = upscaled(tab, tmp_path / 'downloads', 'p_x2.png')
    expected = by_command(path, tmp_path / 'out.png', tiny_network)
    if kind == 'gray':
        expected = np.dstack([expected] * 3)
    # libjpeg-turbo in Chromium and in libvips may differ by a level, which the network amplifies
    assert largest_difference(found, expected) <= (4 if kind == 'jpeg' else ONE_LEVEL)


@pytest.mark.exhaustive
@pytest.mark.slow  # half a minute on two cores; a small network, of the same code
def test_a_large_picture_in_tiles(
    tab: Any, tiny_page: str, tiny_network: Path, tmp_path: Path
) -> None:
    whole = np.tile(skimage.data.astronaut(), (3, 4, 1))[:1500, :2000]
    save(tmp_path / 'large.png', whole)
    open_page(tab, tiny_page)
    choose(tab, tmp_path / 'large.png')
    tab.run('document.getElementById("start").click()')
    tab.wait('document.getElementById("remaining").textContent.includes("left")', 60)
    shown = tab.run('document.getElementById("remaining").textContent')
    assert ' of ' in shown
    found = downloaded(tab, tmp_path / 'downloads', 'large_x2.png', 300)
    expected = by_command(tmp_path / 'large.png', tmp_path / 'out.png', tiny_network)
    assert found.shape == (3000, 4000, 3)
    assert largest_difference(found, expected) <= ONE_LEVEL
    assert tab.problems == []


def test_tiles_are_those_of_python(tab: Any, tiny_page: str) -> None:
    open_page(tab, tiny_page)
    for length, tile, halo in [(1, 256, 34), (256, 256, 34), (257, 256, 34), (2000, 196, 34)]:
        found = tab.run(
            f'import("./tiling.js").then(({{spans}}) => spans({length}, {tile}, {halo}))'
        )
        expected = tiling.spans(length, tile, halo)
        assert [tuple(span.values()) for span in found] == [
            (span.start, span.stop, span.first, span.last) for span in expected
        ]


@pytest.mark.parametrize(('height', 'width'), [(2, 66000), (1030, 4100)])
def test_pictures_larger_than_a_canvas(
    tab: Any, tiny_page: str, tmp_path: Path, height: int, width: int
) -> None:
    red = (np.arange(height)[:, None] * 7 + np.arange(width)) % 251
    photo = np.dstack([red, red // 2, 255 - red]).astype(np.uint8)
    save(tmp_path / 'p.png', photo)
    open_page(tab, tiny_page)
    found = tab.run(
        f'const data = "{base64.b64encode((tmp_path / "p.png").read_bytes()).decode()}";'
        """(async () => {
          const file = new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))]);
          const {decode, readPixels} = await import('./decode.js');
          const {pixels} = readPixels(await decode(file));
          const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', pixels));
          return [pixels.length, [...hash]];
        })()"""
    )
    expected = np.dstack([photo, np.full((height, width), 255, np.uint8)])
    assert found == [expected.size, [*hashlib.sha256(expected.tobytes()).digest()]]


def test_hidden_pixels_are_filled_as_in_python(tab: Any, tiny_page: str) -> None:
    """In bands of rows, as the page does it, of which one changes nothing in another."""
    pixels = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    pixels[5:45, 5:65, 3] = 0
    open_page(tab, tiny_page)
    found = tab.run(
        f'const pixels = Uint8ClampedArray.of({",".join(map(str, pixels.flat))});'
        """import('./alpha.js').then(({fillHidden}) => {
          for (const [start, stop] of [[0, 12], [10, 30], [30, 42], [40, 50]]) {
            fillHidden(pixels, 70, 50, start, stop);
          }
          return [...pixels];
        })"""
    )
    expected = filled(pixels)
    assert (expected != pixels).any()
    assert largest_difference(np.reshape(found, pixels.shape), expected) <= ONE_LEVEL  # of rounding


def complaint(tab: Any) -> str:
    tab.wait('!document.getElementById("error").hidden', 60)
    return tab.run('document.getElementById("error").textContent')


def test_broken_files(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    (tmp_path / 'text.png').write_text('no picture')
    open_page(tab, tiny_page)
    tab.choose('#file', tmp_path / 'text.png')
    assert complaint(tab).startswith('text.png could not be read as a picture.')
    assert tab.run('document.getElementById("settings").hidden')


NO_MEMORY = """
    export const decode = createImageBitmap;
    export function readPixels() { throw new RangeError('no memory'); }
"""


@pytest.mark.parametrize(
    ('file', 'text', 'message'),
    [
        ('models.json', None, 'models.json could not be loaded: HTTP status 404. Reload the page.'),
        ('sample.png', None, 'sample.png could not be loaded: HTTP status 404.'),
        (
            'worker.js',
            None,
            'The network could not be run: its files could not be loaded. Press Upscale to try',
        ),
        (
            'decode.js',
            NO_MEMORY,
            'sample.png is too large for this browser (RangeError: no memory)',
        ),
    ],
)
def test_what_can_fail(
    tab: Any, altered_page: Callable[..., str], file: str, text: str | None, message: str
) -> None:
    open_page(tab, altered_page(file, text))
    tab.run('document.getElementById("sample").click()')
    tab.wait('!document.getElementById("error").hidden || document.activeElement.id === "start"')
    tab.run('document.activeElement.click()')
    assert complaint(tab).startswith(message)
    assert not [problem for problem in tab.problems if 'Uncaught' in problem]


NOT_STARTED = 'document.body.innerText.includes("needs JavaScript and a web server")'


def test_the_page_opened_as_a_file(tab: Any, tiny_page: str) -> None:
    tab.open((ROOT / 'fmen_jax/web/static/index.html').as_uri())
    tab.wait(NOT_STARTED)
    open_page(tab, tiny_page)
    assert not tab.run(NOT_STARTED)


def test_a_truncated_file(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    save(tmp_path / 'half.png', PHOTO)
    data = (tmp_path / 'half.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(data[: len(data) // 2])
    open_page(tab, tiny_page)
    tab.choose('#file', tmp_path / 'half.png')
    tab.wait('["settings", "error"].some((id) => !document.getElementById(id).hidden)')
    tab.run('document.getElementById("start").click()')
    assert complaint(tab).startswith('half.png could not be read as a picture.')
    # the page goes on with another picture
    save(tmp_path / 'whole.png', PHOTO)
    choose(tab, tmp_path / 'whole.png')
    assert upscaled(tab, tmp_path / 'downloads', 'whole_x2.png').shape == (100, 140, 3)


def test_pictures_that_are_read_slowly(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    save(tmp_path / 'before.png', PHOTO)
    open_page(tab, tiny_page)
    choose(tab, tmp_path / 'before.png')
    # the first of two pictures takes longer to read than the second
    tab.run(
        """{
          const Plain = window.Image;
          const delays = [1500, 500];
          window.Image = class extends Plain {
            set onload(then) {
              const delay = delays.shift();
              super.onload = () => setTimeout(then, delay);
            }
          };
        }"""
    )
    for name, photo in [('first.png', PHOTO[:20]), ('second.png', PHOTO[:30])]:
        save(tmp_path / name, photo)
        tab.choose('#file', tmp_path / name)
    tab.run('document.getElementById("factors").dispatchEvent(new Event("change"))')
    tab.run('document.getElementById("start").click()')
    assert tab.run('document.getElementById("work").hidden')  # it does not upscale before.png
    tab.wait('document.getElementById("picture").textContent.startsWith("second.png: ")')
    tab.run('new Promise((resolve) => setTimeout(resolve, 1500))')
    assert upscaled(tab, tmp_path / 'downloads', 'second_x2.png').shape == (60, 140, 3)
    assert tab.problems == []


def test_a_sample_that_is_loaded_slowly(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    save(tmp_path / 'mine.png', PHOTO)
    open_page(tab, tiny_page)
    tab.run(
        """{
          const plain = window.fetch;
          window.fetch = (url) => new Promise((resolve) => {
            window.proceed = () => resolve(plain(url));
          });
        }"""
    )
    tab.run('document.getElementById("sample").click()')
    tab.wait('!!window.proceed')
    choose(tab, tmp_path / 'mine.png')
    tab.run('window.proceed()')
    tab.run('new Promise((resolve) => setTimeout(resolve, 500))')
    assert tab.run('document.getElementById("picture").textContent').startswith('mine.png: ')
    assert tab.problems == []


def test_a_huge_picture(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    Image.new('1', (16000, 9000)).save(tmp_path / 'huge.png')
    open_page(tab, tiny_page)
    choose(tab, tmp_path / 'huge.png')
    assert 'would have 576,000,000 pixels; this page makes at most 268,435,456' in complaint(tab)
    assert tab.run('document.getElementById("start").disabled')
    assert tab.problems == []


def test_cancel(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    save(tmp_path / 'p.png', np.tile(PHOTO, (20, 20, 1)))
    open_page(tab, tiny_page)
    choose(tab, tmp_path / 'p.png')
    tab.run('document.getElementById("start").click()')
    tab.wait('document.getElementById("remaining").textContent.startsWith("Tile ")')
    tab.run('document.getElementById("cancel").click()')
    assert tab.run('document.getElementById("status").textContent') == 'Canceled.'
    assert tab.run('document.getElementById("work").hidden')
    tab.run('new Promise((resolve) => setTimeout(resolve, 2000))')
    assert tab.run('document.getElementById("remaining").textContent') == ''  # no tile came after
    save(tmp_path / 'small.png', PHOTO)
    choose(tab, tmp_path / 'small.png')
    assert upscaled(tab, tmp_path / 'downloads', 'small_x2.png').shape == (100, 140, 3)


@pytest.mark.parametrize('event', ['drop', 'paste'])
def test_drop_and_paste(tab: Any, tiny_page: str, event: str) -> None:
    open_page(tab, tiny_page)
    tab.run(
        f'const kind = "{event}";'
        """(async () => {
          const data = new DataTransfer();
          const blob = await (await fetch('sample.png')).blob();
          data.items.add(new File([blob], 'given.png', {type: 'image/png'}));
          const event = kind === 'drop'
            ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
          document.body.dispatchEvent(event);
        })()"""
    )
    tab.wait('document.getElementById("picture").textContent.startsWith("given.png: 175 ")')


def focused(tab: Any) -> str:
    return tab.run('document.activeElement.id')


def test_keyboard_alone(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    open_page(tab, tiny_page)
    order = []
    for _ in range(2):
        tab.press('Tab')
        order.append(focused(tab))
    assert order == ['file', 'sample']
    tab.press('Enter')
    tab.wait('document.activeElement.id === "start"')
    tab.press('Enter')
    tab.wait('document.activeElement.id === "download"', 60)
    tab.run('document.getElementById("split").focus()')
    tab.press('ArrowLeft')
    assert tab.run('document.getElementById("viewer").style.getPropertyValue("--split")') == '49%'
    tab.press('Tab')
    assert focused(tab) == 'download'
    tab.press('Tab')
    assert focused(tab) == 'full'
    tab.press(' ')
    assert tab.run('document.getElementById("frame").className') == 'full'


def test_every_control_has_a_name(tab: Any, tiny_page: str) -> None:
    open_page(tab, tiny_page)
    tab.run('document.querySelectorAll("[hidden]").forEach((e) => { e.hidden = false; })')
    tree = tab.send('Accessibility.getFullAXTree')['nodes']
    assert 'slider' in [node.get('role', {}).get('value') for node in tree]
    controls = {'button', 'radio', 'checkbox', 'slider', 'link', 'progressbar', 'image'}
    nameless = [
        node
        for node in tree
        if not node.get('ignored')
        and node['role'].get('value') in controls
        and not node.get('name', {}).get('value')
    ]
    assert nameless == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone(tab: Any, tiny_page: str, scheme: str) -> None:
    tab.resize(360, 640, mobile=True)
    features = [{'name': 'prefers-color-scheme', 'value': scheme}]
    tab.send('Emulation.setEmulatedMedia', features=features)
    open_page(tab, tiny_page)
    tab.run('document.getElementById("sample").click()')
    tab.wait('document.activeElement.id === "start"')
    tab.run('document.getElementById("start").click()')
    tab.wait('!document.getElementById("result").hidden', 60)
    assert tab.run('document.documentElement.scrollWidth') == 360
    small = tab.run(
        """[...document.querySelectorAll('.button, .actions label, #factors label, #split')]
          .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 40)
          .map((e) => e.outerHTML)"""
    )
    assert small == []  # a finger needs about 40 pixels
    light = tab.run('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
    assert light == (scheme == 'light')
    assert tab.problems == []


def test_nothing_leaves_the_machine(tab: Any, tiny_page: str, tmp_path: Path) -> None:
    open_page(tab, tiny_page)
    for elsewhere in ('https://example.com/', 'http://127.0.0.1:9/'):
        blocked = f'fetch("{elsewhere}").then(() => "sent", (error) => "blocked")'
        assert tab.run(blocked) == 'blocked'
    assert [p for p in tab.problems if 'Content Security Policy' in p or 'violates' in p]


def test_nothing_leaves_the_worker(tab: Any, altered_page: Callable[..., str]) -> None:
    """The policy of the document does not hold in workers: the server must send one."""
    probe = """
        self.addEventListener('securitypolicyviolation', ({violatedDirective}) => {
          postMessage(violatedDirective);
        });
        fetch('http://127.0.0.1:9/').catch(() => setTimeout(() => postMessage('tried'), 500));
    """
    open_page(tab, altered_page('probe.js', probe))
    found = tab.run(
        """new Promise((resolve) => {
          new Worker('probe.js', {type: 'module'}).onmessage = ({data}) => resolve(data);
        })"""
    )
    assert found == 'connect-src'
