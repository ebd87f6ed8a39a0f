"""Compare a network with what a reference computed: six stages, a control, and hypotheses."""

import dataclasses
import functools
import platform
import tempfile
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

import fmen_jax
from fmen_jax import porting
from fmen_jax.evaluation.metrics import psnr
from fmen_jax.images.read import read_rgb8
from fmen_jax.images.write import write_rgb8
from fmen_jax.inference.upscale import upscale
from fmen_jax.models.layers import Graph, Params
from fmen_jax.network import Network
from fmen_jax.parity import hypotheses
from fmen_jax.parity.dump import Dump, Maps, to_nhwc
from fmen_jax.parity.layers import (
    Event,
    difference,
    local_events,
    outputs_of,
    range_of,
    wide,
)
from fmen_jax.parity.report import Control, Divergence, HeatMap, Report, Row, Stage
from fmen_jax.porting import keys
from fmen_jax.runtime.compilation import jit

WEIGHTS, FORWARD, NOISE = 'weights', 'forward in float64', 'forward in float32'
TRAIN, STEPS, PICTURES = 'train-mode forward and gradients', 'steps of Adam', 'pictures'

COMPILED = 'output, compiled'

NOTHING_COMPUTED = (
    'the reference has neither the output of the network nor a train step in float64, so no weight '
    'that is changed could be found; let it compute in float64'
)

LEARNING_RATE = 1e-3
ADAM = optax.adam(LEARNING_RATE, b1=0.9, b2=0.999, eps=1e-8)
"""The optimizer of the probe."""


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Bounds of a comparison, and the graph that is compared."""

    bound: float = 1e-9
    """Largest error in float64, as a share of the range of the reference's values. Equal networks
    have 1e-14 to 1e-12 in the forward pass (docs/parity.md)."""
    weight_bound: float = 0.0
    """Largest error of a weight, likewise; 0 asks for the very numbers."""
    step_bound: float = 1e-8
    """Largest error of parameters and statistics after steps of Adam in float64, likewise. Adam
    divides gradients by their size, which amplifies rounding errors."""
    noise_ratio: float = 3.0
    """Largest ratio of our float32 error to the reference's own, in root mean square."""
    float32_bound: float | None = None
    """Largest error in float32 as a share of the range, for a dump without float32 figures. If
    None, float32 is not compared then."""
    loss_bound: float = 1e-4
    """Largest error of losses in float32 as a share of the largest loss."""
    graph: Graph | None = None
    """Graph to compare; that of the network if None."""


def compare(
    network: Network,
    dump: Dump | str | Path | Mapping[str, np.ndarray],
    config: CompareConfig = CompareConfig(),
) -> Report:
    """Compare a network with a dump of a reference, stage by stage, as far as the dump goes.

    Args:
      network: the network; its variables may have any floating-point dtype.
      dump: what `run_reference` returned, or the path of an .npz file that the probe wrote.
      config: bounds and graph.

    Raises:
      InputError: If the dump cannot be read, or was made for a network with other channels or
        another scale.
    """
    dump = dump if isinstance(dump, Dump) else Dump(dump)
    dump.check_network(network.config)
    if config.graph:
        network = dataclasses.replace(network, graph=config.graph)
    with jax.enable_x64(True):
        return _Comparison(network, dump, config).report()


def assert_parity(
    network: Network,
    dump: Dump | str | Path | Mapping[str, np.ndarray],
    config: CompareConfig = CompareConfig(),
) -> Report:
    """Return the report of `compare`; raise AssertionError with its text if it is not equal."""
    report = compare(network, dump, config)
    if not report.equal:
        raise AssertionError(report.text())
    return report


def noise_only(dump: Dump) -> set[str]:
    """Return the parameters whose true gradient is zero, as of a bias before a batch norm."""
    gradients = {
        key: float(np.abs(value).max()) for key, value in dump.by_key('train/float64/grad/').items()
    }
    floor = 1e-12 * max(gradients.values(), default=0.0)
    return {key for key, size in gradients.items() if size <= floor}


def compare_steps(
    dump: Dump,
    runs: Mapping[str, tuple[list[float], porting.StateDict]],
    config: CompareConfig = CompareConfig(),
) -> Stage:
    """Compare the losses of training steps and the state dict after the last one.

    Args:
      dump: what the reference computed on the same batches.
      runs: losses and last state dict (default key style) by dtype. In float32 only the losses are
        compared: Adam turns the noise of gradients whose true value is zero into steps.
      config: bounds.
    """
    rows, faults = [], []
    for dtype, (losses, state) in runs.items():
        theirs = dump.arrays[f'train/{dtype}/steps/loss']
        bound = config.bound if dtype == 'float64' else config.loss_bound
        largest = float(np.abs(theirs).max())
        for i, (a, b) in enumerate(zip(losses, theirs, strict=True)):
            found = difference(a, b)
            rows.append(_row(f'loss {i + 1} in {dtype}', found, largest, bound))
        if dtype == 'float64':
            expected = dump.by_key('train/float64/steps/state/')
            rows += _final_rows(state, expected, noise_only(dump), len(losses), config)
            faults += _missing('value after the last step', state, expected)
    return Stage(STEPS, rows, faults)


def _missing(what: str, ours: Iterable[str], theirs: Container[str]) -> list[str]:
    """Return a fault for every key without a counterpart; a reference need not count batches."""
    return [
        f'no {what} in the reference: {key}'
        for key in ours
        if key not in theirs and not key.endswith('.num_batches_tracked')
    ]


def _final_rows(
    state: porting.StateDict,
    expected: Mapping[str, np.ndarray],
    idle: set[str],
    steps: int,
    config: CompareConfig,
) -> list[Row]:
    rows = []
    for key in (key for key in state if key in expected):
        theirs = expected[key].astype(np.float64)
        found, size = difference(state[key], theirs), float(np.abs(theirs).max() or 1.0)
        if key in idle:  # Adam makes steps of up to the learning rate out of noise
            note, bound = 'noise only', steps * LEARNING_RATE / size
        else:
            note, bound = '', config.step_bound
        rows.append(_row(key, found, size, bound, theirs.shape, note=note))
    return rows


@dataclasses.dataclass(frozen=True)
class _Case:
    """One input, and what the reference computed for it."""

    name: str
    x: np.ndarray
    float64: Maps | None
    float32: Maps | None


class _Comparison:
    """The stages over one network and one dump."""

    def __init__(self, network: Network, dump: Dump, config: CompareConfig) -> None:
        self.network, self.dump, self.config = network, dump, config
        self.module: nn.Module = network.module
        self.cases = [
            _Case(
                name,
                dump.image(f'input/{name}'),
                dump.maps('float64', name),
                dump.maps('float32', name),
            )
            for name in dump.cases
        ]
        self.scales = self._scales()
        self.trained = {dtype: dump.below(f'train/{dtype}/') for dtype in ('float64', 'float32')}
        self.outputs = self.outputs_with(wide(network.variables))

    def report(self) -> Report:
        variables = wide(self.network.variables)
        stages = []
        if state := self.dump.by_key('state/'):
            stages.append(self.weights(state))
        events: dict[str, list[Event]] = {}
        forward = None
        if any(case.float64 for case in self.cases):
            events = self.events(variables)
            forward = self.forward(self.outputs, events)
            stages.append(forward)
            if any(case.float32 for case in self.cases) or self.config.float32_bound is not None:
                stages.append(self.rounding())
        if 'out' in self.trained['float64']:
            stages.append(self.train(variables))
        if 'steps/loss' in self.trained['float64']:
            stages.append(self.steps(variables))
        if self.dump.below('picture/'):
            stages.append(self.pictures())
        divergence = self.divergence(events)
        return Report(
            stages,
            self.control(variables, stages) if stages else None,
            divergence,
            self.explain(stages, divergence),
            self.heat(divergence, forward),
            self.facts(),
            self.notes(),
        )

    def _scales(self) -> dict[str, float]:
        """Return the range of every layer's values over all cases."""
        scales: dict[str, float] = {}
        for case in self.cases:
            for name, values in (case.float64.outputs if case.float64 else {}).items():
                scales[name] = max(scales.get(name, 0.0), range_of(values))
        return scales

    def outputs_with(self, variables: Params) -> dict[str, dict[str, np.ndarray]]:
        """Return by case the output of every layer in float64."""
        return {
            case.name: outputs_of(self.module, variables, case.x)
            for case in self.cases
            if case.float64
        }

    def weights(self, state: Mapping[str, np.ndarray]) -> Stage:
        """Stage 1: keys, shapes, kinds of dtype and values of the loaded weights."""
        ours = self.network.state_dict(self.network.config.default_key_style)
        misfits = self.dump.meta.get('faults', {})
        faults = [f'missing in the reference: {key}' for key in ours if key not in state]
        faults += [f'only in the reference: {key}' for key in state if key not in ours]
        faults += [
            f'the checkpoint lacks {key}: the reference computes with its initial value'
            for key in misfits.get('missing', [])
        ]
        faults += [
            f'wrong shape: {key} is {shapes[0]} in the checkpoint, {shapes[1]} in the reference'
            for key, shapes in misfits.get('misshapen', {}).items()
        ]
        rows = []
        for key in (key for key in ours if key in state):
            a, b = ours[key], state[key]
            if a.shape != b.shape or (a.dtype.kind in 'iu') != (b.dtype.kind in 'iu'):
                faults.append(f'{key} is {a.dtype}{list(a.shape)}; {b.dtype}{list(b.shape)} there')
                continue
            found = difference(a, b)
            count = int((a != b).sum())
            note = f'{count} of {a.size} values differ' if count else ''
            if a.ndim == 4 and count:
                note += _as_transposed(a, b)
            bound = self.config.weight_bound
            rows.append(_row(key, found, range_of(b), bound, a.shape, note=note))
        if {key.rpartition('.')[0] for key in ours} != {key.rpartition('.')[0] for key in state}:
            folded = {'deploy' if 'rep_conv' in ' '.join(s) else 'train' for s in (ours, state)}
            if len(folded) == 2:
                faults.append('one is the deploy graph, the other the train graph: see --graph')
        return Stage(WEIGHTS, rows, faults)

    def events(self, variables: Params) -> dict[str, list[Event]]:
        """Return by case the differences of layers that were given the reference's inputs."""
        return {
            case.name: local_events(self.module, variables, case.x, case.float64)
            for case in self.cases
            if case.float64
        }

    def forward(
        self,
        outputs: Mapping[str, Mapping[str, np.ndarray]],
        events: Mapping[str, list[Event]],
    ) -> Stage:
        """Stage 2: every layer in float64, as the network runs and on the reference's inputs."""
        rows: dict[str, Row] = {}
        local: dict[str, float] = {}
        for found in events.values():
            for event in found:
                share = event.share
                if event.side == 'out':
                    share = event.difference.error / self.scales[event.name]
                local[event.name] = max(local.get(event.name, 0.0), share)
        for case in self.cases:
            if case.float64 is None:
                continue
            for name, ours in outputs[case.name].items():
                if name in case.float64.outputs:
                    theirs = case.float64.outputs[name]
                    row = _row(
                        name,
                        difference(ours, theirs),
                        self.scales[name],
                        self.config.bound,
                        ours.shape,
                        case=case.name,
                        local=local.get(name),
                    )
                    if name not in rows or row.error >= rows[name].error:
                        rows[name] = row
        return Stage(FORWARD, list(rows.values()))

    def rounding(self) -> Stage:
        """Stage 3: our float32 error against the reference's own, both seen from its float64."""
        sums: dict[str, np.ndarray] = {}
        bounds: dict[str, Row] = {}
        variables = wide(self.network.variables, np.float32)
        for case in self.cases:
            if case.float64 is None:
                continue
            theirs = case.float32.outputs if case.float32 else {}
            for name, ours in outputs_of(self.module, variables, case.x.astype(np.float32)).items():
                exact = case.float64.outputs.get(name)
                if exact is None or exact.shape != ours.shape:
                    continue
                noise = np.square(np.float64(theirs[name]) - exact).sum() if name in theirs else 0
                error = np.square(np.float64(ours) - exact).sum()
                size = np.square(exact).sum()
                totals = np.array([error, noise, size, exact.size])
                sums[name] = totals + sums.get(name, 0.0)
                found = difference(ours, exact)
                row = _row(name, found, self.scales[name], 0.0, ours.shape, case.name)
                if name not in bounds or row.error >= bounds[name].error:
                    bounds[name] = row
        self._add_compiled(sums, bounds)
        rows = []
        for name, (error, noise, size, count) in sums.items():
            ours, theirs, rms = (float(np.sqrt(s / count)) for s in (error, noise, size))
            known = any(case.float32 for case in self.cases)
            # A layer that happens to round to exact values still has the rounding of its output.
            ratio = ours / max(theirs, 2.0**-26 * rms, 1e-300) if known else None
            rows.append(
                dataclasses.replace(
                    bounds[name],
                    error=bounds[name].error if ratio is None else ratio,
                    bound=(self.config.float32_bound or 0.0)
                    if ratio is None
                    else self.config.noise_ratio,
                    unit='share of range' if ratio is None else 'of its noise',
                    noise=theirs / self.scales[name] if known else None,
                    ratio=ratio,
                )
            )
        return Stage(NOISE, rows)

    def _add_compiled(self, sums: dict[str, np.ndarray], rows: dict[str, Row]) -> None:
        """Add the output of the compiled program for the largest input."""
        case = self.largest
        exact = case.float64.outputs[''] if case.float64 else np.zeros(0)
        ours = np.asarray(self.network(case.x.astype(np.float32)))
        if ours.shape != exact.shape:
            return
        theirs = np.float64(case.float32.outputs['']) if case.float32 else exact
        squares = [np.square(part).sum() for part in (ours - exact, theirs - exact, exact)]
        sums[COMPILED] = np.array([*squares, exact.size])
        self.scales[COMPILED] = self.scales['']
        found = difference(ours, exact)
        rows[COMPILED] = _row(COMPILED, found, self.scales[''], 0.0, ours.shape, case.name)

    @property
    def largest(self) -> _Case:
        """The largest input with float64 figures."""
        return max((case for case in self.cases if case.float64), key=lambda case: case.x.size)

    def train(self, variables: Params) -> Stage:
        """Stage 4: output, loss, gradients and running statistics of one train step."""
        theirs, bound = self.trained['float64'], self.config.bound
        x, y = (self.dump.image(f'train/{name}')[0] for name in 'xy')
        params, stats = variables['params'], variables.get('batch_stats', {})
        (loss, (output, stats)), gradients = _gradient(self.module)(params, stats, x, y)
        tree = _host({'params': gradients, 'batch_stats': stats})
        ours = porting.to_state_dict(tree, self.network.config, self.network.graph)
        expected = to_nhwc(theirs['out'])
        output = np.asarray(output)
        rows = [_row('output', difference(output, expected), range_of(expected), bound)]
        found = difference(np.asarray(loss), theirs['loss'])
        rows.append(_row('loss', found, abs(float(theirs['loss'])), bound))
        idle = noise_only(self.dump)
        faults: list[str] = []
        for kind, what, collection in (
            ('grad/', 'gradient', 'params'),
            ('stats/', 'statistics after the step', 'batch_stats'),
        ):
            own = {
                k: v for k, v in ours.items() if (keys.to_path(k) or k.split('/'))[0] == collection
            }
            recorded = self.dump.by_key(f'train/float64/{kind}')
            # Figures that do not come from the probe may lack all statistics of the first step.
            if recorded or kind == 'grad/':
                faults += _missing(what, own, recorded)
            largest = max((np.abs(value).max() for value in recorded.values()), default=1)
            for key in (key for key in own if key in recorded):
                b = recorded[key].astype(np.float64)
                # Of a gradient whose true value is zero, the size is all that can be compared.
                scale = float(largest if key in idle else np.abs(b).max() or 1.0)
                note = 'noise only' if key in idle else ''
                found = difference(own[key], b)
                rows.append(_row(kind + key, found, scale, bound, b.shape, note=note))
        return Stage(TRAIN, rows, faults)

    def trajectory(self, variables: Params, dtype: str) -> tuple[list[float], Params]:
        """Return the losses and the last variables over the batches of the dump."""
        variables = wide(variables, dtype)
        params, stats = variables['params'], variables.get('batch_stats', {})
        moments, losses = ADAM.init(params), []
        count = len(self.trained[dtype]['steps/loss'])
        for x, y in zip(*(self.dump.image(f'train/{n}', dtype)[:count] for n in 'xy'), strict=True):
            (loss, (_, stats)), gradients = _gradient(self.module)(params, stats, x, y)
            updates, moments = _adam_update()(gradients, moments)
            params = optax.apply_updates(params, updates)
            losses.append(float(loss))
        return losses, {'params': params, 'batch_stats': stats}

    def steps(self, variables: Params) -> Stage:
        """Stage 5: our losses and last state over the batches of the dump."""
        runs = {}
        for dtype in ('float64', 'float32'):
            if 'steps/loss' in self.trained[dtype]:
                losses, last = self.trajectory(variables, dtype)
                config, graph = self.network.config, self.network.graph
                runs[dtype] = losses, porting.to_state_dict(_host(last), config, graph)
        return compare_steps(self.dump, runs, self.config)

    def pictures(self) -> Stage:
        """Stage 6: from files to files, in 8 bits."""
        rows = []
        for name, lr in self.dump.below('picture/').items():
            theirs = to_nhwc(self.dump.arrays[f'upscaled/{name}'])[0]
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder, 'lr.png'), Path(folder, 'sr.png')
                write_rgb8(source, to_nhwc(lr)[0])
                write_rgb8(target, upscale(self.network, source))
                ours = read_rgb8(target)
            found = difference(ours, theirs)
            count = int((ours != theirs).sum())
            note = f'{count} of {ours.size} values differ'
            if f'original/{name}' in self.dump.arrays:
                hr = np.float64(to_nhwc(self.dump.arrays[f'original/{name}'])[0])
                a, b = (float(psnr(np.float64(p), hr)) for p in (ours, theirs))
                note += f'; PSNR {a:.4f} dB, {b:.4f} dB in PyTorch, difference {a - b:+.1e}'
            # Float32 errors of some 1e-4 levels can turn a value that lies between two levels.
            row = _row(name, found, 1.0, 1.0, ours.shape, note=note)
            rows.append(dataclasses.replace(row, unit='levels of 255'))
            share = difference(float(count), 0.0)
            rows.append(_row(f'{name}: share of values', share, ours.size, 1e-3))
        return Stage(PICTURES, rows)

    def divergence(self, events: Mapping[str, list[Event]]) -> Divergence | None:
        """Return the first event beyond the bound, on the largest of the inputs that show it."""
        sizes = {case.name: case.x.size for case in self.cases}
        first: tuple[int, int, str] | None = None
        for case, found in events.items():
            beyond = (i for i, event in enumerate(found) if not event.share <= self.config.bound)
            number = next(beyond, None)
            if number is not None and (first is None or (number, -sizes[case]) < first[:2]):
                first = number, -sizes[case], case
        if first is None:
            return None
        number, _, case = first
        found = events[case]
        event, before = found[number], found[number - 1] if number else None
        diff, share = event.difference, event.share
        place = _place(event, before)
        text = f'{place} (input {case}): {share:.1e} of the range'
        if diff.note:
            text += f'; {diff.note}'
        else:
            text += f', at {diff.where} {diff.ours:.9g}, in the reference {diff.reference:.9g}'
            if diff.interior <= self.config.bound * event.scale:
                text += '; only the outermost pixels differ'
        frame, interior = (value / event.scale for value in (diff.frame, diff.interior))
        return Divergence(event.name, event.side, share, case, text, frame, interior)

    def control(self, variables: Params, stages: list[Stage]) -> Control:
        """Change one weight by a thousandth of its tensor's size; every stage has to see it."""
        leaves: Any = flatten_dict(variables['params'])
        kernels = [path for path, leaf in leaves.items() if leaf.ndim == 4]
        path = kernels[len(kernels) // 2]
        kernel = leaves[path].copy()
        row, column = (size // 2 for size in kernel.shape[:2])  # others may see padding alone
        center = np.abs(kernel[row, column])
        index = (row, column, *map(int, np.unravel_index(int(center.argmax()), center.shape)))
        change = 1e-3 * float(np.sqrt(np.mean(np.square(kernel))))
        kernel[index] += change
        changed = {**variables, 'params': unflatten_dict({**leaves, path: kernel})}
        key = keys.to_key(('params', *path)) or '/'.join(path)
        layer = key.removesuffix('.weight')
        equal = {stage.name for stage in stages if stage.equal}
        unseen = []
        where = ''
        if FORWARD in equal:
            events = self.events(changed)
            if self.forward(self.outputs_with(changed), events).equal:
                unseen.append(FORWARD)
            found = self.divergence(events)
            where = found.layer if found else ''
            recorded = {event.name for some in events.values() for event in some} - {''}
            own = [name for name in recorded if f'{layer}.'.startswith(f'{name}.')]
            if found and own and where != max(own, key=len):
                unseen.append(f'at its own layer, but at {where or "the output"}')
        for name, stage in ((TRAIN, self.train), (STEPS, self.steps)):
            if name in equal and stage(changed).equal:
                unseen.append(name)
        if not equal & {FORWARD, TRAIN, STEPS}:
            if all(stage.equal for stage in stages):
                return Control(key, index, change, False, NOTHING_COMPUTED)
            text = 'not needed, as nothing that it could change is equal'
            return Control(key, index, change, True, text)
        text = f'{key}{list(index)} changed by {change:.1e} '
        text += f'was NOT found: {"; ".join(unseen)}' if unseen else 'was found'
        if where and not unseen:
            text += f' at {where}'
        return Control(key, index, change, not unseen, text)

    def explain(self, stages: list[Stage], divergence: Divergence | None) -> list[str]:
        """Return what would explain the differences."""
        unequal = {stage.name: stage for stage in stages if not stage.equal}
        found: list[str] = []
        if FORWARD in unequal:
            case = self.largest
            ours, theirs = self.outputs[case.name][''], case.float64.outputs['']  # pyright: ignore
            output = [row for row in unequal[FORWARD].rows if row.name == '']
            if output and output[0].error <= self.config.bound:
                found.append(hypotheses.IN_PLACE)
            else:
                # A clamp changes the range: rounding errors are of the range before it.
                tolerance = self.config.bound * max(range_of(ours), range_of(theirs))
                problem = hypotheses.Problem(self.network, case.x, ours, theirs, tolerance)
                found += hypotheses.of_forward(problem, divergence)
        if TRAIN in unequal and FORWARD not in unequal:
            before = self.network.state_dict(self.network.config.default_key_style)
            rows = {row.name: row for row in unequal[TRAIN].rows}
            theirs = self.dump.by_key('train/float64/stats/')
            found += hypotheses.of_statistics(before, theirs, rows, self._stats())
        return found

    def _stats(self) -> dict[str, np.ndarray]:
        """Return our running statistics after one train step."""
        variables = wide(self.network.variables)
        x, y = (self.dump.image(f'train/{name}')[0] for name in 'xy')
        stats = variables.get('batch_stats', {})
        (_, (_, stats)), _ = _gradient(self.module)(variables['params'], stats, x, y)
        tree = _host({'params': variables['params'], 'batch_stats': stats})
        return porting.to_state_dict(tree, self.network.config, self.network.graph)

    def heat(self, divergence: Divergence | None, forward: Stage | None) -> HeatMap | None:
        """Return where the first layer that differs does so, or the worst layer if none does."""
        if forward is None or not forward.rows:
            return None
        layer = divergence.layer if divergence else forward.worst.name
        case = self.largest
        ours = self.outputs[case.name].get(layer)
        theirs = case.float64.outputs.get(layer) if case.float64 else None
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        error = np.abs(ours - theirs)[0].max(-1) / self.scales[layer]
        return HeatMap(layer, case.name, error.tolist())

    def facts(self) -> dict[str, Any]:
        """Return versions, devices and precision of both sides."""
        meta = self.dump.meta
        device = jax.devices()[0]
        return {
            'network': str(self.network.config),
            'graph': self.network.graph,
            'fmen_jax': fmen_jax.__version__,
            'python': platform.python_version(),
            'jax': f'{jax.__version__}, flax {flax.__version__}, numpy {np.__version__}',
            'device': f'{device.platform} ({device.device_kind}), matmul precision highest',
            **{
                name: meta[key]
                for name, key in (
                    ('checkpoint', 'checkpoint_sha256'),
                    ('reference', 'reference'),
                    ('its sha256', 'reference_sha256'),
                    ('its class', 'class'),
                    ('its python', 'python'),
                    ('its torch', 'torch'),
                    ('its device', 'device'),
                    ('its TF32', 'precision'),
                )
                if key in meta
            },
            'inputs': ', '.join(self.dump.cases) or 'none',
            'bound': self.config.bound,
        }

    def notes(self) -> list[str]:
        """Return remarks of the probe, and which layers have no counterpart."""
        notes = list(self.dump.meta.get('notes', []))
        case = next((c for c in self.cases if c.float64), None)
        if case and case.float64:
            ours = set(self.outputs[case.name])
            if not ours & set(case.float64.outputs) - {''}:
                notes.append('no layer has a counterpart of the same name: only outputs compared')
        return notes


@functools.lru_cache(maxsize=4)
def _gradient(module: nn.Module) -> Any:
    """Return the compiled loss, output, statistics and gradient of a train step."""

    def loss(params: Params, stats: Params, x: Any, y: Any) -> Any:
        variables = {'params': params, 'batch_stats': stats}
        with jax.default_matmul_precision('highest'):
            output, new = module.apply(variables, x, train=True, mutable=['batch_stats'])
        return jnp.abs(output - y).mean(), (output, new.get('batch_stats', {}))

    return jit(jax.value_and_grad(loss, has_aux=True))


@functools.lru_cache(maxsize=1)
def _adam_update() -> Any:
    return jit(ADAM.update)


def _host(variables: Params) -> Params:
    """Return variables as NumPy arrays, without empty collections."""
    return {name: jax.device_get(tree) for name, tree in variables.items() if tree}


def _row(
    name: str,
    found: Any,
    scale: float,
    bound: float,
    shape: tuple[int, ...] = (),
    case: str = '',
    *,
    local: float | None = None,
    note: str = '',
) -> Row:
    """Return a row for a difference, as a share of a scale."""
    return Row(
        name,
        found.error / (scale or 1.0),
        bound,
        shape=shape,
        max_abs=found.error,
        where=found.where,
        case=case,
        ours=found.ours,
        reference=found.reference,
        local=local,
        note=note or found.note,
    )


def _as_transposed(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return how a kernel was turned, if that is all."""
    turns = {'transposed (H, W)': (0, 1, 3, 2), 'transposed (O, I)': (1, 0, 2, 3)}
    for text, axes in turns.items():
        if np.array_equal(ours.transpose(axes), theirs):
            return f'; equal when {text}'
    return ''


def _place(event: Event, before: Event | None) -> str:
    """Return where the difference of an event is made."""
    name = event.name or 'the network'
    if event.side == 'in':
        last = f'after {before.name}' if before and before.name else 'at the input of the network'
        return f'before {name}: its input differs, so what runs {last} is different'
    inside = before is not None and (not event.name or before.name.startswith(f'{event.name}.'))
    if before and before.side == 'out' and inside:
        return f'at the end of {name}, after its last layer {before.name}'
    return f'in {name}'
