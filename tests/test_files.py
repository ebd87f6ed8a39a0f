"""Files are whole or absent, and what a killed process left goes away."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fmen_jax.files import labels_of, write_text, written_aside


def test_labels_are_stems_that_are_unique() -> None:
    names = ['a/x.png', 'b/x.png', 'b/y.tar.png', 'z']
    assert labels_of(names) == ['a/x.png', 'b/x.png', 'y.tar', 'z']


def test_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / 'new/a.txt'
    write_text(path, 'one')
    with pytest.raises(ValueError, match='stop'), written_aside(path) as aside:
        aside.write_text('two')
        raise ValueError('stop')
    assert [p.name for p in path.parent.iterdir()] == ['a.txt']
    assert path.read_text() == 'one'


def test_leftovers_whose_process_number_is_in_use_again(tmp_path: Path) -> None:
    old, new = (tmp_path / f'.{name}.{platform.node()}.{os.getppid()}.part.txt' for name in 'ab')
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))  # long before the process with this number started
    write_text(tmp_path / 'a.txt', '')
    write_text(tmp_path / 'b.txt', '')
    assert not old.exists()
    assert new.exists()


def test_leftovers_of_dead_processes_only(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    alive = os.getppid()
    names = [f'.a[1].{platform.node()}.{process}.part.txt' for process in (dead.pid, alive)]
    names += [f'.a[1].elsewhere.{dead.pid}.part.txt', f'.ab.{platform.node()}.{dead.pid}.part.txt']
    for name in names:
        (tmp_path / name).touch()
    write_text(tmp_path / 'a[1].txt', '')
    assert {p.name for p in tmp_path.iterdir()} == {'a[1].txt', *names[1:]}
