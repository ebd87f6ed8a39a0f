"""The train step of FMEN-S x4 on patches of 48x48: time in turn, memory.

All contenders begin with the same weights and compute the same loss: float32, L1, Adam. Temporary
bytes are what XLA plans; what its libraries take besides is in the peak of a process of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import peak
from benchmarks.turns import in_turn, ratio, rows
from fmen_jax import porting
from fmen_jax.data.pipeline import unshuffle
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.runtime.compilation import jit
from fmen_jax.training.optim import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

RATE = 1e-4
SIZES = (16, 64)
OURS = 'ours, collapsed'
# how each is built: the graph, the compiler, and whether the loss is taken before the shuffle
_FORMS: dict[str, tuple[Any, Callable, bool]] = {
    OURS: ('collapsed', functools.partial(jit, onednn='large'), True),
    'ours, without oneDNN': ('collapsed', jit, True),
    'ours, plain jit': ('collapsed', jax.jit, False),
    'ours, expanded': ('expanded', functools.partial(jit, onednn='large'), True),
}
TORCHES = (
    'torch',
    'torch, channels_last',
    'torch, compiled',
    'torch, channels_last, compiled',
)


def ours(
    name: str, config: FMENConfig, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], float], int]:
    """A step that returns its loss, and its temporary bytes."""
    graph, compile_, early = _FORMS[name]
    optimizer = make_optimizer(OptimConfig(learning_rate=RATE, schedule='constant'), 1000)
    module = config.build(graph, shuffle='none' if early else 'image')
    step = compile_(make_train_step(module, optimizer, StepConfig()), donate_argnums=0)
    if early:
        batch = {'lr': batch['lr'], 'hr': unshuffle(batch['hr'], config.scale)}
    states = [init_state(initial_variables(config, graph), optimizer, ema=False)]
    compiled: Any = step.lower(states[0], batch).compile()

    def call() -> float:
        state, metrics = compiled(states.pop(), batch)
        states.append(state)
        return float(metrics.loss)

    return call, compiled.memory_analysis().temp_size_in_bytes


def measure(*, quick: bool) -> dict[str, Any]:
    """Rows, and the ratios that matter."""
    from benchmarks.torch_fmen import train_step  # here: `peak` measures ours without PyTorch

    config = FMENConfig(scale=4)
    state = porting.to_state_dict(initial_variables(config, 'expanded'), config, 'expanded')
    found: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for size in (2, 3) if quick else SIZES:
        patch = 16 if quick else 48
        batch = peak.batch(config.scale, size, patch)
        mine = {name: ours(name, config, batch) for name in _FORMS}
        torches = {
            name: train_step(name, config, batch, rate=RATE, state=state)
            for name in (TORCHES[:2] if quick else TORCHES)
        }
        calls = {name: call for name, (call, _) in mine.items()} | torches
        losses = {name: call() for name, call in calls.items()}
        times = in_turn(calls, 1 if quick else 7 if size < 64 else 5)
        del calls, torches  # what they hold is not to be in the way of the processes below
        # of the first size alone: compiling PyTorch anew for each takes its time
        alone = () if found else (OURS, 'torch') if quick else tuple(times)
        peaks = {name: peak.of(name, config, size, patch) for name in alone}
        for row in rows(times, batch=size):
            name = row['contender']
            temp = mine[name][1] if name in mine else None
            row |= {'first_loss': losses[name], 'temp_bytes': temp, 'process_peak': peaks.get(name)}
            found.append(row)
        best = min((n for n in times if n in TORCHES), key=lambda n: float(np.median(times[n])))
        summary[f'batch_{size}'] = {
            'best_torch': best,
            'speedup_vs_best_torch': ratio(times, best, OURS),
            'speedup_vs_without_onednn': ratio(times, 'ours, without oneDNN', OURS),
            'speedup_vs_plain_jit': ratio(times, 'ours, plain jit', OURS),
            'speedup_vs_expanded': ratio(times, 'ours, expanded', OURS),
            'temp_bytes_vs_expanded': mine[OURS][1] / mine['ours, expanded'][1],
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
