"""The training loop: reads data, writes checkpoints and folded weights, and resumes exactly."""

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

from fmen_jax.data.batches import Batches, prefetched
from fmen_jax.data.prepared import open_source, prepare
from fmen_jax.errors import FMENError, InputError
from fmen_jax.files import write_text
from fmen_jax.runtime import devices
from fmen_jax.runtime.compilation import jit, supported_dtype
from fmen_jax.training.checkpoint import Checkpoints
from fmen_jax.training.experiment import FREE, Experiment, flat
from fmen_jax.training.log import Log, Report
from fmen_jax.training.optimizer import make_optimizer
from fmen_jax.training.results import first_variables, train_network, write_weights
from fmen_jax.training.state import TrainState, init_state
from fmen_jax.training.step import Metrics, make_train_step
from fmen_jax.training.validation import MakeUpscaler, Validation

# Number of steps before a trace begins. After them, compilation is over and the pipeline is full.
_BEFORE_TRACE = 5


class DivergedError(FMENError):
    """The loss or the parameters are not finite."""


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    upscaler: MakeUpscaler,
    report: Report = dict,  # has no effect
    profile: int = 0,
) -> Path | None:
    """Train a network, or resume the run in `workdir`; the same call does both.

    In a cluster, every process calls this function, with a workdir that all of them can access.

    Args:
      experiment: Settings of the run, which are saved in `workdir`.
      workdir: Folder for config.json, metrics.jsonl, tensorboard/, checkpoints/ and, at the end,
        weights.safetensors (folded) with its card.json, and train_weights.safetensors.
      upscaler: Function that makes an upscaler of 8-bit images from a folded network, for
        validation.
      report: Function that is called with every log record.
      profile: Number of steps of which a trace is written to workdir/profile, for TensorBoard or
        Perfetto.

    Returns:
      Path of the folded weights, or None if SIGTERM or Ctrl-C ended the run early, in which case a
      checkpoint was saved.

    Raises:
      InputError: If the settings or data are invalid, or `workdir` belongs to a different run.
      DivergedError: If the loss is not finite; the last checkpoint was saved before that.
      LostError: If another process of the cluster is lost; this process should exit and not wait
        for it.
    """
    e = experiment
    scale = e.model.scale
    validation = Validation(e.data.validation, e.data.protocol, scale, upscaler)
    if not e.data.train:
        raise InputError('data.train is empty: name folders of pictures to train on.')
    optimizer = make_optimizer(e.optim, e.loop.steps)
    _compare(workdir, e)
    sources = [open_source(prepare(name, scale, broken=e.data.broken)) for name in e.data.train]
    mesh = devices.make_mesh()
    batches = Batches(
        sources,
        e.pipeline,
        process=jax.process_index(),
        processes=jax.process_count(),
        unshuffled=True,
    )
    state = init_state(first_variables(e), optimizer, ema=e.step.ema_decay > 0)
    _claim(workdir, e)  # only after the data and weights were found
    state = devices.replicate(mesh, state)
    checkpoints: Checkpoints | None = Checkpoints(workdir / 'checkpoints', keep=e.loop.keep)
    log: Log | None = None
    tracing = _Tracing(workdir / 'profile', profile)
    try:
        if checkpoints.latest is not None:
            state = checkpoints.load(state, checkpoints.latest)
        log = Log(workdir, int(state.step), report)
        # The loss is computed before the pixel shuffle, because the shuffle needs more memory than
        # everything else.
        settings = e.step.on(jax.default_backend(), e.graph, e.pipeline.patch)
        settings = dataclasses.replace(settings, dtype=supported_dtype(settings.dtype))
        module = e.model.build(e.graph, packed=settings.packed, shuffle='none')
        step_function = jit(
            make_train_step(module, optimizer, settings, mesh), onednn='large', donate_argnums=0
        )

        def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            return step_function(state, devices.split_batch(mesh, batch, e.pipeline.batch))

        run = _Run(e, step, log, checkpoints, validation)
        with _signals() as stop, devices.watched():
            state, finished = run.loop(state, batches, stop, tracing)
        if not finished:
            return None
        # A run without validation has no best state; its last state is used instead.
        best = checkpoints.best if validation else None
        chosen = checkpoints.load(state, best) if best not in (None, int(state.step)) else state
        if jax.process_index() == 0:
            write_weights(e, workdir, chosen, checkpoints.psnr(int(chosen.step)))
        devices.wait_for_all('weights')
        return workdir / 'weights.safetensors'
    except (devices.LostError, InputError):
        if jax.process_count() > 1:
            checkpoints = None  # closing waits for all processes, which may never get here
        raise
    finally:
        if checkpoints:
            checkpoints.close()
        tracing.close()
        if log:
            log.close()


class _Run:
    """The loop over the steps, with everything that it needs besides the state."""

    def __init__(
        self,
        experiment: Experiment,
        step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
        log: Log,
        checkpoints: Checkpoints,
        validation: Validation,
    ) -> None:
        self._experiment = experiment
        self._step = step
        self._log = log
        self._checkpoints = checkpoints
        self._validation = validation

    def loop(
        self, state: TrainState, batches: Batches, stop: threading.Event, tracing: '_Tracing'
    ) -> tuple[TrainState, bool]:
        """Run to the last step or until `stop` is set; return the state and whether it finished."""
        every, total = self._experiment.loop, self._experiment.loop.steps
        start = int(state.step)
        ahead = prefetched(batches, self._experiment.pipeline, start=start)
        pending: Metrics | None = None
        clock, waited, since = time.perf_counter(), 0.0, start
        for step in range(start + 1, total + 1):
            tracing.before(step - start)
            before = time.perf_counter()
            batch = next(ahead)
            waited += time.perf_counter() - before
            state, metrics = self._step(state, batch)
            if pending is not None:
                self._check(pending, step - 1)  # while this step is running
            pending = metrics
            logging = step % every.log_every == 0 or step == total
            # Several processes agree to stop only where they synchronise anyway; a single process
            # stops at once.
            leaving = stop.is_set()
            if jax.process_count() > 1:
                leaving = logging and devices.any_process(leaving)
            if logging or leaving:
                self._check(metrics, step)
                elapsed = time.perf_counter() - clock
                rate = (step - since) / elapsed
                self._log.record(
                    step,
                    loss=float(metrics.loss),
                    gradient_norm=float(metrics.gradient_norm),
                    images_per_second=rate * self._experiment.pipeline.batch,
                    waited_for_data=waited / elapsed,
                    seconds_left=(total - step) / rate,
                )
                clock, waited, since = time.perf_counter(), 0.0, step
            validating = step % every.validate_every == 0 or step == total
            if validating or leaving or step % every.checkpoint_every == 0:
                self._check(metrics, step)
                self._check_parameters(state, step)
                before = time.perf_counter()
                due = validating and (step == total or not leaving)
                psnr = self._validate(state) if due else None
                self._checkpoints.save(state, psnr=psnr)
                clock += time.perf_counter() - before
            if leaving and step < total:
                return state, False
        return state, True

    def _validate(self, state: TrainState) -> float | None:
        """Return the validation PSNR in dB, which process 0 computes and sends to all processes."""
        if not self._validation:
            return None
        psnr = 0.0
        if jax.process_index() == 0:
            network = train_network(self._experiment, state).fold()
            psnr = self._validation(network, int(state.step), self._log)
        return devices.from_first_process(psnr)

    def _check(self, metrics: Metrics, step: int) -> None:
        if not math.isfinite(loss := float(metrics.loss)):
            raise self._diverged(f'the loss of step {step} is {loss}')

    def _check_parameters(self, state: TrainState, step: int) -> None:
        """Check what is about to be saved: the loss is that from before the last update."""
        leaves = jax.tree.leaves(jax.device_get((state.params, state.batch_stats, state.ema)))
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise self._diverged(f'the parameters after step {step} are not finite')

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f'{what}. The last checkpoint is of step {self._checkpoints.latest}. Try a lower '
            'learning rate, clipped gradients or float32, in another workdir.'
        )


class _Tracing:
    """Writes a trace of some steps, after the first steps, which include compilation."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder
        self._first, self._end = _BEFORE_TRACE + 1, _BEFORE_TRACE + 1 + steps
        self._active = False

    def before(self, count: int) -> None:
        """Start or stop the trace; call this before step number `count` of this run, from 1."""
        if count == self._first < self._end:
            jax.profiler.start_trace(self._folder)
            self._active = True
        elif count == self._end:
            self.close()

    def close(self) -> None:
        """Write the trace if one is being recorded."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False


def _compare(workdir: Path, experiment: Experiment) -> None:
    """Raise an InputError if `workdir` contains a run with different settings."""
    path, now = workdir / 'config.json', flat(experiment)
    if path.exists():
        # Settings that were added after the run began had their default values.
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


def _claim(workdir: Path, experiment: Experiment) -> None:
    """Save the settings, if `workdir` is new."""
    path = workdir / 'config.json'
    if jax.process_index() == 0 and not path.exists():
        write_text(path, json.dumps(flat(experiment), indent=1) + '\n')


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set; a second signal ends the program at once."""
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
