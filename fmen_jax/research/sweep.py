"""Many runs at once, on the same batches: members that differ in their seed or in a setting.

The members of a sweep share the network, the data and one compiled step, of which the settings that
differ are arguments. Each member ends as an ordinary run, equal to that of `fmen-jax train`.

The step runs for one member after another, or for one member on each device. This is faster than
one program that maps over the members: the compiler then puts the convolutions inside a loop, which
made a step 4 to 10 times slower on a CPU (docs/research.md).
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fmen_jax.data.batches import Batches, prefetched
from fmen_jax.data.prepared import open_source, prepare
from fmen_jax.errors import InputError
from fmen_jax.files import write_text
from fmen_jax.runtime import devices
from fmen_jax.runtime.compilation import jit, supported_dtype
from fmen_jax.training import workdir as workdirs
from fmen_jax.training.checkpoint import Checkpoints
from fmen_jax.training.experiment import Experiment
from fmen_jax.training.log import Log, Report
from fmen_jax.training.loop import DivergedError, check_trainable, module_to_train, stop_signals
from fmen_jax.training.optimizer import OptimConfig, make_optimizer
from fmen_jax.training.results import first_variables, train_network, write_weights
from fmen_jax.training.state import TrainState, init_state
from fmen_jax.training.step import make_train_step
from fmen_jax.training.validation import MakeUpscaler, Validation

VARIABLE = ('learning_rate', 'floor', 'b1', 'b2', 'eps', 'beta', 'weight_decay')
"""Settings of the optimizer that can differ between members."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    """Name of the member, which is that of its folder."""
    experiment: Experiment
    varied: tuple[str, ...] = ()
    """Settings of the optimizer that differ between the members."""

    @property
    def numbers(self) -> dict[str, float]:
        """Values of the settings that differ."""
        return {name: getattr(self.experiment.optim, name) for name in self.varied}


@dataclasses.dataclass(frozen=True)
class MemberResult:
    """What became of a member."""

    name: str
    seed: int
    numbers: dict[str, float]
    """Values of the settings that differ between the members."""
    psnr: float | None
    """Validation PSNR in dB of the weights in its folder; None without validation or weights."""
    step: int | None
    """Step of these weights; None if there are none."""
    diverged: int | None
    """Step at which the loss or the parameters were not finite; None if they always were."""


class SweepState(flax.struct.PyTreeNode):
    """State of all members, as it is saved in a checkpoint."""

    step: Array
    """Number of updates so far, int32."""
    members: TrainState
    """States of the members, with a leading axis [K]."""
    diverged: Array
    """Step at which each member diverged [K], int32; 0 if it did not."""


def make_members(
    experiment: Experiment,
    seeds: Sequence[int],
    vary: Mapping[str, Sequence[float]] | None = None,
) -> list[Member]:
    """Return the members of a sweep: all combinations of the seeds and the varied settings.

    Args:
      experiment: settings of all members, except for `seed` and what is varied.
      seeds: seeds for the initial weights. Batches have their own seed, which all members share.
      vary: values by name of a setting, such as {'optim.learning_rate': (1e-3, 2e-3)}.

    Raises:
      InputError: If there are no members, two are the same, or a setting cannot be varied.
    """
    vary = vary or {}
    for name in vary:
        if name.removeprefix('optim.') not in VARIABLE or not name.startswith('optim.'):
            raise InputError(
                f'{name} cannot be varied in a sweep; expected one of '
                f'{", ".join(f"optim.{known}" for known in VARIABLE)}. For settings that change '
                'the network or the program, use an ablation (fmen-jax ablate).'
            )
    fields = tuple(name.removeprefix('optim.') for name in vary)
    members = []
    for values in itertools.product(*vary.values()):
        for seed in seeds:
            numbers = dict(zip(fields, map(float, values), strict=True))
            optim = dataclasses.replace(experiment.optim, **numbers)
            name = '-'.join(
                [*(f'{field}={value:g}' for field, value in numbers.items()), f'seed{seed}']
            )
            member = dataclasses.replace(experiment, seed=seed, optim=optim)
            members.append(Member(name, member, fields))
    if not members:
        raise InputError('the sweep has no members: name one seed or more.')
    names = [member.name for member in members]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f'the sweep has {", ".join(doubled)} more than once: name each once.')
    return members


def sweep(
    members: Sequence[Member],
    workdir: Path,
    *,
    upscaler: MakeUpscaler,
    report: Callable[[str, dict[str, Any]], object] = lambda *_: None,
) -> list[MemberResult] | None:
    """Train all members, or resume the sweep in `workdir`; the same call does both.

    All members see the same batches. A member whose loss or parameters are not finite is stopped,
    while the others go on.

    Args:
      members: the runs, see `make_members`.
      workdir: folder for checkpoints/, which holds all members, sweep.json with the results, and
        one folder for each member, which is like that of `training.loop.train`.
      upscaler: function that makes an upscaler of 8-bit images from a folded network.
      report: function that is called with the name of a member and each of its log records.

    Returns:
      The results in the order of the members, or None if SIGTERM or Ctrl-C ended the sweep early,
      in which case a checkpoint was saved.

    Raises:
      InputError: If the settings or data are invalid, `workdir` belongs to a different sweep, or
        another process uses it.
      DivergedError: If all members diverged.
    """
    e = members[0].experiment
    if jax.process_count() > 1:
        raise InputError('a sweep runs in one process; several were started.')
    if not e.data.train:
        raise InputError('data.train is empty: name folders of pictures to train on.')
    check_trainable(e)
    validation = Validation(e.data.validation, e.data.protocol, e.model.scale, upscaler)
    for member in members:
        workdirs.check_settings(workdir / member.name, member.experiment)
    sources = [
        open_source(prepare(name, e.model.scale, broken=e.data.broken)) for name in e.data.train
    ]
    batches = Batches(sources, e.pipeline, unshuffled=True)
    states = _Rounds(members)
    with workdirs.locked(workdir):
        _check_members(workdir, [member.name for member in members])
        for member in members:
            workdirs.claim(workdir / member.name, member.experiment, sources)
        with Checkpoints(workdir / 'checkpoints', keep_last=e.loop.keep_last) as checkpoints:
            like: Any = states.saved()
            saved: Any = checkpoints.load_latest(like)
            if saved is not None:
                states.restore(saved)
            with (
                stop_signals() as stop,
                contextlib.closing(
                    _Sweep(members, workdir, states, checkpoints, validation, report, stop)
                ) as run,
            ):
                return run.finish() if run.loop(batches) else None


def _check_members(workdir: Path, names: Sequence[str]) -> None:
    """Record the members of a new sweep; raise InputError if `workdir` has those of another one.

    A checkpoint holds the states of all members in their order, but not their names.
    """
    path = workdir / 'members.json'
    if not path.exists():
        write_text(path, json.dumps(names) + '\n')
        return
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise InputError(f'{path} is broken ({error}): choose another workdir.') from error
    if before != names:
        raise InputError(
            f'{workdir} contains a sweep of {", ".join(before)}; expected {", ".join(names)}. Use '
            'the same members in the same order, or choose another workdir.'
        )


class _Rounds:
    """The states of all members, in rounds of one member on each device."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Compute the initial states."""
        count = len(members)
        available = jax.devices()
        # as many devices as divide the members evenly
        self.width = max(n for n in range(1, len(available) + 1) if count % n == 0)
        self._mesh = devices.make_mesh(devices=available[: self.width])
        self.step = 0
        self.diverged = [0] * count
        self._states = self._split([_first_state(member) for member in members])
        self._numbers = [
            self._put([{k: np.float32(v) for k, v in m.numbers.items()} for m in part])
            for part in self._parts(members)
        ]
        self._program = self._compile(members[0].experiment)

    def _parts(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        return [items[i : i + self.width] for i in range(0, len(items), self.width)]

    def _put(self, trees: Sequence[Any]) -> Any:
        """Stack trees of one round, one on each device; a single one has no leading axis.

        With the axis the compiler fuses differently, and the results differ in the last bits.
        """
        if self.width == 1:
            return devices.replicate(self._mesh, trees[0])
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
        return jax.device_put(stacked, devices.over_data(self._mesh))

    def _split(self, states: Sequence[Any]) -> list[TrainState]:
        return [self._put(part) for part in self._parts(states)]

    def _compile(self, e: Experiment) -> Any:
        module, settings = module_to_train(e)
        settings = dataclasses.replace(settings, dtype=supported_dtype(settings.dtype))

        def step(numbers: Any, state: TrainState, batch: Any) -> Any:
            optimizer = make_optimizer(_with_numbers(e.optim, numbers), e.loop.steps)
            return make_train_step(module, optimizer, settings)(state, batch)

        def on_one_device(numbers: Any, state: TrainState, batch: Any) -> Any:
            numbers, state = jax.tree.map(lambda leaf: leaf[0], (numbers, state))
            return jax.tree.map(lambda leaf: leaf[None], step(numbers, state, batch))

        if self.width > 1:
            several = devices.one_on_each_device(on_one_device, self._mesh)
            return jit(several, onednn='large', donate_argnums=1)
        return jit(step, onednn='large', donate_argnums=1)

    def update(self, batch: Mapping[str, np.ndarray]) -> list[Any]:
        """Update all members that have not diverged; return the metrics of each round."""
        on_all = devices.replicate(self._mesh, dict(batch))
        metrics: list[Any] = []
        for i, numbers in enumerate(self._numbers):
            if all(self.diverged[i * self.width : (i + 1) * self.width]):
                metrics.append(None)
                continue
            self._states[i], found = self._program(numbers, self._states[i], on_all)
            metrics.append(found)
        self.step += 1
        return metrics

    def on_host(self) -> list[TrainState]:
        """Return the states of all members as NumPy arrays."""
        rounds = jax.device_get(self._states)
        if self.width == 1:
            return rounds
        return [
            jax.tree.map(lambda leaf, i=i: leaf[i], part)
            for part in rounds
            for i in range(self.width)
        ]

    def saved(self) -> SweepState:
        """Return what is saved in a checkpoint, which does not depend on the devices."""
        members = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *self.on_host())
        return SweepState(
            jnp.asarray(self.step, jnp.int32), members, jnp.asarray(self.diverged, jnp.int32)
        )

    def restore(self, saved: SweepState) -> None:
        """Continue from a checkpoint."""
        members = jax.device_get(saved.members)
        self.step, self.diverged = int(saved.step), [int(step) for step in saved.diverged]
        self._states = self._split(
            [jax.tree.map(lambda leaf, i=i: leaf[i], members) for i in range(len(self.diverged))]
        )


def _with_numbers(optim: OptimConfig, numbers: Mapping[str, Any]) -> OptimConfig:
    """Return the settings with traced numbers, which `__post_init__` could not check."""
    optim = copy.copy(optim)
    for name, value in numbers.items():
        object.__setattr__(optim, name, value)
    return optim


def _first_state(member: Member) -> Any:
    e = member.experiment
    optimizer = make_optimizer(e.optim, e.loop.steps)
    state = init_state(first_variables(e), optimizer, ema=e.step.ema_decay > 0)
    return jax.device_get(state)


class _Sweep:
    """The loop over the steps, with the logs and weights of all members."""

    def __init__(
        self,
        members: Sequence[Member],
        workdir: Path,
        states: _Rounds,
        checkpoints: Any,
        validation: Validation,
        report: Callable[[str, dict[str, Any]], object],
        stop: threading.Event,
    ) -> None:
        """Create a sweep that ends early when `stop` is set."""
        self._members = members
        self._workdir = workdir
        self._states = states
        self._checkpoints = checkpoints
        self._validation = validation
        self._stop = stop

        def reporter(name: str) -> Report:
            return lambda record: report(name, record)

        self._logs = [Log(workdir / m.name, states.step, reporter(m.name)) for m in members]

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def loop(self, batches: Batches) -> bool:
        """Run to the last step or until `stop` is set; return whether it finished."""
        e = self._members[0].experiment
        every, total = e.loop, e.loop.steps
        # a sweep that was stopped in a validation resumes with that validation
        if self._validation_is_due() and not self._validate(self._states.on_host()):
            return False
        ahead = prefetched(batches, e.pipeline, start=self._states.step)
        pending: list[Any] = []
        for step in range(self._states.step + 1, total + 1):
            metrics = self._states.update(next(ahead))
            self._check(pending, step - 1)  # while this step is running
            pending = metrics
            leaving = self._stop.is_set()
            if step % every.log_every == 0 or step == total or leaving:
                self._check(metrics, step)
                self._log(metrics, step)
            validating = self._validation_is_due()
            if validating or leaving or step % every.checkpoint_every == 0:
                self._check(metrics, step)
                states = self._states.on_host()
                self._check_parameters(states, step)
                leaving = leaving or (validating and not self._validate(states))
                self._checkpoints.save(self._states.saved())
            if leaving:
                return False
        return True

    def _validation_is_due(self) -> bool:
        step, every = self._states.step, self._members[0].experiment.loop
        return step > 0 and (step % every.validate_every == 0 or step == every.steps)

    def _each(self, metrics: Sequence[Any], name: str) -> list[float]:
        """Return one metric of all members; NaN for those that are stopped."""
        width = self._states.width
        return [
            float(value)
            for found in metrics
            for value in np.atleast_1d(
                [math.nan] * width if found is None else getattr(found, name)
            )
        ]

    def _check(self, metrics: Sequence[Any], step: int) -> None:
        for i, loss in enumerate(self._each(metrics, 'loss')):
            if not math.isfinite(loss):
                self._diverge(i, step, f'the loss is {loss}')

    def _check_parameters(self, states: Sequence[TrainState], step: int) -> None:
        for i, state in enumerate(states):
            leaves = jax.tree.leaves((state.params, state.batch_stats, state.ema))
            if not all(np.isfinite(leaf).all() for leaf in leaves):
                self._diverge(i, step, 'the parameters are not finite')

    def _diverge(self, member: int, step: int, what: str) -> None:
        """Stop a member, unless it was stopped before; raise if it was the last one."""
        diverged = self._states.diverged
        if diverged[member]:
            return
        diverged[member] = step
        self._logs[member].record(step, diverged=what)
        if all(diverged):
            when = ', '.join(
                f'{m.name} at step {s}' for m, s in zip(self._members, diverged, strict=True)
            )
            raise DivergedError(
                f'all members diverged: {when}. Try a lower learning rate, clipped gradients or '
                'float32, in another workdir.'
            )

    def _log(self, metrics: Sequence[Any], step: int) -> None:
        losses, norms = (self._each(metrics, name) for name in ('loss', 'gradient_norm'))
        for i, log in enumerate(self._logs):
            if not self._states.diverged[i]:
                log.record(step, loss=losses[i], gradient_norm=norms[i])

    def _validate(self, states: Sequence[TrainState]) -> bool:
        """Validate the members, and write the weights of those that are the best so far.

        A member whose log has the PSNR of this step is not validated again. Returns False if the
        sweep was stopped before all members were validated.
        """
        if not self._validation:
            return True
        step = self._states.step
        for i, member in enumerate(self._members):
            if self._states.diverged[i]:
                continue
            folder = self._workdir / member.name
            log = self._logs[i]
            psnr = self._validation.logged(step, log)
            if psnr is None:
                network = train_network(member.experiment, states[i]).fold()
                psnr = self._validation(network, step, log, self._stop.is_set)
            if psnr is None:
                return False
            best = _card(folder).get('psnr')
            if best is None or psnr >= best:
                write_weights(member.experiment, folder, states[i], psnr)
        return True

    def finish(self) -> list[MemberResult]:
        """Write the weights of runs without validation, and the results."""
        states = self._states.on_host()
        results = []
        for member, state, diverged in zip(
            self._members, states, self._states.diverged, strict=True
        ):
            folder = self._workdir / member.name
            if diverged:
                for name in ('weights.safetensors', 'train_weights.safetensors', 'card.json'):
                    (folder / name).unlink(missing_ok=True)
            elif not self._validation:
                write_weights(member.experiment, folder, state, None)
            card = _card(folder)
            results.append(
                MemberResult(
                    name=member.name,
                    seed=member.experiment.seed,
                    numbers=member.numbers,
                    psnr=card.get('psnr'),
                    step=card.get('step'),
                    diverged=diverged or None,
                )
            )
        text = json.dumps([dataclasses.asdict(result) for result in results], indent=1)
        write_text(self._workdir / 'sweep.json', text + '\n')
        return results


def _card(folder: Path) -> dict[str, Any]:
    """Return the card of the weights in a folder; {} if there is none."""
    path = folder / 'card.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
