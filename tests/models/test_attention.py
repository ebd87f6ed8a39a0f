"""Attention blocks and the variants of FMEN that they and the linear blocks make."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmen_jax
from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.models import linear_blocks, zoo
from fmen_jax.models.attention import (
    ATTENTION,
    NoAttention,
    attention_class,
    register_attention,
    soft_pool,
)
from fmen_jax.models.cost import count_cost
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.models.layers import Conv
from fmen_jax.models.linear_blocks import BLOCKS, LinearBlock
from fmen_jax.models.reparam import fold
from fmen_jax.models.variant import VariantConfig
from fmen_jax.network import Network
from tests.helpers import assert_close, corrupted, differs

TINY: dict[str, Any] = {
    'scale': 2,
    'n_feats': 6,
    'mid_feats': 6,
    'down_blocks': 1,
    'up_blocks': (1, 1),
}
IMAGE = np.random.default_rng(1).uniform(0, 255, (1, 16, 19, 3))


def random_variables(config: VariantConfig, graph: Any = 'expanded') -> Any:
    """Initial variables in float64 with other gains, shifts and statistics of batch norms."""
    generator = np.random.default_rng(2)

    def leaf(path: Any, value: np.ndarray) -> np.ndarray:
        if path[-1].key in ('var', 'scale'):
            return generator.uniform(0.5, 2, value.shape)
        return value.astype(float) if value.dtype.kind == 'f' else value

    return jax.tree_util.tree_map_with_path(leaf, initial_variables(config, graph))


def run(config: VariantConfig, graph: Any, variables: Any, x: Any = IMAGE) -> Any:
    program = jax.jit(config.build(graph).apply).lower(variables, x)
    # compiling takes far longer than running
    return program.compile(compiler_options={'xla_backend_optimization_level': '0'})(variables, x)


# Each linear block and each attention once, and both backbones.
VARIANTS = [
    *(VariantConfig(**TINY, block=block) for block in BLOCKS if block != 'rrrb'),
    *(VariantConfig(**TINY, attention=name, backbone='RB') for name in ATTENTION),
]


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('config', VARIANTS, ids=lambda c: f'{c.backbone}-{c.block}-{c.attention}')
def test_folded_variants_are_the_train_graph(config: VariantConfig) -> None:
    variables = random_variables(config)
    expected = run(config, 'expanded', variables)
    folded = config.fold(variables)
    # float64, outputs of order 100
    assert_close(run(config, 'deploy', folded), expected, 1e-9)
    assert differs(run(config, 'deploy', corrupted(folded)), expected, 1e-9)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(
        jnp.shape, initial_variables(config, 'deploy')
    )


@pytest.mark.parametrize('graph', ['collapsed', 'deploy'])
def test_the_default_variant_is_an_fmen(graph: Any) -> None:
    sizes = {**TINY, 'up_blocks': (2, 1)}
    ours, theirs = VariantConfig(**sizes), FMENConfig(**sizes)
    variables = initial_variables(ours, graph, seed=3)
    jax.tree.map(np.testing.assert_array_equal, variables, initial_variables(theirs, graph, seed=3))
    x = IMAGE.astype(np.float32)
    np.testing.assert_array_equal(
        ours.build(graph).apply(variables, x), theirs.build(graph).apply(variables, x)
    )
    if graph == 'collapsed':
        jax.tree.map(np.testing.assert_array_equal, ours.fold(variables), fold(variables))
    assert ours.receptive_radius == theirs.receptive_radius


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', ['pa', 'ca', 'cca', 'lia', 'spab'])
def test_attention_is_that_of_pytorch(name: str, torch: Any) -> None:
    F = torch.nn.functional  # noqa: N806
    n = 18
    y, x = np.random.default_rng(0).normal(0, 2, (2, 2, 20, 15, n))
    module = attention_class(name)(n)
    variables = module.init(jax.random.key(0), y, x, train=False)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables)

    def conv(z: Any, key: str, **options: Any) -> Any:
        kernel, bias = (torch.tensor(variables['params'][key][k]) for k in ('kernel', 'bias'))
        return F.conv2d(z, kernel.permute(3, 2, 0, 1), bias, **options)

    t, skip = (torch.tensor(a).permute(0, 3, 1, 2) for a in (y, x))
    if name == 'pa':
        expected = t * conv(t, 'conv').sigmoid()
    elif name == 'spab':
        expected = (t + skip) * (t.sigmoid() - 0.5)
    elif name == 'lia':
        h = conv(t, 'conv1')
        h = F.avg_pool2d(h.exp() * h, 7, 3) / F.avg_pool2d(h.exp(), 7, 3)
        h = conv(conv(h, 'conv2', stride=2, padding=1), 'conv3', padding=1).sigmoid()
        h = F.interpolate(h, t.shape[2:], mode='bilinear', align_corners=False)
        expected = t * h * t[:, :1].sigmoid()
    else:
        h = t.mean((2, 3), keepdim=True)
        if name == 'cca':
            h = h + (t.var((2, 3), keepdim=True, unbiased=False) + 1e-6).sqrt()
        expected = t * conv(conv(h, 'conv_down').relu(), 'conv_up').sigmoid()
    found = module.apply(variables, y, x, train=False)
    assert_close(found, expected.permute(0, 2, 3, 1).numpy(), 1e-10)
    assert differs(module.apply(variables, y + 0.01, x, train=False), found, 1e-10)


def test_soft_pool_does_not_overflow() -> None:
    x = np.zeros((1, 9, 9, 1), np.float32)
    x[0, 0, 0], x[0, 8, 8] = 500, -500  # e^500 is not a float32
    pooled = np.asarray(soft_pool(x, 7, 2))[0, :, :, 0]
    np.testing.assert_allclose(pooled, [[500, 0], [0, 0]], atol=1e-5)


N, M, E = 20, 8, 4  # features, inside HFABs with one ERB, and the warm-up's
HAND = {
    'none': 0,
    'pa': N * N + N,
    'ca': 2 * N + N + 1,
    'cca': 2 * N + N + 1,
    'esa': (N * 5 + 5) + (5 * 5 + 5) + 4 * (9 * 25 + 5) + (5 * N + N),
    'esa_short': (N * 16 + 16) + (16 * 16 + 16) + 2 * (9 * 256 + 16) + (16 * N + N),
    'spab': 0,
    'lia': (N * 16 + 16) + (9 * 256 + 16) + (9 * 16 * N + N),
    'hfab': 2 * 9 * N * M + M + N + 2 * (9 * M * M + M),
    'hfab_no_bn': 2 * 9 * N * M + M + N + 2 * (9 * M * M + M),
}


@pytest.mark.parametrize('name', ATTENTION)
def test_parameter_counts_are_those_by_hand(name: str) -> None:
    def count(tree: Any) -> int:
        return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))

    x = jnp.zeros((1, 20, 20, N))
    module = attention_class(name)(N, 'deploy', M, 1)
    assert count(jax.eval_shape(module.init, jax.random.key(0), x, x, train=False)) == HAND[name]


def test_deploy_cost_does_not_depend_on_the_linear_block() -> None:
    costs = {
        block: count_cost(VariantConfig(**TINY, block=block).build(), 8, 8) for block in BLOCKS
    }
    assert len({*costs.values()}) == 1
    assert costs['ecb'] == count_cost(FMENConfig(**TINY).build(), 8, 8)


@pytest.mark.parametrize('block', ['ecb', 'repvgg'])
def test_checkpoints_store_the_configuration(block: str, tmp_path: Path) -> None:
    config = VariantConfig(**TINY, block=block, attention='pa', backbone='RB')
    net = Network(config, 'expanded', initial_variables(config, 'expanded', seed=5))
    for saved, name in ((net, 'train'), (net.fold(), 'deploy')):
        path = tmp_path / f'{name}.safetensors'
        saved.save(path)
        loaded = fmen_jax.load(path)
        assert loaded.config == config
        assert (loaded.graph == 'deploy') == (name == 'deploy')
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, saved.variables)
    with pytest.raises(InputError, match=r'save it as \.safetensors'):
        net.save(tmp_path / 'train.pt')


def test_a_block_of_ones_own_is_needed_for_the_train_graph_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_blocks, 'BLOCKS', blocks := dict(BLOCKS))

    @linear_blocks.register_block('double')
    class Double(LinearBlock):
        """Twice a convolution."""

        def layers(self) -> None:
            self.half = Conv(self.features, self.features)

        def expanded(self, x: Any, *, train: bool) -> Any:
            return 2 * self.half(x)

        @staticmethod
        def collapse(params: Any, statistics: Any) -> Any:
            return jax.tree.map(lambda leaf: 2 * leaf, params['half'])

    config = VariantConfig(**TINY, block='double', attention='none')
    net = Network(config, 'collapsed', initial_variables(config, 'collapsed'))
    net.save(tmp_path / 'train.safetensors')
    net.fold().save(tmp_path / 'deploy.safetensors')
    x = IMAGE.astype(np.float32)
    expected = net(x)
    del blocks['double']
    with pytest.raises(InputError, match=r"train.safetensors: no linear block 'double' is regist"):
        fmen_jax.load(tmp_path / 'train.safetensors')
    deployed = fmen_jax.load(tmp_path / 'deploy.safetensors')(x)
    np.testing.assert_allclose(deployed, expected, atol=1e-3)  # float32 in 0..255


def test_unknown_metadata_is_refused(tmp_path: Path) -> None:
    config = VariantConfig(**TINY, attention='none')
    path = tmp_path / 'x.safetensors'
    Network(config, 'deploy', initial_variables(config, 'deploy')).save(path)
    blob = path.read_bytes()
    path.write_bytes(blob.replace(b'VariantConfig\\"', b'SomethingElse\\"'))
    with pytest.raises(InputError, match='not known to this version'):
        fmen_jax.load(path)


def test_metadata_of_another_program_is_ignored(tmp_path: Path) -> None:
    config = FMENConfig(scale=2, n_feats=6, mid_feats=6, down_blocks=0, up_blocks=(1,))
    variables = initial_variables(config, 'deploy')
    state = porting.to_state_dict(variables, config, 'deploy')
    for text in ('train.yml', '{"lr": 1}', '[' * 100_000):
        porting.write(tmp_path / 'x.safetensors', state, {'config': text})
        assert fmen_jax.load(tmp_path / 'x.safetensors').config == config


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('scale', 4.0, 'scale is 4.0; expected int'),
        ('n_feats', True, 'n_feats is True; expected int'),
        ('n_feats', 10**30, 'expected 1 to 4096'),
        ('attention', ['hfab'], 'attention is ..hfab..; expected str'),
        ('up_blocks', [2.0, 1], 'up_blocks is .2.0, 1.; expected int each'),
        ('up_blocks', 3, 'not known to this version'),
        ('up_blocks', [1], 'up_blocks has 1 numbers'),
        ('up_blocks', [4000, 1], 'up_blocks adds up to 4001; expected 1000 blocks or fewer'),
        ('scale', 17, 'scale is 17; expected 1 to 16'),
    ],
)
def test_hyper_parameters_in_metadata_are_checked(name: str, value: Any, message: str) -> None:
    stored = json.loads(zoo.to_json(VariantConfig(**TINY), 'deploy'))
    with pytest.raises(InputError, match=message):
        zoo.from_json(json.dumps({**stored, name: value}))


@pytest.mark.parametrize('name', ['none', 'pa', 'ca', 'cca', 'spab', 'hfab'])
@pytest.mark.parametrize('backbone', ['ERB', 'RB'])
def test_onnx(name: str, backbone: Any) -> None:
    runtime = pytest.importorskip('onnxruntime')
    config = VariantConfig(**TINY, attention=name, backbone=backbone)
    net = Network(config, 'deploy', initial_variables(config, 'deploy'))
    session = runtime.InferenceSession(to_onnx(net), providers=['CPUExecutionProvider'])
    x = IMAGE.astype(np.float32)
    (found,) = session.run(None, {'lr': x.transpose(0, 3, 1, 2)})
    # float32 in 0..255
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), net(x), atol=1e-3)


def test_onnx_of_esa_is_refused() -> None:
    pytest.importorskip('onnx')
    config = VariantConfig(**TINY, attention='esa')
    net = Network(config, 'deploy', initial_variables(config, 'deploy'))
    with pytest.raises(InputError, match='LongESA has no ONNX nodes'):
        to_onnx(net)


def test_radius_is_known_where_tiles_are_exact() -> None:
    seeing_everything = {
        name for name in ATTENTION if not VariantConfig(attention=name).receptive_radius
    }
    assert seeing_everything == {'ca', 'cca', 'esa', 'esa_short', 'lia'}
    assert VariantConfig(attention='pa').receptive_radius == 4 + 2 * 4


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'backbone': 'XB'}, "backbone is 'XB'; expected ERB or RB"),
        ({'up_blocks': (1,)}, 'up_blocks has 1 numbers'),
        ({'up_blocks': (1, -1)}, 'expected 0 to 4096 each'),
        ({'mid_feats': 4}, 'mid_feats is 4; expected 5 to 4096'),
    ],
)
def test_settings_are_checked(changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VariantConfig(**{**TINY, **changes})


def test_names_and_fresh_statistics() -> None:
    with pytest.raises(InputError, match=r"an attention 'pa' already, .*PixelAttention"):
        register_attention('pa')(NoAttention)
    with pytest.raises(InputError, match="no attention 'mine' is registered; there are none, pa"):
        VariantConfig(attention='mine').build()
    with pytest.raises(InputError, match="no linear block 'mine' is registered"):
        initial_variables(VariantConfig(block='mine'), 'collapsed')
    with pytest.raises(InputError, match=r"train graph='expanded' first"):
        initial_variables(dataclasses.replace(VariantConfig(), block='dbb'), 'collapsed')
