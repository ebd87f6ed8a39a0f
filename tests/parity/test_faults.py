"""Faults planted in PyTorch code, each of which must be found where it is and explained."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmen_jax import porting
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.variant import VariantConfig
from fmen_jax.network import Network
from fmen_jax.parity import Dump, assert_parity, compare, stages
from fmen_jax.parity.hypotheses import of_statistics
from fmen_jax.parity.report import Row
from fmen_jax.parity.stages import (
    FORWARD,
    NOISE,
    TRAIN,
    WEIGHTS,
    CompareConfig,
    compare_steps,
)
from tests.helpers import Golden, golden_dump, run_cli

Probed = Callable[..., Dump]

# This network, whose values are large, differs by 6.5e-13 of the range where it is equal.
TIGHT = CompareConfig(bound=1e-11)

ZEROS = '0 * self.expand_conv.bias'
SHUFFLE = """t = self.tail[0](h)
        n, c, height, width = t.shape
        t = t.view(n, self.scale, self.scale, 3, height, width).permute(0, 3, 4, 1, 5, 2)
        return t.reshape(n, 3, self.scale * height, self.scale * width)"""
TURNED = """class Turned(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight.transpose(2, 3), self.bias, padding=1)


class FMEN(nn.Module):"""
LR_CONV = 'self.lr_conv = nn.Conv2d(n, n, 3, padding=1)'
HEAD = 'x = self.head(x)'

FAULTS = {
    'slope': (
        [('lrelu_value = 0.1', 'lrelu_value = 0.05')],
        ('warmup.1.convs.0', 'in'),
        'the slope of every LeakyReLU is 0.05',
    ),
    'epsilon': (
        [
            ('BatchNorm2d(n_feats', 'BatchNorm2d(eps=1e-3, num_features=n_feats'),
            ('BatchNorm2d(mid_feats', 'BatchNorm2d(eps=1e-3, num_features=mid_feats'),
        ],
        ('warmup.1.bn1', 'out'),
        'the epsilon of the batch norms is 0.001',
    ),
    'pixel shuffle': ([('return self.tail(h)', SHUFFLE)], ('', 'out'), r'order \(dy, dx, c\)'),
    'zero border': (
        [('pad(out, self.expand_conv.bias)', f'pad(out, {ZEROS})')],
        ('warmup.1.convs.0.conv1.fea_conv', 'in'),
        'the RRRBs pad with zeros',
    ),
    'BGR': ([(HEAD, 'x = self.head(x.flip(1))')], ('head', 'in'), 'of the input are BGR'),
    'range': ([(HEAD, 'x = self.head(x / 255)')], ('head', 'in'), 'is divided by 255'),
    'transposed': (
        [('class FMEN(nn.Module):', TURNED), (LR_CONV, LR_CONV.replace('nn.Conv2d', 'Turned'))],
        ('lr_conv', 'out'),
        r'lr_conv.weight is transposed \(H and W',
    ),
    'missing key': (
        [(LR_CONV, LR_CONV.replace('padding=1', 'padding=1, bias=False'))],
        ('lr_conv', 'out'),
        'lr_conv.bias is zero',
    ),
}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_found_and_explained(name: str, network: Network, probed: Probed) -> None:
    changes, (layer, side), hypothesis = FAULTS[name]
    report = compare(network, probed(*changes, dtypes=('float64',)), TIGHT)
    assert not report.equal
    assert report.divergence is not None
    assert (report.divergence.layer, report.divergence.side) == (layer, side)
    (said,) = report.hypotheses
    assert re.search(hypothesis, said), said
    assert report.stage(WEIGHTS).equal == (name != 'missing key')
    if name == 'zero border':
        assert report.divergence.interior <= TIGHT.bound < report.divergence.frame
        assert 'only the outermost pixels differ' in report.text()
    if name == 'missing key':
        assert 'missing in the reference: lr_conv.bias' in report.text()


@pytest.mark.slow
@pytest.mark.parity
def test_the_code_without_a_fault_is_equal(network: Network, probed: Probed) -> None:
    """In-place additions included: `out += identity` follows the hook of fea_conv."""
    report = assert_parity(network, probed(steps=2), TIGHT)
    assert report.divergence is None
    assert report.hypotheses == []
    assert report.control is not None
    assert report.control.key.rpartition('.')[0] in report.control.text.partition('found at')[2]
    assert len(report.stage(NOISE).rows) == len(report.stage(FORWARD).rows) + 1


@pytest.mark.slow
@pytest.mark.parity
def test_a_variant_whose_attention_has_two_inputs(network: Network, probed: Probed) -> None:
    """Its variables are those of an FMEN, whose attention has one."""
    config = VariantConfig(scale=2, n_feats=6, mid_feats=8, down_blocks=1, up_blocks=(1, 1))
    variant = Network(config, 'expanded', network.variables)
    report = assert_parity(variant, probed(dtypes=('float64',)), TIGHT)
    assert 'warmup.1' in {row.name for row in report.stage(FORWARD).rows if row.local is not None}


@pytest.mark.parity
def test_momentum(network: Network, probed: Probed) -> None:
    changes = [
        (f'BatchNorm2d({name}', f'BatchNorm2d(momentum=0.01, num_features={name}')
        for name in ('n_feats', 'mid_feats')
    ]
    dump = probed(*changes, dtypes=('float64',), gradients=True)
    dump.arrays['train/float64/loss'] = -dump.arrays['train/float64/loss']
    report = compare(network, dump, TIGHT)
    assert report.stage(FORWARD).equal
    assert not next(row for row in report.stage(TRAIN).rows if row.name == 'loss').equal
    wrong = [row.name for row in report.stage(TRAIN).rows if row.name.startswith('stats/')]
    wrong = [row.name for row in report.stage(TRAIN).rows if not row.equal and row.name in wrong]
    assert wrong[0] == 'stats/warmup.1.bn1.running_mean'
    (said,) = report.hypotheses
    assert 'the momentum of the batch norms is 0.01 instead of 0.1' in said


@pytest.mark.slow
@pytest.mark.parity
def test_gradients_that_the_reference_lacks(network: Network, probed: Probed) -> None:
    """In the published code of the other key style, whose modules have other names."""
    changes = [
        ('self.ERBs', 'self.basic_blocks'),
        ('self.HFABs', 'self.hfabs'),
        ('self.lr_conv = nn', 'self.head.weight.requires_grad_(False)\n        self.lr_conv = nn'),
    ]
    dump = probed(*changes, dtypes=('float64',), gradients=True)
    del dump.arrays['train/float64/stats/hfabs.0.bn1.running_var']
    del dump.arrays['train/float64/stats/hfabs.0.bn1.num_batches_tracked']
    report = compare(network, dump, TIGHT)
    stage = report.stage(TRAIN)
    assert report.verdict == f'different: {TRAIN}'
    assert stage.faults == [
        'no gradient in the reference: head.weight',
        'no statistics after the step in the reference: HFABs.0.bn1.running_var',
    ]
    assert all(row.equal for row in stage.rows)
    assert len(stage.rows) == 2 + len(network.state_dict()) - 3


def test_values_after_the_last_step_that_the_reference_lacks(tiny_x2: Golden) -> None:
    dump = golden_dump(tiny_x2)
    run = list(tiny_x2.arrays['steps/loss']), tiny_x2.below('steps/final/')
    assert compare_steps(Dump(dump), {'float64': run}).equal
    del dump['train/float64/steps/state/warmup.1.bn1.num_batches_tracked']
    assert compare_steps(Dump(dump), {'float64': run}).equal
    del dump['train/float64/steps/state/head.weight']
    stage = compare_steps(Dump(dump), {'float64': run})
    assert stage.faults == ['no value after the last step in the reference: head.weight']
    assert not stage.equal


def test_a_negative_loss_is_a_difference(tiny_x2: Golden) -> None:
    dump = golden_dump(tiny_x2)
    dump['train/float64/steps/loss'] = -dump['train/float64/steps/loss']
    run = list(tiny_x2.arrays['steps/loss']), tiny_x2.below('steps/final/')
    losses = [row for row in compare_steps(Dump(dump), {'float64': run}).rows if 'loss' in row.name]
    assert len(losses) == len(run[0])
    assert not any(row.equal for row in losses)


def test_statistics_of_another_length_are_not_explained() -> None:
    before, theirs = ({'bn.running_mean': np.zeros(size)} for size in (3, 4))
    rows = {'stats/bn.running_mean': Row('stats/bn.running_mean', 1.0, 0.0)}
    assert of_statistics(before, theirs, rows, {'bn.running_mean': np.ones(3)}) == []


@pytest.mark.slow
def test_a_difference_at_a_single_pixel_is_reported() -> None:
    """The statistics of a batch of one pixel, a possible explanation, do not exist."""
    config = VariantConfig(scale=2, n_feats=2, mid_feats=5, down_blocks=0, up_blocks=(0,))
    network = Network(config, 'expanded', initial_variables(config, 'expanded'))
    arrays = {'input/a': np.ones((1, 3, 1, 1)), 'eval/float64/a/out': np.ones((1, 3, 2, 2))}
    report = compare(network, arrays)
    assert report.verdict == f'different: {FORWARD}'
    assert report.hypotheses == []


@pytest.mark.parity
def test_one_weight(network: Network, probed: Probed) -> None:
    params = dict(network.variables['params'])
    block = params['ERBs_0']['conv2']
    kernel = block['fea_conv']['kernel'].copy()
    kernel[1, 2, 3, 4] += 0.01
    changed = {**block, 'fea_conv': {**block['fea_conv'], 'kernel': kernel}}
    params['ERBs_0'] = {**params['ERBs_0'], 'conv2': changed}
    other = dataclasses.replace(network, variables={**network.variables, 'params': params})
    report = compare(other, probed(dtypes=('float64',)), TIGHT)
    (row,) = [row for row in report.stage(WEIGHTS).rows if not row.equal]
    assert (row.name, row.where) == ('ERBs.0.conv2.fea_conv.weight', (4, 3, 1, 2))
    assert f'1 of {kernel.size} values differ' in row.note
    assert report.divergence is not None
    assert report.divergence.layer == 'ERBs.0.conv2.fea_conv'


@pytest.mark.parity
def test_a_weight_that_the_checkpoint_lacks(network: Network, probed: Probed) -> None:
    gain = ('self.scale = scale', 'self.scale, self.gain = scale, nn.Parameter(torch.ones(1))')
    report = compare(network, probed(gain, dtypes=('float64',)), TIGHT)
    assert report.stage(FORWARD).equal
    assert 'the checkpoint lacks gain: the reference computes with its initial' in report.text()
    assert report.verdict == f'different: {WEIGHTS}'


@pytest.mark.parity
def test_a_hook_that_sees_an_addition_in_place(network: Network, probed: Probed) -> None:
    dump = probed(dtypes=('float64',))
    layer = 'ERBs.0.conv1'
    for case in dump.cases:
        maps = f'eval/float64/{case}/layers/{layer}'
        dump.arrays[f'{maps}.fea_conv/out'] += dump.arrays[f'{maps}.expand_conv/out']
    report = compare(network, dump, TIGHT)
    assert report.divergence is not None
    assert report.divergence.layer == f'{layer}.fea_conv'
    (said,) = report.hypotheses
    assert 'their maps were changed in place' in said


@pytest.mark.slow
@pytest.mark.exhaustive  # four faults, each with all hypotheses
@pytest.mark.parity
def test_other_explanations(network: Network, probed: Probed) -> None:
    mean = '(255 * torch.tensor([0.4488, 0.4371, 0.4040])).view(1, 3, 1, 1).to(x)'
    changes: list[tuple[str, list[Any]]] = [
        ('the output is clamped', [('return self.tail(h)', 'return self.tail(h).clamp(0, 255)')]),
        (
            'mean of DIV2K is subtracted from the input and added',
            [(HEAD, f'm = {mean}; x = self.head(x - m)'), ('self.tail(h)', 'self.tail(h) + m')],
        ),
        (
            'use the statistics of the batch',
            [
                (
                    'def forward(self, x):\n        x = self.head(x)',
                    'def forward(self, x):\n        self.train(x.numel() > 3); x = self.head(x)',
                )
            ],
        ),
        (
            'convolutions after batch norms pad with zeros',
            [
                ('pad(out, self.border(self.bn1))', 'F.pad(out, (1, 1, 1, 1))'),
                ('pad(out, self.border(self.bn2))', 'F.pad(out, (1, 1, 1, 1))'),
            ],
        ),
    ]
    for text, change in changes:
        report = compare(network, probed(*change, dtypes=('float64',)), TIGHT)
        assert any(text in said for said in report.hypotheses), (text, report.text())


def test_comparing_nothing_is_a_failure(network: Network) -> None:
    report = compare(network, {})
    assert not report.equal
    assert report.verdict == 'nothing was compared'
    with pytest.raises(AssertionError, match='nothing was compared'):
        assert_parity(network, {})


def test_python_without_assertions_compares_all_the_same(network: Network) -> None:
    """`python -O` removes them."""
    source = Path(stages.__file__).read_text(encoding='utf-8')
    namespace = {'__name__': stages.__name__}
    exec(compile(source, stages.__file__, 'exec', optimize=1), namespace)
    with pytest.raises(AssertionError, match='nothing was compared'):
        namespace['assert_parity'](network, {})


def test_comparing_weights_alone_is_a_failure(
    tiny_x2: Golden, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reference in float32 has nothing to compare with but its weights and pictures."""
    ported = porting.to_variables(tiny_x2.below('train/'))
    network = Network(ported.config, 'collapsed', ported.variables)
    everything = golden_dump(tiny_x2)
    dump = {k: v for k, v in everything.items() if not k.startswith(('train/', 'eval/'))}
    dump['eval/float32/golden/out'] = everything['eval/float64/golden/out'].astype(np.float32) / 2
    report = compare(network, dump)
    assert report.stage(WEIGHTS).equal
    assert not report.equal
    assert report.verdict.startswith('this comparison cannot fail: the reference has neither')
    np.savez(tmp_path / 'dump.npz', **dump)
    assert run_cli('parity', weights, '--reference', tmp_path / 'dump.npz') == 1
    assert capsys.readouterr().out.splitlines()[-1] == f'verdict: {report.verdict}'
    dump['state/tail.0.bias'] = dump['state/tail.0.bias'] + 1
    assert compare(network, dump).verdict == f'different: {WEIGHTS}'


@pytest.mark.parity
def test_a_control_that_is_not_found(network: Network, probed: Probed) -> None:
    """With a bound so wide that nothing is different, the comparison says that it cannot fail."""
    report = compare(network, probed(dtypes=('float64',)), CompareConfig(bound=1e3))
    assert not report.equal
    assert re.search(r'this comparison cannot fail: .* was NOT found: forward', report.verdict)


def test_a_number_that_is_not_finite_is_a_difference() -> None:
    from fmen_jax.parity.layers import difference

    nothing = np.full((1, 3, 3, 1), np.nan)
    assert difference(nothing, nothing).error == np.inf
    assert difference(np.zeros((1, 3, 3, 1)), np.zeros((1, 4, 4, 1))).error == np.inf
