"""Which picture becomes which file."""

from pathlib import Path

import pytest

from fmen_jax.errors import InputError
from fmen_jax.inference.planning import Naming, Shard, plan


@pytest.mark.parametrize(
    ('inputs', 'output', 'message'),
    [
        (['missing.png'], 'out', 'missing.png: no such file or folder'),
        (['empty'], 'out', 'empty: no pictures'),
        (['a.txt'], 'out', "file extension '.txt' is not that of an image"),
        (['a.png', 'b.png'], 'c.png', 'is a single file, but there are 2 pictures'),
        (['a.png'], 'a.png', 'is an input and would be overwritten'),
        (['a.png', 'other/a.png'], 'out', 'would both be written to'),
        (['a.png'], 'a.txt', 'is not a folder and does not have the file extension'),
        (['a.png'], 'b.gif', 'is not a folder and does not have the file extension'),
        (['*.gif'], 'out', r'\*.gif: no picture matches this pattern'),
        ([], 'out', 'no pictures given'),
    ],
)
def test_impossible_plans(inputs: list[str], output: str, message: str, tmp_path: Path) -> None:
    for folder in ('empty', 'other'):
        (tmp_path / folder).mkdir()
    for name in ('a.png', 'b.png', 'a.txt', 'other/a.png'):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        plan([tmp_path / name for name in inputs], tmp_path / output, scale=4)


def test_hidden_files_and_repeated_inputs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / 'x.png').mkdir()
    for name in ('a.png', '.b.png', '._c.png'):
        (tmp_path / name).touch()
    items = plan([tmp_path, tmp_path / 'a.png', tmp_path], tmp_path / 'out', scale=4)
    assert [item.source for item in items] == [tmp_path / 'a.png']


def test_trees_are_kept_and_patterns_understood(tmp_path: Path) -> None:
    for name in ('in/a.png', 'in/deep/er/a.png', 'in/deep/b.JPG', 'in/.hidden/c.png', 'in/n.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    out = tmp_path / 'out'

    def targets(given: str, naming: Naming | None = None) -> list[str]:
        items = plan([tmp_path / given], out, scale=3, naming=naming or Naming())
        return [str(item.target.relative_to(out)) for item in items]

    assert targets('in') == ['a_x3.png', 'deep/b_x3.JPG', 'deep/er/a_x3.png']
    assert targets('in/*.png') == ['a_x3.png']
    assert targets('in/**/*.png') == ['a_x3.png', 'deep/er/a_x3.png']
    assert targets('in/deep/*.JPG', Naming('-big', 'tif')) == ['b-big.tif']
    with pytest.raises(InputError, match="file extension '.gif' is not that of an image"):
        targets('in', Naming(ext='gif'))


def test_a_suffix_with_an_unknown_placeholder_is_refused() -> None:
    for suffix in ('_{size}', '_{', '_{}'):
        with pytest.raises(InputError, match=r'expected a text in which \{scale\}'):
            Naming(suffix)
    assert Naming('_{scale:02}').name(Path('a.png'), 4) == 'a_04.png'


def test_without_output_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'a.png').touch()
    with pytest.raises(InputError, match='use --output to name a folder'):
        plan([tmp_path], None, scale=4)


def test_shards_share_the_work(tmp_path: Path) -> None:
    for name in 'abcde':
        (tmp_path / f'{name}.png').touch()
    whole = plan([tmp_path], tmp_path / 'out', scale=2)
    parts = [
        plan([tmp_path], tmp_path / 'out', scale=2, shard=Shard.parse(f'{i}/3')) for i in range(3)
    ]
    assert sorted(map(len, parts)) == [1, 2, 2]
    assert {item.source for part in parts for item in part} == {item.source for item in whole}
    for text in ('3/3', '1', 'a/b', '-1/2'):
        with pytest.raises(InputError, match='shard is'):
            Shard.parse(text)
