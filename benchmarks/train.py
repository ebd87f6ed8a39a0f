"""The train step of FMEN-S x4 on patches of 48x48: time in turn, temporary memory.

All contenders begin with the same weights and compute the same loss: float32, L1, Adam.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.torch_fmen import TorchFMEN
from benchmarks.turns import in_turn, ratio, rows
from fmen_jax import porting
from fmen_jax.compiler import jit
from fmen_jax.data.pipeline import unshuffle
from fmen_jax.models.fmen import FMENConfig
from fmen_jax.models.initial import initial_variables
from fmen_jax.training.optim import OptimConfig, make_optimizer
from fmen_jax.training.state import init_state
from fmen_jax.training.step import StepConfig, make_train_step

_RATE = 1e-4


def _batch(config: FMENConfig, size: int, patch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    lr = generator.integers(0, 256, (size, patch, patch, 3), np.uint8)
    return {'lr': lr, 'hr': lr.repeat(config.scale, 1).repeat(config.scale, 2)}


def _ours(
    config: FMENConfig, graph: Any, batch: dict[str, np.ndarray], *, plain: bool = False
) -> tuple[Callable[[], float], int]:
    """A step that returns its loss, and its temporary bytes; `plain` is jit without our options."""
    optimizer = make_optimizer(OptimConfig(learning_rate=_RATE, schedule='constant'), 1000)
    compile_ = jax.jit if plain else functools.partial(jit, libraries=True)
    module = config.build(graph, shuffle='image' if plain else 'none')
    step = compile_(make_train_step(module, optimizer, StepConfig()), donate_argnums=0)
    if not plain:
        batch = {'lr': batch['lr'], 'hr': unshuffle(batch['hr'], config.scale)}
    states = [init_state(initial_variables(config, graph), optimizer, ema=False)]
    compiled: Any = step.lower(states[0], batch).compile()

    def call() -> float:
        state, metrics = compiled(states.pop(), batch)
        states.append(state)
        return float(metrics.loss)

    return call, compiled.memory_analysis().temp_size_in_bytes


def _torch(
    config: FMENConfig, batch: dict[str, np.ndarray], *, channels_last: bool, compiled: bool
) -> Callable[[], float]:
    model = TorchFMEN(config, deploy=False)
    variables = initial_variables(config, 'expanded')
    state = porting.to_state_dict(variables, config, 'expanded')
    model.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).train()  # pyright: ignore[reportCallIssue]
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), _RATE, eps=1e-8)

    def call() -> float:
        lr, hr = (
            torch.from_numpy(batch[k]).permute(0, 3, 1, 2).float().contiguous(memory_format=layout)
            for k in ('lr', 'hr')
        )
        optimizer.zero_grad()
        loss = torch.nn.functional.l1_loss(run(lr), hr)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return call


def measure(*, quick: bool) -> dict[str, Any]:
    """Rows, and the ratios that matter."""
    config = FMENConfig(scale=4)
    found: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for size in (2,) if quick else (16, 64):
        batch = _batch(config, size, 16 if quick else 48)
        ours = {
            'ours, collapsed': _ours(config, 'collapsed', batch),
            'ours, expanded': _ours(config, 'expanded', batch),
            'ours, collapsed, plain jit': _ours(config, 'collapsed', batch, plain=True),
        }
        make = functools.partial(_torch, config, batch)
        torches = {
            'torch': make(channels_last=False, compiled=False),
            'torch, channels_last': make(channels_last=True, compiled=False),
        }
        if not quick:
            torches['torch, compiled'] = make(channels_last=False, compiled=True)
            torches['torch, channels_last, compiled'] = make(channels_last=True, compiled=True)
        calls = {name: call for name, (call, _) in ours.items()} | torches
        losses = {name: call() for name, call in calls.items()}
        times = in_turn(calls, 1 if quick else 7 if size < 64 else 3)
        for row in rows(times, batch=size):
            name = row['contender']
            temp = ours[name][1] if name in ours else None
            found.append({**row, 'first_loss': losses[name], 'temp_bytes': temp})
        best = min(torches, key=lambda name: float(np.median(times[name])))
        key = f'batch_{size}'
        summary[key] = {
            'speedup_vs_best_torch': ratio(times, best, 'ours, collapsed'),
            'best_torch': best,
            'speedup_vs_expanded': ratio(times, 'ours, expanded', 'ours, collapsed'),
            'speedup_vs_plain_jit': ratio(times, 'ours, collapsed, plain jit', 'ours, collapsed'),
            'temp_bytes_vs_expanded': ours['ours, collapsed'][1] / ours['ours, expanded'][1],
        }
    first = next(iter(summary.values()))
    return {
        'rows': found,
        'summary': summary,
        'speedup_vs_best_torch': first['speedup_vs_best_torch']['median'],
    }
