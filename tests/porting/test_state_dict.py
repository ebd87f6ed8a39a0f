"""State dicts to variables and back: the rule, its inverse, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.porting import keys
from tests.helpers import Golden


def test_the_rule_and_its_inverse(tiny: Golden) -> None:
    for key in [*tiny.below('train/'), *(k for k in tiny.below('deploy/') if k != 'y')]:
        path = keys.to_path(key)
        assert path is not None
        assert keys.to_key(path) == key
    path = keys.to_path('HFABs.0.convs.1.conv1.fea_conv.weight')
    assert path == ('params', 'HFABs_0', 'convs_1', 'conv1', 'fea_conv', 'kernel')
    assert keys.to_path('HFABs.0.bn1.weight') == ('params', 'HFABs_0', 'bn1', 'scale')
    assert keys.to_path('HFABs.0.bn1.running_var') == ('batch_stats', 'HFABs_0', 'bn1', 'var')


@pytest.mark.parity
@pytest.mark.parametrize(
    ('name', 'key_style'), [('github.pt', 'github'), ('ntire2022.pth', 'ntire2022')]
)
def test_published_checkpoints_are_recognized(
    name: str, key_style: str, shared: Callable[[str], Path]
) -> None:
    ported = porting.to_variables(porting.read(shared(f'official/fmen_s_x4_{name}')))
    assert ported.config == FMENConfig()
    assert (ported.graph, ported.key_style, ported.wrapper) == ('deploy', key_style, '')


@pytest.mark.parity
def test_one_key_style_becomes_the_other(shared: Callable[[str], Path]) -> None:
    """The keys and order of each published file, from the other one's variables."""
    files = [
        porting.read(shared(f'official/fmen_s_x4_{n}')) for n in ('github.pt', 'ntire2022.pth')
    ]
    for this, other in (files, files[::-1]):
        ported = porting.to_variables(this)
        key_style = {'github': 'ntire2022', 'ntire2022': 'github'}[ported.key_style]
        state = porting.to_state_dict(
            ported.variables, ported.config, 'deploy', key_style=key_style
        )
        assert list(state) == list(other)
        assert [a.tobytes() for a in state.values()] == [a.tobytes() for a in this.values()]


@pytest.mark.parametrize(
    ('wrap', 'wrapper'),
    [
        (lambda state: {'state_dict': state, 'epoch': 3}, 'state_dict'),
        (lambda state: {'params': {}, 'params_ema': state}, 'params_ema'),
        (lambda state: {'model': {f'module.{k}': v for k, v in state.items()}}, 'model/module.'),
        (lambda state: {f'module.model.{k}': v for k, v in state.items()}, 'module./model.'),
    ],
)
def test_wrapped_checkpoints(
    wrap: Callable[[dict[str, Any]], dict[str, Any]], wrapper: str, tiny: Golden
) -> None:
    state = tiny.below('train/')
    ported = porting.to_variables(wrap(state))
    assert ported.wrapper == wrapper
    back = porting.to_state_dict(ported.variables, ported.config, ported.graph)
    assert all(back[key].tobytes() == state[key].tobytes() for key in state)


TRAIN_FAULTS = [
    ({'drop': 'head.weight'}, ['missing: head.weight']),
    ({'drop': 'ERBs.1.conv2.fea_conv.bias'}, ['missing: ERBs.1.conv2.fea_conv.bias']),
    ({'drop': 'HFABs.0.bn2.running_mean'}, ['missing: HFABs.0.bn2.running_mean']),
    ({'add': 'head.scale'}, ['unexpected: head.scale']),
    ({'add': 'extra.weight'}, ['unexpected: extra.weight']),
    (
        {'reshape': 'tail.0.weight'},
        [r'wrong shape: tail.0.weight is \(13, 8, 3, 3\), expected \(12'],
    ),
    ({'reshape': 'head.weight'}, [r'wrong shape: head.weight is \(9, 3, 3, 3\), expected \(8, 3']),
    ({'reshape': 'HFABs.1.squeeze.bias'}, [r'wrong shape: HFABs.1.squeeze.bias is \(9,\)']),
    ({'drop': 'lr_conv.bias', 'add': 'b'}, ['missing: lr_conv.bias', 'unexpected: b']),
    ({'retype': 'head.bias'}, ['wrong type: head.bias is int64, expected a floating']),
    ({'retype': 'tail.0.bias', 'to': 'complex64'}, ['wrong type: tail.0.bias is complex64']),
    ({'retype': 'tail.0.bias', 'to': 'bool'}, ['wrong type: tail.0.bias is bool']),
]


@pytest.mark.parametrize(('fault', 'messages'), TRAIN_FAULTS)
def test_faults_are_listed_in_one_error(
    fault: dict[str, str], messages: list[str], tiny_x2: Golden
) -> None:
    state = dict(tiny_x2.below('train/'))
    if key := fault.get('drop'):
        del state[key]
    if key := fault.get('add'):
        state[key] = np.zeros(3)
    if key := fault.get('reshape'):
        state[key] = np.concatenate([state[key], state[key][:1]])
    if key := fault.get('retype'):
        state[key] = state[key].astype(fault.get('to', 'int64'))
    with pytest.raises(InputError) as caught:
        porting.to_variables(state)
    for message in messages:
        caught.match(message)
    assert len(str(caught.value).splitlines()) == 1 + len(messages)


def test_one_tensor_under_two_names(tiny_x2: Golden) -> None:
    state = {k: v for k, v in tiny_x2.below('deploy/').items() if k != 'y'}
    state['basic_blocks.0.conv1.rep_conv.bias'] = state['ERBs.0.conv1.rep_conv.bias']
    with pytest.raises(InputError, match='two keys for one tensor'):
        porting.to_variables(state)


@pytest.mark.parametrize('tree', [{}, {'epoch': 3}, {'conv.weight': np.zeros((3, 3))}])
def test_other_checkpoints_are_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(InputError, match='[Ee]xpected'):
        porting.to_variables(tree)


def test_the_way_back_is_strict_too(tiny_x2: Golden) -> None:
    ported = porting.to_variables(tiny_x2.below('train/'))
    params = dict(ported.variables['params'])
    del params['lr_conv']
    with pytest.raises(InputError, match=r'missing: lr_conv.weight\n  missing: lr_conv.bias'):
        porting.to_state_dict({**ported.variables, 'params': params}, ported.config, 'collapsed')
    strangers = {'ema': ported.variables['params'], 'intermediates': {'a': np.zeros(3)}}
    with pytest.raises(InputError, match='unexpected: ema/ERBs_0/conv1/.*') as caught:
        porting.to_state_dict({**ported.variables, **strangers}, ported.config, 'collapsed')
    assert 'unexpected: intermediates/a' in str(caught.value)
    counts = {**ported.variables, 'batch_stats': dict(ported.variables['batch_stats'])}
    state = porting.to_state_dict(
        jax.tree.map(lambda a: a.astype(np.int32) if a.dtype.kind == 'i' else a, counts),
        ported.config,
        'collapsed',
    )
    assert state['warmup.1.bn1.num_batches_tracked'].dtype == np.int64
    with pytest.raises(InputError, match='no train graph is known'):
        porting.to_state_dict(ported.variables, ported.config, 'collapsed', key_style='ntire2022')
    with pytest.raises(
        InputError, match="key style 'basicsr' is unknown; expected github or ntire"
    ):
        porting.to_state_dict(ported.variables, ported.config, 'collapsed', key_style='basicsr')
