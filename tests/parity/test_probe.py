"""The probe as it is run by hand: what it reads, what it writes, and how it fails."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fmen_jax.parity import Dump

TENSOR = np.arange(3, dtype=np.float32)


@pytest.fixture
def probe(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as if it had been written with settings."""
    from fmen_jax.parity import probe

    monkeypatch.setattr(probe, 'SETTINGS', {'scale': 2})
    return probe


@pytest.mark.parametrize('name', ['a.safetensors', 'A.SAFETENSORS', 'a.pth'])
def test_wrappers_and_prefixes_are_removed_in_every_format(
    name: str, torch: Any, probe: Any, tmp_path: Path
) -> None:
    path, key = tmp_path / name, 'module.model.head.bias'
    if path.suffix == '.pth':
        torch.save({'epoch': 3, 'state_dict': {'params': {key: torch.from_numpy(TENSOR)}}}, path)
    else:
        path.write_bytes(safetensors.numpy.save({key: TENSOR}))
    ((found, value),) = probe.read_checkpoint(path).items()
    assert found == 'head.bias'
    np.testing.assert_array_equal(value.numpy(), TENSOR)


def _wrapped_in_itself() -> dict[str, Any]:
    tree: dict[str, Any] = {'epoch': 3}
    tree['params'] = tree
    return tree


@pytest.mark.parametrize(
    'tree', [{}, {'params': {}}, {'epoch': 3}, [], 3, {3: 3}, _wrapped_in_itself()]
)
def test_a_checkpoint_without_tensors(tree: Any, torch: Any, probe: Any, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / 'a.pth')
    with pytest.raises(probe.ProbeError, match='a.pth: holds no state dict, bare or under one of'):
        probe.read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
@pytest.mark.parametrize('content', [None, b'', b'0123456789'])
def test_an_unreadable_checkpoint_is_one_clear_line(
    name: str, content: bytes | None, probe: Any, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(probe.ProbeError, match=f'{name}: cannot be read as a ') as caught:
        probe.read_checkpoint(tmp_path / name)
    assert '\n' not in str(caught.value)


@pytest.mark.parity
def test_a_state_that_is_no_tensor_is_left_out(probed: Callable[..., Dump]) -> None:
    extra = 'def get_extra_state(self):\n        return {"a": 3}\n\n    '
    changes = ('def border(self, bn):', f'{extra}def border(self, bn):')
    dump = probed(changes, dtypes=('float64',), steps=1)
    assert dump.meta['faults'] == {'missing': [], 'unexpected': [], 'misshapen': {}}
    for prefix in ('state/', 'train/float64/steps/state/'):
        assert len(dump.below(prefix)) == len(dump.below('state/')) > 0
    assert not [name for name in dump.arrays if 'extra_state' in name]


@pytest.mark.parametrize(
    ('dump', 'message'),
    [
        ('dump', 'dump: expected a name that ends in .npz'),
        ('no/dump.npz', 'was not written: .*no'),
    ],
)
def test_a_dump_that_cannot_be_written_is_refused_before_the_work(
    dump: str, message: str, probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, 'probe', lambda *_: pytest.fail('the reference ran'))
    monkeypatch.setattr('sys.argv', ['probe.py', 'a.pth', 'code.py:FMEN', str(tmp_path / dump)])
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        probe.main()


def test_a_dump_is_written_whole_or_not_at_all(
    probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'dump.npz'
    monkeypatch.setattr(probe, 'probe', lambda *_: {'state/a': TENSOR})
    monkeypatch.setattr('sys.argv', ['probe.py', 'a.pth', 'code.py:FMEN', str(path)])
    probe.main()
    before = path.read_bytes()
    np.testing.assert_array_equal(Dump(path).arrays['state/a'], TENSOR)

    def on_a_full_disk(file: Path, **arrays: np.ndarray) -> None:
        file.write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(np, 'savez', on_a_full_disk)
    with pytest.raises(SystemExit, match='dump.npz was not written: .*No space left on device'):
        probe.main()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
