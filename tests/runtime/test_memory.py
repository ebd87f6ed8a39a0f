"""The memory that is left below the limits of control groups, on trees of files made here."""

from pathlib import Path

import psutil
import pytest

from fmen_jax.runtime.memory import available_memory

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type('Memory', (), {'available': 64 * GB})
    monkeypatch.setattr(psutil, 'virtual_memory', memory)


def group(folder: Path, version: int, limit: int | str, used: int, cache: int = 0) -> None:
    names = {
        1: ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
        2: ('memory.max', 'memory.current', 'inactive_file'),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f'{limit}\n')
    (folder / names[1]).write_text(f'{used}\n')
    (folder / 'memory.stat').write_text(f'anon 5\n{names[2]} {cache}\nfile 7\n')


def available(tmp_path: Path, own: str) -> int:
    (tmp_path / 'own').write_text(own)
    return available_memory(tmp_path / 'cgroup', tmp_path / 'own')


def test_the_machine_where_there_are_no_groups(tmp_path: Path) -> None:
    assert available_memory(tmp_path / 'none', tmp_path / 'none') == 64 * GB
    assert available(tmp_path, '0::/\n') == 64 * GB


@pytest.mark.parametrize('version', [1, 2])
def test_what_is_left_below_the_limit(version: int, tmp_path: Path) -> None:
    home = tmp_path / 'cgroup' / ('memory' if version == 1 else '')
    own = '4:memory:/job/one\n3:cpu:/\n' if version == 1 else '0::/job/one\n'
    group(home / 'job/one', version, 3 * GB, used=2 * GB, cache=GB // 2)
    assert available(tmp_path, own) == 3 * GB // 2
    # the limit of a parent counts with all that is used in it
    group(home / 'job', version, 8 * GB, used=7 * GB)
    assert available(tmp_path, own) == GB
    group(home / 'job', version, 8 * GB, used=9 * GB)
    assert available(tmp_path, own) == 0


def test_no_limit(tmp_path: Path) -> None:
    group(tmp_path / 'cgroup/job', 2, 'max', used=2 * GB)
    assert available(tmp_path, '0::/job\n') == 64 * GB
    group(tmp_path / 'cgroup/memory/job', 1, 9223372036854771712, used=2 * GB)
    assert available(tmp_path, '7:memory:/job\n') == 64 * GB


def test_the_soft_limit_of_version_2(tmp_path: Path) -> None:
    group(tmp_path / 'cgroup/job', 2, 5 * GB, used=GB)
    (tmp_path / 'cgroup/job/memory.high').write_text(f'{2 * GB}\n')
    assert available(tmp_path, '0::/job\n') == GB


def test_a_container_that_sees_the_path_of_its_host(tmp_path: Path) -> None:
    group(tmp_path / 'cgroup/memory', 1, 3 * GB, used=GB)
    assert available(tmp_path, '9:memory:/docker/0123\n0::/docker/0123\n') == 2 * GB


def test_both_versions_mounted(tmp_path: Path) -> None:
    group(tmp_path / 'cgroup/unified/job', 2, 3 * GB, used=GB)
    assert available(tmp_path, '1:cpu,cpuacct:/\n0::/job\n') == 2 * GB
