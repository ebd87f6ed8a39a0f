"""Fixtures of all tests, and the rules about skipping in CI."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# before JAX is imported: libtpu, installed to compile for TPUs, would look for one
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

from fmen_jax import porting
from fmen_jax.runtime import onednn
from tests.helpers import NO_TORCH, ROOT, Golden

jax.config.update('jax_numpy_rank_promotion', 'raise')

pytest_plugins = ['pytester']

SHARED = Path(os.environ.get('FMEN_JAX_SHARED') or ROOT.parent / 'shared')


@pytest.fixture(scope='session')
def shared() -> Callable[[str], Path]:
    """Find a file of the shared folder; skips where there is none, fails where it lacks one."""

    def find(name: str) -> Path:
        if not SHARED.is_dir():
            pytest.skip(f'no folder {SHARED} (set FMEN_JAX_SHARED)')
        assert (SHARED / name).exists(), f'{SHARED} has no {name}'
        return SHARED / name

    return find


@pytest.fixture
def torch() -> Any:
    """PyTorch; a test that needs it is skipped where it is absent."""
    return pytest.importorskip('torch', reason=NO_TORCH)


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of a number of KiB, or change its size; skips where that is not allowed."""
    folder = tmp_path / 'disk'
    folder.mkdir()

    def mount(size: int) -> Path:
        options = f'{"remount," if folder.is_mount() else ""}size={size}k'
        command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f'a disk cannot be mounted: {done.stderr.strip()}')
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(['umount', '--lazy', folder], check=True)  # a file may still be open


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """In CI, a parity test skipped although the shared folder is there has failed.

    Unless it needs PyTorch, in an environment that has none on purpose (CI_WITHOUT_TORCH).
    """
    report = yield
    del call
    if NO_TORCH in str(report.longrepr) and os.environ.get('CI_WITHOUT_TORCH'):
        return report
    counts = item.get_closest_marker('parity') and os.environ.get('CI') and SHARED.is_dir()
    if report.skipped and counts:
        report.outcome = 'failed'
        report.longrepr = f'parity test skipped although {SHARED} is there: {report.longrepr}'
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """In CI, nor may a whole file of tests be skipped (as `importorskip` does)."""
    report = yield
    if report.skipped and os.environ.get('CI') and SHARED.is_dir():
        report.outcome = 'failed'
        report.longrepr = (
            f'{collector.nodeid} skipped although {SHARED} is there: {report.longrepr}'
        )
    return report


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope='session', params=['tiny_x2', 'tiny_x3'])
def tiny(request: pytest.FixtureRequest) -> Golden:
    """Small FMENs with every figure of the published train code."""
    return Golden(ROOT / 'tests/golden' / f'{request.param}.npz')


@pytest.fixture(scope='session')
def tiny_x2() -> Golden:
    """One of them, for tests of files and errors."""
    return Golden(ROOT / 'tests/golden/tiny_x2.npz')


@pytest.fixture
def weights(tiny_x2: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small x2 network, a train graph."""
    path = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
    porting.write(path, tiny_x2.below('train/'), {})
    return path


@pytest.fixture(scope='session')
def onednn_verdicts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The verdicts of oneDNN's self-test, which would otherwise run in every test anew."""
    folder = tmp_path_factory.mktemp('onednn')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FMEN_JAX_CACHE', str(folder))
        onednn.supported_dtypes()
    (folder / 'onednn').mkdir(exist_ok=True)
    return folder / 'onednn'


@pytest.fixture(autouse=True)
def cache(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    onednn_verdicts: Path,
) -> Iterator[Path]:
    """A cache folder of the test's own, and no compilation cache left behind."""
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('FMEN_JAX_CACHE', str(folder))
    (folder / 'onednn').symlink_to(onednn_verdicts)
    before = jax.config.jax_compilation_cache_dir
    yield folder
    jax.config.update('jax_compilation_cache_dir', before)


@pytest.fixture(scope='session')
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('compiled')


@pytest.fixture
def compilation_cache(compiled: Path, cache: Path) -> Iterator[None]:
    """Compile a program once in all tests: the same small network is trained in many of them."""
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_compilation_cache_dir', str(compiled))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    yield
    jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)
