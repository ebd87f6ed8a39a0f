"""A network of one file, as docs/architecture.md shows it, works everywhere in the package."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import fmen_jax
from fmen_jax.errors import InputError
from fmen_jax.export.onnx import to_onnx
from fmen_jax.export.stablehlo import to_stablehlo
from fmen_jax.models import zoo
from fmen_jax.models.cost import count_cost
from fmen_jax.network import Network
from tests.helpers import ROOT


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Any:
    text = (ROOT / 'docs/architecture.md').read_text()
    (example,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    names: dict[str, Any] = {'__name__': 'example'}
    exec(example, names)
    monkeypatch.setattr(zoo, 'CLASSES', (*zoo.CLASSES, names['TwoConvsConfig']))
    return names['TwoConvsConfig'](scale=2, n_feats=8)


@pytest.mark.slow
def test_a_new_network_is_one_file(config: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(0, 255, (1, 20, 24, 3)).astype(np.float32)
    variables = config.build().init(jax.random.key(0), x)
    network = Network(config, 'deploy', jax.tree.map(np.asarray, variables))
    network.save(tmp_path / 'two.safetensors')
    loaded = fmen_jax.load(tmp_path / 'two.safetensors')
    assert loaded.config == config
    np.testing.assert_array_equal(loaded(x), network(x))
    assert list(loaded.state_dict()) == ['first.weight', 'first.bias', 'last.weight', 'last.bias']
    image = x[0].astype(np.uint8)
    whole = fmen_jax.upscale(loaded, image, tile=0)
    assert whole.shape == (40, 48, 3)
    np.testing.assert_array_equal(fmen_jax.upscale(loaded, image, tile=9), whole)
    assert count_cost(config.build(), 4, 4).multiply_adds == 16 * 9 * (3 * 8 + 8 * 12)
    program = jax.export.deserialize(bytearray(to_stablehlo(loaded)))
    np.testing.assert_allclose(program.call(x), network(x), atol=1e-3)  # float32 in 0..255
    with pytest.raises(InputError, match='ONNX export does not support TwoConvsConfig'):
        to_onnx(loaded)
