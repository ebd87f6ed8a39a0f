"""Checkpoints of the training state, which Orbax writes atomically and in the background.

`checkpoints.json`, beside the folder of the checkpoints, holds what Orbax does not: the validation
PSNR of each step, and the SHA-256 of each file of a complete checkpoint. Orbax by itself notices a
truncated file, but not every changed byte.
"""

import contextlib
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fmen_jax.errors import FMENError, FMENWarning, InputError
from fmen_jax.files import sha256, write_text
from fmen_jax.runtime import devices
from fmen_jax.training.state import TrainState


class CheckpointError(FMENError):
    """No checkpoint of a run can be read, or a checkpoint cannot be written."""


class _DamagedError(Exception):
    """A checkpoint is not as it was written."""


class Checkpoints:
    """The checkpoints of a run: the last `keep_last` ones, and the one with the highest PSNR.

    In a cluster, every process creates an object on the same folder and makes the same calls.

    Every method may raise CheckpointError if the pending checkpoint cannot be written, for example
    to a full disk. Those that were written before are complete.
    """

    def __init__(self, folder: Path, *, keep_last: int) -> None:
        """Open the checkpoints in `folder`, which is created if it does not exist.

        Raises:
          InputError: If the index beside the folder is broken.
        """
        self._folder = folder.resolve()
        self._keep_last = keep_last
        self._index = _Index(self._folder.with_suffix('.json'))
        self._orbax = self._open()
        self._silence = _quiet('absl')  # Orbax logs the errors that it raises, with tracebacks
        self._unraisablehook = sys.unraisablehook

    def _open(self) -> Any:
        training: Any = ocp.training
        policies = training.preservation_policies
        return training.Checkpointer(
            str(self._folder),
            # Save whenever asked; the default policy skips saves that follow too soon.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep_last), _KeepBest(self._index)]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState) -> None:
        """Save a state in the background, unless its step has been saved already."""
        step = int(state.step)
        if step not in self._steps():
            with self._writing():
                self._orbax.save_async(step, state)

    def record_psnr(self, step: int, psnr: float) -> None:
        """Record the validation PSNR in dB of a step, before or after the step is saved."""
        self._index.psnr[step] = psnr
        self._index.write()

    def psnr(self, step: int) -> float | None:
        """Return the recorded PSNR of a step in dB, or None if the step was not validated."""
        return self._index.psnr.get(step)

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint, or None if there is none."""
        return max(self._steps(), default=None)

    def load_latest(self, like: TrainState) -> TrainState | None:
        """Return the last state that can be read; None if there are no checkpoints.

        The PSNRs of later steps are forgotten, because these steps will be trained again. Damaged
        checkpoints that are newer than the returned one are moved to the folder `damaged`, beside
        that of the checkpoints, with a warning.

        Args:
          like: State with the shapes, dtypes and shardings of the result.

        Raises:
          CheckpointError: If there are checkpoints, but none of them can be read. They are left
            where they are.
        """
        state, damaged = self._load_first(like, sorted(self._steps(), reverse=True))
        if state is None and damaged:
            raise CheckpointError(
                f'none of the {len(damaged)} checkpoints in {self._folder} can be read:'
                + _listed(damaged)
                + '\nRestore the folder from a backup, or train again in another workdir.'
            )
        if state is not None and damaged:
            self._move_aside(damaged, instead=int(state.step))
        self._index.forget_after(0 if state is None else int(state.step))
        return state

    def load_best(self, last: TrainState) -> TrainState:
        """Return the state with the highest PSNR; the last state if no step was validated.

        Damaged checkpoints with a higher PSNR are moved aside with a warning, as by `load_latest`.

        Args:
          last: State of the last step, which is returned as it is if it is the best one.
        """
        steps = sorted({*self._steps(), int(last.step)}, key=self._index.rank, reverse=True)
        better = itertools.takewhile(lambda step: step != int(last.step), steps)
        state, damaged = self._load_first(last, better)
        state = last if state is None else state
        if damaged:
            self._move_aside(damaged, instead=int(state.step))
        return state

    def __enter__(self) -> 'Checkpoints':
        self._silence.__enter__()
        sys.unraisablehook = self._hide_abandoned_tasks
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait until all checkpoints are written."""
        try:
            if isinstance(error, CheckpointError):
                with contextlib.suppress(Exception):  # the same error once more
                    self._orbax.close()
                return
            # Closing waits for all processes, which may never get here after an error.
            if error is None or jax.process_count() == 1:
                self._steps()
                with self._writing():
                    self._orbax.close()
            sys.unraisablehook = self._unraisablehook  # not if a write failed: see the hook
        finally:
            self._silence.__exit__(None, None, None)

    def _hide_abandoned_tasks(self, unraisable: Any) -> None:
        """Hide what Python prints if a write ends after another one has failed."""
        if str(unraisable.exc_value) != 'Event loop is closed':
            self._unraisablehook(unraisable)

    def _steps(self) -> set[int]:
        """Return the steps of the complete checkpoints, after the pending one is written."""
        with self._writing():
            self._orbax.wait()
        steps = {checkpoint.step for checkpoint in self._orbax.checkpoints}
        self._index.seal(self._folder, steps)
        return steps

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Report whatever goes wrong while Orbax writes as one error."""
        try:
            yield
        except Exception as error:  # Orbax raises many types for a file that it cannot write
            raise CheckpointError(
                f'a checkpoint cannot be written to {self._folder} ({_reason(error)}). Check the '
                'free space and the permissions; the same command then resumes from the last '
                'complete checkpoint.'
            ) from error

    def _load_first(
        self, like: TrainState, steps: Iterable[int]
    ) -> tuple[TrainState | None, dict[int, str]]:
        """Return the first state that can be read, and what is wrong with those before it."""
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                return self._load(like, step), damaged
            except _DamagedError as error:
                damaged[step] = str(error)
        return None, damaged

    def _load(self, like: TrainState, step: int) -> TrainState:
        reason = self._index.damage(self._folder, step)
        if devices.any_process(bool(reason)):
            raise _DamagedError(reason or 'another process found a damaged file')
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        try:
            with _quiet('asyncio'):
                return self._orbax.load(step, abstract)
        except Exception as error:  # Orbax raises many types for files that it cannot read
            if jax.process_count() > 1:
                raise
            raise _DamagedError(_reason(error)) from error

    def _move_aside(self, damaged: dict[int, str], *, instead: int) -> None:
        folder = self._folder.with_name('damaged')
        warnings.warn(
            f'damaged checkpoints were found:{_listed(damaged)}\nThey have been moved to {folder}. '
            f'The checkpoint of step {instead} is used instead.',
            FMENWarning,
            stacklevel=2,
        )
        self._orbax.close()
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            for step in damaged:
                number = len(list(folder.glob(f'{step}*')))
                target = folder / (f'{step}-{number}' if number else f'{step}')
                (self._folder / str(step)).replace(target)
        devices.wait_for_all('damaged')
        self._orbax = self._open()


class _Index:
    """Contents of checkpoints.json, which process 0 writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.psnr: dict[int, float] = {}
        self._files: dict[int, dict[str, str]] = {}
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding='utf-8'))
                self.psnr = {int(step): float(psnr) for step, psnr in stored['psnr'].items()}
                self._files = {int(step): dict(files) for step, files in stored['files'].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f'{path} is broken ({error}): remove it. The run then resumes without the PSNR '
                    'of earlier validations.'
                ) from error

    def rank(self, step: int) -> tuple[float, int]:
        """Return a sort key: the best step has the highest PSNR, and is the later of equal ones."""
        return self.psnr.get(step, float('-inf')), step

    def forget_after(self, step: int) -> None:
        """Remove the PSNRs of all steps after `step`."""
        self.psnr = {number: psnr for number, psnr in self.psnr.items() if number <= step}

    def write(self) -> None:
        """Write the file."""
        if jax.process_index() == 0:
            contents = {'psnr': self.psnr, 'files': self._files}
            write_text(self._path, json.dumps(contents, indent=1) + '\n')

    def seal(self, folder: Path, steps: set[int]) -> None:
        """Record the hashes of new checkpoints, and forget those of checkpoints that are gone."""
        if jax.process_index() == 0 and steps != self._files.keys():
            self._files = {
                step: self._files.get(step) or _hashes(folder / str(step)) for step in sorted(steps)
            }
            self.write()

    def damage(self, folder: Path, step: int) -> str:
        """Return what is wrong with a checkpoint's files on process 0; '' if nothing is known."""
        if jax.process_index() != 0 or step not in self._files:
            return ''
        try:
            found = _hashes(folder / str(step))
        except OSError as error:
            return str(error)
        expected = self._files[step]
        for name in expected:
            if name not in found:
                return f'{name} is missing'
            if found[name] != expected[name]:
                return f'{name} has changed'
        return ''


class _KeepBest:
    """Orbax policy that preserves the checkpoint with the highest PSNR, if there is one."""

    def __init__(self, index: _Index) -> None:
        self._index = index

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Return for each checkpoint whether it is the best one."""
        del context
        steps = [
            checkpoint.step for checkpoint in checkpoints if checkpoint.step in self._index.psnr
        ]
        best = max(steps, key=self._index.rank, default=None)
        return [checkpoint.step == best for checkpoint in checkpoints]


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def _listed(damaged: dict[int, str]) -> str:
    return ''.join(f'\n  step {step}: {reason}' for step, reason in damaged.items())


def _reason(error: Exception) -> str:
    """Return the first line of what Orbax reports; it begins with a kind and ends with a cause."""
    line = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 300 else f'{line[:150]} ... {line[-150:]}'


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a logger: Orbax logs what it raises, and asyncio the tasks that Orbax abandons."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
