"""Time and memory of the train step of FMEN-S x4 on patches of 48x48, measured in turn.

All contenders start from the same weights, compute the same L1 loss in float32, and take a step of
Adam. On CPUs that support bfloat16, contenders that compute in it are measured in the same rounds.
Temporary bytes are those planned by XLA; the additional memory of its libraries is included only in
the peak of a separate process.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from benchmarks import peak
from benchmarks.turns import in_turn, ratio, rows
from fmen_jax import porting
from fmen_jax.images.pixel_shuffle import pixel_unshuffle
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.runtime import onednn
from fmen_jax.runtime.compilation import jit
from fmen_jax.training.optimizer import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

RATE = 1e-4
SIZES = (16, 64)
OURS = 'ours, collapsed'
OURS_BFLOAT16 = 'ours, collapsed, bfloat16'
# For each contender: graph, compiler, and whether the loss is computed before the pixel shuffle.
_FORMS: dict[str, tuple[Any, Callable, bool]] = {
    OURS: ('collapsed', functools.partial(jit, onednn='large'), True),
    'ours, without oneDNN': ('collapsed', jit, True),
    'ours, plain jit': ('collapsed', jax.jit, False),
    'ours, expanded': ('expanded', functools.partial(jit, onednn='large'), True),
    OURS_BFLOAT16: ('collapsed', functools.partial(jit, onednn='large'), True),
}
TORCHES = (
    'torch',
    'torch, channels_last',
    'torch, compiled',
    'torch, channels_last, compiled',
)


TORCHES_BFLOAT16 = (
    'torch, bfloat16',
    'torch, channels_last, bfloat16',
    'torch, channels_last, compiled, bfloat16',
)


def ours(
    name: str, config: FMENConfig, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], float], int]:
    """Return a train step, whose calls return the loss, and its temporary bytes."""
    graph, compile_, early = _FORMS[name]
    dtype = 'bfloat16' if name == OURS_BFLOAT16 else 'float32'
    optimizer = make_optimizer(OptimConfig(learning_rate=RATE, schedule='constant'), 1000)
    module = config.build(graph, shuffle='none' if early else 'image')
    step = compile_(make_train_step(module, optimizer, StepConfig(dtype=dtype)), donate_argnums=0)
    if early:
        batch = {'lr': batch['lr'], 'hr': pixel_unshuffle(batch['hr'], config.scale)}
    states = [init_state(initial_variables(config, graph), optimizer, ema=False)]
    compiled: Any = step.lower(states[0], batch).compile()

    def call() -> float:
        state, metrics = compiled(states.pop(), batch)
        states.append(state)
        return float(metrics.loss)

    return call, compiled.memory_analysis().temp_size_in_bytes


def measure(*, quick: bool) -> dict[str, Any]:
    """Return rows of times and memory, and a summary of the most important ratios."""
    from benchmarks.torch_fmen import train_step  # here, as `peak` measures ours without PyTorch

    config = FMENConfig(scale=4)
    state = porting.to_state_dict(initial_variables(config, 'expanded'), config, 'expanded')
    bfloat16 = 'bfloat16' in onednn.supported_dtypes()
    found: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for size in (2, 3) if quick else SIZES:
        patch = 16 if quick else 48
        batch = peak.batch(config.scale, size, patch)
        forms = [name for name in _FORMS if bfloat16 or name != OURS_BFLOAT16]
        mine = {name: ours(name, config, batch) for name in forms}
        rivals = TORCHES[:2] if quick else TORCHES
        # On a CPU without bfloat16, a step of PyTorch in bfloat16 takes minutes.
        lower = (TORCHES_BFLOAT16[:2] if quick else TORCHES_BFLOAT16) if bfloat16 else ()
        torches = {
            name: train_step(name, config, batch, rate=RATE, state=state)
            for name in (*rivals, *lower)
        }
        calls = {name: call for name, (call, _) in mine.items()} | torches
        losses = {name: call() for name, call in calls.items()}
        times = in_turn(calls, 1 if quick else 7 if size < 64 else 5)
        del calls, torches  # frees memory for the processes below
        # Only at the first size, because compiling PyTorch again for each size takes a long time.
        alone = () if found else (OURS, 'torch') if quick else tuple(times)
        peaks = {name: peak.of(name, config, size, patch) for name in alone}
        for row in rows(times, batch=size):
            name = row['contender']
            temp = mine[name][1] if name in mine else None
            row |= {
                'dtype': 'bfloat16' if 'bfloat16' in name else 'float32',
                'first_loss': losses[name],
                'temp_bytes': temp,
                'process_peak': peaks.get(name),
            }
            found.append(row)
        best = _fastest(times, TORCHES)
        summary[f'batch_{size}'] = {
            'best_torch': best,
            'speedup_vs_best_torch': ratio(times, best, OURS),
            'speedup_vs_without_onednn': ratio(times, 'ours, without oneDNN', OURS),
            'speedup_vs_plain_jit': ratio(times, 'ours, plain jit', OURS),
            'speedup_vs_expanded': ratio(times, 'ours, expanded', OURS),
            'temp_bytes_vs_expanded': mine[OURS][1] / mine['ours, expanded'][1],
        }
        if bfloat16:
            best_lower = _fastest(times, TORCHES_BFLOAT16)
            summary[f'batch_{size}'] |= {
                'best_torch_bfloat16': best_lower,
                'bfloat16_vs_best_torch_bfloat16': ratio(times, best_lower, OURS_BFLOAT16),
                'bfloat16_vs_float32': ratio(times, OURS, OURS_BFLOAT16),
            }
        if best in peaks:
            summary[f'batch_{size}']['process_peak_vs_best_torch'] = peaks[OURS] / peaks[best]
    return {
        'rows': found,
        'summary': summary,
        # at the worst size
        'speedup_vs_best_torch': min(
            s['speedup_vs_best_torch']['median'] for s in summary.values()
        ),
    }


def _fastest(times: dict[str, list[float]], among: Iterable[str]) -> str:
    return min((n for n in among if n in times), key=lambda name: float(np.median(times[name])))
