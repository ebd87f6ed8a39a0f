"""Files are whole or absent, and what a killed process left goes away."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fmen_jax.errors import InputError
from fmen_jax.files import cache_folder, check_target, labels_of, write_text, written_aside
from tests.helpers import not_utf8


def test_labels_are_stems_that_are_unique() -> None:
    names = ['a/x.png', 'b/x.png', 'b/y.tar.png', 'z']
    assert labels_of(names) == ['a/x.png', 'b/x.png', 'y.tar', 'z']


def test_labels_of_folders_are_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('one.v2', 'two'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / 'two')
    assert labels_of(['../one.v2', '.']) == ['one.v2', 'two']


def test_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / 'new/a.txt'
    write_text(path, 'one')
    with pytest.raises(ValueError, match='stop'), written_aside(path) as aside:
        aside.write_text('two')
        raise ValueError('stop')
    assert [p.name for p in path.parent.iterdir()] == ['a.txt']
    assert path.read_text() == 'one'


@pytest.mark.parametrize('letter', ['a', 'ä', '好'])
def test_the_longest_names_are_written(letter: str, tmp_path: Path) -> None:
    stem = letter * (250 // len(letter.encode()))
    paths = [tmp_path / f'{stem}.{extension}' for extension in ('txt', 'csv')]
    for path in paths:
        write_text(path, path.suffix)
    assert [path.read_text() for path in paths] == ['.txt', '.csv']
    assert {*tmp_path.iterdir()} == {*paths}


def test_a_text_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / 'a.txt', not_utf8(b'a\xff'))
    assert (tmp_path / 'a.txt').read_text() == r'a\udcff'


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    check_target(tmp_path / 'file')
    check_target(tmp_path / 'new/folder/a.txt')
    with pytest.raises(InputError, match='is a folder; expected the name of a file'):
        check_target(tmp_path)
    with pytest.raises(InputError, match='file is not a folder in which you may create files'):
        check_target(tmp_path / 'file/a.txt')


def test_the_cache_may_be_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('FMEN_JAX_CACHE', '~/cache')
    assert cache_folder() == Path.home() / 'cache'


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
