"""The benchmark's small form: all contenders compute the same; no times are asserted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.turns import ratio
from fmen_jax.runtime import onednn
from tests.helpers import ROOT


def quick(tmp_path: Path, *sections: str) -> dict[str, Any]:
    path = tmp_path / 'out.json'
    command = [sys.executable, 'scripts/benchmark.py', *sections, '--quick', '--json', str(path)]
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(path.read_text())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_all_contenders_of_the_train_step_have_the_same_loss(tmp_path: Path, torch: Any) -> None:
    found = quick(tmp_path, 'train')['train']
    for batch in (2, 3):
        rows = [row for row in found['rows'] if row['batch'] == batch]
        losses = [row['first_loss'] for row in rows if row['dtype'] == 'float32']
        assert len(losses) == 6
        # losses of about 126; float32 in other orders
        assert max(losses) - min(losses) < 1e-3
        lower = [row['first_loss'] for row in rows if row['dtype'] == 'bfloat16']
        assert len(lower) == (3 if 'bfloat16' in onednn.supported_dtypes() else 0)
        assert all(abs(loss - losses[0]) < 0.01 * losses[0] for loss in lower)
    assert {'speedup_vs_best_torch', 'summary'} <= found.keys()


@pytest.mark.slow
def test_all_contenders_of_inference_compute_the_same_picture(tmp_path: Path, torch: Any) -> None:
    found = quick(tmp_path, 'infer')['infer']
    same = [r['max_difference'] for r in found['rows'] if r['max_difference'] is not None]
    assert len(same) == 9
    assert max(same) < 0.01  # of 255, float32 in other orders
    assert {'xla_vs_best_torch', 'auto_vs_best_peer'} <= found.keys()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_jobs_and_startup_run(tmp_path: Path, torch: Any) -> None:
    """What they compute is compared elsewhere; they fail if a command does."""
    found = quick(tmp_path, 'jobs', 'startup')
    assert found['jobs']['summary']['large_peak_bytes'] > 2**20
    assert found['startup']['rows'][0]['seconds'] > 0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_memory_growth_data_and_their_plots_run(tmp_path: Path, torch: Any) -> None:
    found = quick(tmp_path, 'memory', 'growth', 'data', '--plots', str(tmp_path))
    assert {path.name for path in tmp_path.glob('*.png')} == {
        'performance_memory.png',
        'performance_growth.png',
    }
    assert found['data']['pipeline_vs_step'] > 0
    for row in found['memory']['rows']:
        if row['convolutions'] == 'oneDNN':  # what is alive is in temporary memory and the output
            live = sum(row['live_channels']) * row['height'] * row['width'] // 16 * 4
            output = row['height'] * row['width'] * 3 * 4
            assert row['temp_bytes'] * 0.99 <= live <= row['temp_bytes'] + output, row


def test_ratios_are_of_rounds() -> None:
    times = {'a': [2.0, 4.0, 9.0], 'b': [1.0, 2.0, 3.0]}
    assert ratio(times, 'a', 'b') == {'median': 2, 'low': 2, 'high': 2.5}
