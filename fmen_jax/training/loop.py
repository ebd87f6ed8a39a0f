"""The training loop: data in, checkpoints and a folded network out, exactly resumable."""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fmen_jax import __version__, parallel, pretrained
from fmen_jax.compiler import jit
from fmen_jax.config import FREE, Experiment, flat
from fmen_jax.data.pairs import Pair, find_pairs
from fmen_jax.data.pipeline import Batches, prefetched
from fmen_jax.data.sources import open_source, prepare
from fmen_jax.errors import FMENError, InputError
from fmen_jax.evaluation import benchmark, protocols
from fmen_jax.files import sha256, write_text
from fmen_jax.models import initial
from fmen_jax.models.layers import Params
from fmen_jax.training.checkpoint import Checkpoints
from fmen_jax.training.optim import make_optimizer
from fmen_jax.training.state import TrainState, init_state
from fmen_jax.training.step import Metrics, make_train_step

Report = Callable[[dict[str, Any]], object]


class DivergedError(FMENError):
    """The loss is not finite."""


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    upscaler: Callable[[pretrained.Network], Callable[[np.ndarray], np.ndarray]],
    report: Report = dict,  # which does nothing
) -> Path | None:
    """Train, or go on where the run in `workdir` stopped; the same command does both.

    Args:
      experiment: the settings, which are saved in `workdir`.
      workdir: gets config.json, metrics.jsonl, checkpoints/ and at the end weights.safetensors with
        its card.json.
      upscaler: makes of a folded network a function on 8-bit pictures, for validation.
      report: called with every record of the log.

    Returns:
      The folded weights; None if SIGTERM or Ctrl-C ended the run early, after a checkpoint.

    Raises:
      InputError: settings or data that cannot be, or another run's workdir.
      DivergedError: the loss was not finite; the last checkpoint is from before.
    """
    e = experiment
    rule = protocols.protocol(e.data.protocol)
    scale = e.model.scale
    pairs = find_pairs(Path(e.data.validation), scale) if e.data.validation else []
    if not e.data.train:
        raise InputError('data.train is empty: name folders of pictures to train on.')
    optimizer = make_optimizer(e.optim, e.loop.steps)
    _claim(workdir, e)
    sources = [open_source(prepare(name, scale, broken=e.data.broken)) for name in e.data.train]
    mesh = parallel.make_mesh()
    batches = Batches(
        sources, e.pipeline, process=jax.process_index(), processes=jax.process_count()
    )
    module = e.model.build(e.graph)
    state = init_state(initial_variables(e), optimizer, ema=e.step.ema_decay > 0)
    state = jax.device_put(state, parallel.replicated(mesh))
    checkpoints = Checkpoints(workdir / 'checkpoints', keep=e.loop.keep)
    try:
        if checkpoints.latest is not None:
            state = checkpoints.load(state, checkpoints.latest)
        run = _Run(e, workdir, checkpoints, report)
        step_function = jit(make_train_step(module, optimizer, e.step), donate_argnums=0)

        def validate(state: TrainState) -> float | None:
            return _validate(_network(e, state), pairs, rule, upscaler) if pairs else None

        def next_state(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            return step_function(state, parallel.split_batch(mesh, batch, e.pipeline.batch))

        with _signals() as stop:
            state, finished = run.loop(state, batches, next_state, validate, stop)
        if not finished:
            return None
        # A run without validation has no best state, and ends with its last.
        best = checkpoints.best if pairs else int(state.step)
        chosen = checkpoints.load(state, best) if best != int(state.step) and best else state
        return _finish(e, workdir, chosen, validate(chosen))
    finally:
        checkpoints.close()


class _Run:
    """What the loop needs besides the state: settings, log and clocks."""

    def __init__(
        self, experiment: Experiment, workdir: Path, checkpoints: Checkpoints, report: Report
    ) -> None:
        self._settings = experiment
        self._log = workdir / 'metrics.jsonl'
        self._checkpoints = checkpoints
        self._report = report

    def loop(
        self,
        state: TrainState,
        batches: Batches,
        next_state: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
        validate: Callable[[TrainState], float | None],
        stop: threading.Event,
    ) -> tuple[TrainState, bool]:
        """Run to the end, or until `stop`; the state, and whether it is the last one."""
        every, total = self._settings.loop, self._settings.loop.steps
        start = int(state.step)
        self._forget_after(start)
        ahead = prefetched(batches, self._settings.pipeline, start=start)
        pending: Metrics | None = None
        clock, waited, since = time.perf_counter(), 0.0, start
        for step in range(start + 1, total + 1):
            before = time.perf_counter()
            batch = next(ahead)
            waited += time.perf_counter() - before
            state, metrics = next_state(state, batch)
            if pending is not None:
                self._check(pending, step - 1)  # while this step is under way
            pending = metrics
            leaving = stop.is_set()
            if step % every.log_every == 0 or step == total or leaving:
                self._check(metrics, step)
                elapsed = time.perf_counter() - clock
                rate = (step - since) / elapsed
                self._record(
                    step=step,
                    loss=float(metrics.loss),
                    gradient_norm=float(metrics.gradient_norm),
                    images_per_second=rate * self._settings.pipeline.batch,
                    waited_for_data=waited / elapsed,
                    seconds_left=(total - step) / rate,
                )
                clock, waited, since = time.perf_counter(), 0.0, step
            validating = step % every.validate_every == 0 or step == total
            if validating or leaving or step % every.checkpoint_every == 0:
                self._check(metrics, step)
                psnr = validate(state) if validating and not leaving else None
                if psnr is not None:
                    self._record(step=step, validation_psnr=psnr)
                self._checkpoints.save(state, psnr=psnr)
                clock += time.perf_counter() - before if validating else 0.0
            if leaving and step < total:
                return state, False
        return state, True

    def _check(self, metrics: Metrics, step: int) -> None:
        if not math.isfinite(loss := float(metrics.loss)):
            raise DivergedError(
                f'the loss of step {step} is {loss}. The last checkpoint is of step '
                f'{self._checkpoints.latest}. Try a lower learning rate, clipped gradients or '
                'float32, in another workdir.'
            )

    def _record(self, **record: Any) -> None:
        if jax.process_index() == 0:
            with self._log.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
            self._report(record)

    def _forget_after(self, step: int) -> None:
        """Take the lines out of the log that the last run wrote after its last checkpoint."""
        if jax.process_index() == 0 and self._log.exists():
            lines = self._log.read_text(encoding='utf-8').splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            write_text(self._log, ''.join(f'{line}\n' for line in kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except ValueError:  # cut off by a kill
        return math.inf


def initial_variables(experiment: Experiment) -> Params:
    """The variables before the first step: drawn, or a checkpoint's.

    Raises:
      InputError: the checkpoint is of another network or graph.
    """
    e = experiment
    variables = initial.initial_variables(e.model, e.graph, seed=e.seed, start=e.start)
    if not e.init_from:
        return variables
    net = pretrained.load(e.init_from)
    net = net.fold() if e.graph == 'deploy' else net
    same = dataclasses.replace(e.model, scale=net.config.scale)
    if net.config != same or (net.graph == 'deploy') != (e.graph == 'deploy'):
        raise InputError(
            f'init_from {e.init_from} is a {"deploy" if net.graph == "deploy" else "train"} graph '
            f'of {net.config}; expected one of {same}'
            + (', or --graph deploy.' if net.graph == 'deploy' else '.')
        )
    given = jax.tree.map(
        lambda a: np.asarray(a, np.float32 if a.dtype.kind == 'f' else a.dtype), net.variables
    )
    if net.config.scale != e.model.scale:
        given['params']['tail_0'] = variables['params']['tail_0']
    return given


def _claim(workdir: Path, experiment: Experiment) -> None:
    """Save the settings in a new workdir; compare them with those of an old one."""
    path, now = workdir / 'config.json', flat(experiment)
    if path.exists():
        # a setting that is younger than the run had its default
        before = flat(Experiment()) | json.loads(path.read_text(encoding='utf-8'))
        changed = [
            f'\n  {name} is {now.get(name)}, was {before.get(name)}'
            for name in sorted(now.keys() | before.keys())
            if now.get(name) != before.get(name) and name not in FREE
        ]
        if changed:
            raise InputError(
                f'{workdir} holds a run with other settings: resume it with its own, or take '
                'another workdir (--init-from starts from its weights):' + ''.join(changed)
            )
    elif jax.process_index() == 0:
        write_text(path, json.dumps(now, indent=1) + '\n')


def _network(experiment: Experiment, state: TrainState) -> pretrained.Network:
    """The folded network of a state, with averaged parameters if there are any."""
    variables = jax.tree.map(np.asarray, jax.device_get(state.smoothed))
    if experiment.graph == 'deploy':
        variables.pop('batch_stats')
    return pretrained.Network(experiment.model, experiment.graph, variables).fold()


def _validate(network: Any, pairs: list[Pair], rule: Any, upscaler: Any) -> float:
    scale = network.config.scale
    scores = benchmark.evaluate(upscaler(network), pairs, scale=scale, protocol=rule)
    return float(np.mean([score.psnr for score in scores]))


def _finish(experiment: Experiment, workdir: Path, state: TrainState, psnr: float | None) -> Path:
    """Write the folded weights and their card."""
    path = workdir / 'weights.safetensors'
    network = _network(experiment, state)
    network.save(path)
    card = {
        'network': repr(network.config),
        'sha256': sha256(path),
        'step': int(state.step),
        'validation': experiment.data.validation,
        'protocol': str(protocols.protocol(experiment.data.protocol)),
        'psnr': psnr,
        'fmen_jax': __version__,
        'experiment': flat(experiment),
    }
    write_text(workdir / 'card.json', json.dumps(card, indent=1) + '\n')
    return path


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set; a second Ctrl-C ends the program at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def leave(number: int, frame: Any) -> None:
        del number, frame
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, leave) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
