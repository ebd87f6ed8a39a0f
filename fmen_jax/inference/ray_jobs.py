"""Upscaling on a cluster with Ray Data: one actor per device, which compiles once.

An actor that dies is replaced, and its pictures are reassigned to other actors. Ray's job
checkpoints record what is done, so that a rerun of the job only processes what is missing.
"""

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fmen_jax.errors import InputError, require
from fmen_jax.files import check_utf8, sha256, write_text
from fmen_jax.images.write import SaveOptions
from fmen_jax.inference.jobs import JobResult, failed, run
from fmen_jax.inference.planning import Item
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.inference.upscaler import Upscaler
from fmen_jax.network import load

_OTHER_TASKS = 4
"""Number of CPUs for Ray's own tasks besides the workers: reading, filtering, writing."""


class _Worker:
    """Actor that upscales pictures in its own process, one at a time."""

    def __init__(self, weights: str, settings: InferenceSettings, options: SaveOptions) -> None:
        self._upscaler = Upscaler(load(weights), settings)
        self._options = options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch['source'], batch['target'], strict=True)
        items = [Item(Path(s), Path(t)) for s, t in pairs]
        results = run(items, self._upscaler, options=self._options)
        return {
            'id': batch['id'],
            'target': batch['target'],
            'result': [_to_json(result) for result in results],  # a batch has one picture
        }


def run_on_ray(
    items: Sequence[Item],
    weights: str | Path,
    *,
    workers: int,
    job: Path,
    settings: InferenceSettings = InferenceSettings(),  # noqa: B008 - frozen
    options: SaveOptions = SaveOptions(),  # noqa: B008 - frozen
) -> Iterator[JobResult]:
    """Upscale pictures on the running Ray cluster, or on a new one started on this machine.

    Args:
      items: items returned by `planning.plan`; all workers must be able to access their paths.
      weights: weights file that all workers can access.
      workers: number of actors. Each takes one GPU if the cluster has one for every actor, else
        one CPU of Ray's count.
      job: folder for the checkpoints and results of the job, which a rerun uses.
      settings: settings of each worker's upscaler.
      options: options for writing the outputs.

    Raises:
      InputError: If Ray is not installed, the cluster is too small, or `job` belongs to a job with
        other weights or settings.
    """
    require('ray', 'ray', 'upscaling on a cluster')
    import ray
    import ray.data
    from ray.data.checkpoint.interfaces import CheckpointConfig

    made_with = [sha256(Path(weights)), dataclasses.asdict(settings), dataclasses.asdict(options)]
    _claim(job, made_with)
    job = job.resolve()
    rows, known = _rows(items, _results(job))
    yield from known
    if not rows:
        return
    workers = min(workers, len(rows))
    _connect(workers)
    gpus = ray.cluster_resources().get('GPU', 0) >= workers
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.checkpoint_config = CheckpointConfig(
        'id', str(job / 'checkpoints'), delete_checkpoint_on_success=False
    )
    try:
        ray.data.read_datasource(_source(rows), override_num_blocks=len(rows)).map_batches(
            _Worker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(str(Path(weights).resolve()), settings, options),
            num_gpus=1 if gpus else None,
            num_cpus=None if gpus else 1,
        ).write_json(str(job / 'results'))
    finally:
        context.checkpoint_config = None
    found = {row['id']: row['result'] for row in _results(job)}
    for row in rows:
        yield _of_json(found[row['id']], row['item'])


def _claim(job: Path, made_with: list[Any]) -> None:
    """Record the weights and settings in a new job folder; compare them in an existing one."""
    path = job / 'job.json'
    if not path.exists():
        write_text(path, json.dumps(made_with))
    elif json.loads(path.read_text(encoding='utf-8')) != made_with:
        raise InputError(
            f'{job} is a job with other weights or settings: rerun it with its own, or name '
            'another folder.'
        )


def _results(job: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((job / 'results').glob('*.json')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            # Ray was killed while writing the line; it will process that row again.
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def _rows(
    items: Sequence[Item], results: Iterable[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[JobResult]]:
    """Return rows for the items that remain to be done, and the results of the other items.

    The others are done already, or their inputs cannot be read. Ray's checkpoints identify a row by
    its id. The id changes when the input picture changes and when the output failed or is missing,
    so that such items are processed again.
    """
    before: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        before.setdefault(result['target'], []).append(result)
    rows: list[dict[str, Any]] = []
    known: list[JobResult] = []
    for item in items:
        source, target = str(item.source.resolve()), str(item.target.resolve())
        try:
            check_utf8(item.source)
            check_utf8(item.target)
            stat = item.source.stat()
        except (InputError, OSError) as error:
            known.append(failed(item, error))
            continue
        version = f'{target} {stat.st_size} {stat.st_mtime_ns}'
        made = [r for r in before.get(target, ()) if r['id'].startswith(version)]
        # Ray's file names are random, so the order of the results is that of their ids.
        last = max(made, key=lambda r: int(r['id'].rpartition(' ')[2]), default=None)
        if last and item.target.exists() and not json.loads(last['result'])['error']:
            known.append(JobResult(item, skipped=True))
        else:
            row_id = f'{version} {len(made)}'
            rows.append({'id': row_id, 'source': source, 'target': target, 'item': item})
    return rows, known


def _connect(workers: int) -> None:
    """Connect to a running cluster, or start one on this machine.

    Raises:
      InputError: If the cluster is too small for all the workers, so that Ray would wait forever.
    """
    import ray

    if not ray.is_initialized():
        logging.getLogger('ray').setLevel(logging.ERROR)
        try:
            ray.init(address='auto', logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError:
            # num_cpus only serves Ray's scheduling; XLA uses all cores in any case.
            ray.init(
                num_cpus=workers + _OTHER_TASKS,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        logging.getLogger('ray.data').setLevel(logging.ERROR)
    has = ray.cluster_resources()
    if max(has.get('GPU', 0), has.get('CPU', 0) - _OTHER_TASKS) < workers:
        raise InputError(
            f'the Ray cluster has {has.get("CPU", 0):.0f} CPUs and {has.get("GPU", 0):.0f} GPUs; '
            f'{workers} workers need {workers} GPUs or {workers + _OTHER_TASKS} CPUs.'
        )


def _source(rows: list[dict[str, Any]]) -> Any:
    """Return a Ray datasource with one block per row, so that each picture is a separate task."""
    import pyarrow
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class ItemRows(Datasource):
        def estimate_inmemory_data_size(self) -> int:
            return 1000 * len(rows)

        def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
            del parallelism, args, kwargs
            tasks = []
            for row in rows:
                table = pyarrow.table({key: [row[key]] for key in ('id', 'source', 'target')})
                metadata = BlockMetadata(1, table.nbytes, None, None)
                tasks.append(ReadTask(lambda table=table: [table], metadata, table.schema))
            return tasks

    return ItemRows()


def _to_json(result: JobResult) -> str:
    fields = dataclasses.asdict(result)
    del fields['item']
    return json.dumps(fields)


def _of_json(text: str, item: Item) -> JobResult:
    fields = json.loads(text)
    return JobResult(item, tuple(fields['size']), tuple(fields['new_size']), fields['error'])
