"""The training loop: reads data, writes checkpoints and folded weights, and resumes exactly."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fmen_jax.data.batches import Batches, prefetched
from fmen_jax.data.prepared import Source, open_source, prepare
from fmen_jax.errors import FMENError, InputError
from fmen_jax.runtime import devices
from fmen_jax.runtime.compilation import jit, supported_dtype
from fmen_jax.training import workdir as workdirs
from fmen_jax.training.checkpoint import Checkpoints
from fmen_jax.training.experiment import Experiment
from fmen_jax.training.log import Log, Report
from fmen_jax.training.optimizer import make_optimizer
from fmen_jax.training.results import first_variables, train_network, write_weights
from fmen_jax.training.state import TrainState, init_state
from fmen_jax.training.step import Metrics, StepConfig, make_train_step
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
    report: Report | None = None,
    profile: int = 0,
) -> Path | None:
    """Train a network, or resume the run in `workdir`; the same call does both.

    In a cluster, every process calls this function, with a workdir that all of them can access.

    Args:
      experiment: Settings of the run, which are saved in `workdir`.
      workdir: Folder for config.json, data.json, metrics.jsonl, tensorboard/, checkpoints/ and, at
        the end, weights.safetensors (folded) with its card.json, and train_weights.safetensors.
      upscaler: Function that makes an upscaler of 8-bit images from a folded network, for
        validation.
      report: Function that is called with every log record.
      profile: Number of steps of which a trace is written to workdir/profile, for TensorBoard or
        Perfetto.

    Returns:
      Path of the folded weights, or None if SIGTERM or Ctrl-C ended the run early, in which case a
      checkpoint was saved.

    Raises:
      InputError: If the settings or data are invalid, `workdir` belongs to a run with other
        settings or images, or another process uses it.
      CheckpointError: If there are checkpoints, but none of them can be read.
      DivergedError: If the loss or the parameters are not finite; the last checkpoint was saved
        before that.
      LostError: If another process of the cluster is lost; this process should exit and not wait
        for it.
    """
    workdirs.check_settings(workdir, experiment)
    inputs = _read_inputs(experiment, upscaler)
    with devices.watched(), workdirs.locked(workdir):
        workdirs.claim(workdir, experiment, inputs.sources)
        mesh = devices.make_mesh()
        first = devices.replicate(mesh, inputs.state)
        keep_last = experiment.loop.keep_last
        with Checkpoints(workdir / 'checkpoints', keep_last=keep_last) as checkpoints:
            state = checkpoints.load_latest(first) or first
            with (
                closing(Log(workdir, int(state.step), report)) as log,
                closing(_Tracing(workdir / 'profile', profile)) as tracing,
                stop_signals() as stop,
            ):
                run = _Run(experiment, inputs.validation, checkpoints, log, stop)
                update = _make_update(experiment, inputs.optimizer, mesh)
                state = run.train(state, update, inputs.batches, tracing)
            if state is None:
                return None
            return _write_results(experiment, workdir, checkpoints, state)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What a run reads before it writes anything."""

    validation: Validation
    sources: list[Source]
    batches: Batches
    optimizer: optax.GradientTransformation
    state: TrainState
    """State before the first step."""


def _read_inputs(experiment: Experiment, upscaler: MakeUpscaler) -> _Inputs:
    """Check the images for validation, prepare those for training, and read or draw the weights."""
    e, scale = experiment, experiment.model.scale
    check_trainable(e)
    _check_split(e)
    validation = Validation(e.data.validation, e.data.protocol, scale, upscaler)
    if not e.data.train:
        raise InputError('data.train is empty: name one or more folders of training images.')
    sources = [open_source(prepare(name, scale, broken=e.data.broken)) for name in e.data.train]
    batches = Batches(
        sources,
        e.pipeline,
        process=jax.process_index(),
        processes=jax.process_count(),
        unshuffled=True,
    )
    optimizer = make_optimizer(e.optim, e.loop.steps)
    state = init_state(first_variables(e), optimizer, ema=e.step.ema_decay > 0)
    return _Inputs(validation, sources, batches, optimizer, state)


def module_to_train(experiment: Experiment) -> tuple[nn.Module, StepConfig]:
    """Return the network without its pixel shuffle, and the settings of its step on this machine.

    The loss is computed before the pixel shuffle, because the shuffle needs more memory than
    everything else.
    """
    e = experiment
    settings = e.step.on(jax.default_backend(), e.graph, e.pipeline.patch)
    return e.model.build_for_training(e.graph, settings.packed), settings


def check_trainable(experiment: Experiment) -> None:
    """Raise InputError if the network cannot be trained with these settings; traces it once."""
    module, _ = module_to_train(experiment)
    side = experiment.pipeline.patch
    patch = jax.ShapeDtypeStruct((1, side, side, experiment.model.n_colors), jnp.float32)
    jax.eval_shape(module.init, jax.random.key(0), patch)


def _check_split(experiment: Experiment) -> None:
    """Raise InputError if the batch cannot be split over the devices."""
    step, batch, count = experiment.step, experiment.pipeline.batch, jax.device_count()
    if batch % count:
        raise InputError(
            f'pipeline.batch is {batch}, which cannot be split evenly over {count} devices: choose '
            'a multiple.'
        )
    if step.statistics == 'device' and batch // count % step.accumulate:
        raise InputError(
            f'step.accumulate is {step.accumulate}, which does not divide the {batch // count} '
            f'patches on each of {count} devices: choose a divisor, as step.statistics is device.'
        )


Update = Callable[[TrainState, dict[str, np.ndarray]], tuple[TrainState, Metrics]]


def _make_update(
    experiment: Experiment, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Update:
    """Return the compiled training step, as a function of the state and this process's batch."""
    module, settings = module_to_train(experiment)
    settings = dataclasses.replace(settings, dtype=supported_dtype(settings.dtype))
    step = jit(make_train_step(module, optimizer, settings, mesh), onednn='large', donate_argnums=0)

    def update(state: TrainState, batch: dict[str, np.ndarray]) -> tuple[TrainState, Metrics]:
        return step(state, devices.split_batch(mesh, batch, experiment.pipeline.batch))

    return update


class _Run:
    """The steps of a run, with their log records, validations and checkpoints."""

    def __init__(
        self,
        experiment: Experiment,
        validation: Validation,
        checkpoints: Checkpoints,
        log: Log,
        stop: threading.Event,
    ) -> None:
        """Create a run that ends early when `stop` is set."""
        self._experiment = experiment
        self._validation = validation
        self._checkpoints = checkpoints
        self._log = log
        self._stop = stop

    def train(
        self, state: TrainState, update: Update, batches: Batches, tracing: '_Tracing'
    ) -> TrainState | None:
        """Train to the last step and return its state; None if the run was stopped."""
        every, total = self._experiment.loop, self._experiment.loop.steps
        start = int(state.step)
        # A run that was stopped in a validation resumes with that validation.
        if not self._validate_if_due(state):
            return None
        ahead = prefetched(batches, self._experiment.pipeline, start=start)
        pending: Metrics | None = None
        meter = _Meter(start)
        for step in range(start + 1, total + 1):
            tracing.before(step - start)
            with meter.waiting():
                batch = next(ahead)
            state, metrics = update(state, batch)
            if pending is not None:
                self._check_loss(pending, step - 1)  # while this step is running
            pending = metrics
            logging = step % every.log_every == 0 or step == total
            leaving = self._agreed_to_stop(logging)
            if logging or leaving:
                self._check_loss(metrics, step)
                self._record(step, metrics, meter)
            validating = step % every.validate_every == 0 or step == total
            if leaving or validating or step % every.checkpoint_every == 0:
                self._check_loss(metrics, step)
                self._check_parameters(state)
                with meter.paused():
                    validated = not leaving and self._validate_if_due(state)
                    self._checkpoints.save(state)
                if not validated:
                    return None
        return state

    def _agreed_to_stop(self, logging: bool) -> bool:
        """Return whether all processes stop after this step.

        A single process stops at once. Several processes agree only in steps that are logged, in
        which they wait for each other anyway.
        """
        if jax.process_count() == 1:
            return self._stop.is_set()
        return logging and devices.any_process(self._stop.is_set())

    def _record(self, step: int, metrics: Metrics, meter: '_Meter') -> None:
        """Log the metrics of a step, and the speed since the last record."""
        rate, waited = meter.read(step)
        self._log.record(
            step,
            loss=float(metrics.loss),
            gradient_norm=float(metrics.gradient_norm),
            images_per_second=rate * self._experiment.pipeline.batch,
            waited_for_data=waited,
            seconds_left=(self._experiment.loop.steps - step) / rate,
        )

    def _validate_if_due(self, state: TrainState) -> bool:
        """Validate a state if its step requires it and has no PSNR yet.

        Process 0 computes the PSNR and sends it to all processes. Returns False if the run was
        stopped before the validation was complete.
        """
        step, loop = int(state.step), self._experiment.loop
        required = step > 0 and (step % loop.validate_every == 0 or step == loop.steps)
        if not (self._validation and required and self._checkpoints.psnr(step) is None):
            return True
        psnr, stopped = 0.0, False
        if jax.process_index() == 0:
            network = train_network(self._experiment, state).fold()
            found = self._validation(network, step, self._log, self._stop.is_set)
            psnr, stopped = found or 0.0, found is None
        if devices.any_process(stopped):
            return False
        self._checkpoints.record_psnr(step, devices.from_first_process(psnr) or 0.0)
        return True

    def _check_loss(self, metrics: Metrics, step: int) -> None:
        if not math.isfinite(loss := float(metrics.loss)):
            raise self._diverged(f'the loss of step {step} is {loss}')

    def _check_parameters(self, state: TrainState) -> None:
        """Check what is about to be saved: the loss is that from before the last update."""
        leaves = jax.tree.leaves(jax.device_get((state.params, state.batch_stats, state.ema)))
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise self._diverged(f'the parameters after step {int(state.step)} are not finite')

    def _diverged(self, finding: str) -> DivergedError:
        latest = self._checkpoints.latest
        saved = 'No checkpoint was saved'
        if latest is not None:
            saved = f'The last checkpoint is of step {latest}'
        return DivergedError(
            f'{finding}. {saved}. Try a lower learning rate, gradient clipping '
            '(--optim.clip-norm) or float32, in another workdir.'
        )


def _write_results(
    experiment: Experiment, workdir: Path, checkpoints: Checkpoints, last: TrainState
) -> Path:
    """Write the folded weights of the best state, or of the last one without validation."""
    best = checkpoints.load_best(last) if experiment.data.validation else last
    if jax.process_index() == 0:
        write_weights(experiment, workdir, best, checkpoints.psnr(int(best.step)))
    devices.wait_for_all('weights')
    return workdir / 'weights.safetensors'


class _Meter:
    """Measures the speed of training and the time spent waiting for data between two readings."""

    def __init__(self, step: int) -> None:
        self._start(step)

    def _start(self, step: int) -> None:
        self._step, self._since, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which training waits for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def read(self, step: int) -> tuple[float, float]:
        """Return steps per second and the fraction of time spent waiting; start anew."""
        elapsed = time.perf_counter() - self._since
        values = (step - self._step) / elapsed, self._waited / elapsed
        self._start(step)
        return values


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


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set; a second signal ends the program at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Only the main thread can handle signals.
        return

    def set_stop(number: int, frame: Any) -> None:
        del number, frame
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, set_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
