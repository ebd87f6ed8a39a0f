"""Pictures over a cluster, by Ray Data: one actor per device, which compiles once.

An actor that dies is replaced, and its pictures are given to others. Ray's job checkpoints tell
what was done, so that a rerun of the job does only what is missing.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fmen_jax.errors import InputError, require
from fmen_jax.files import sha256, write_text
from fmen_jax.inference.jobs import Result, run
from fmen_jax.inference.planning import Item

_OTHER_TASKS = 4
"""CPUs for Ray's own steps beside the workers: reading, filtering what is done, writing."""


class _Worker:
    """Upscales pictures in a process of its own, one at a time."""

    def __init__(self, weights: str, settings: dict[str, Any], options: dict[str, Any]) -> None:
        from fmen_jax.images.write import SaveOptions
        from fmen_jax.inference.upscaler import Upscaler
        from fmen_jax.network import load

        self._upscaler = Upscaler(load(weights), **settings)
        self._options = SaveOptions(**options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch['source'], batch['target'], strict=True)
        items = [Item(Path(s), Path(t)) for s, t in pairs]
        results = [next(run([item], self._upscaler, options=self._options)) for item in items]
        return {
            'id': batch['id'],
            'target': batch['target'],
            'result': [_to_json(result) for result in results],
        }


def run_on_ray(
    items: Sequence[Item],
    weights: str | Path,
    *,
    workers: int,
    job: Path,
    settings: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Iterator[Result]:
    """Upscale pictures on the Ray cluster at hand, or on one that is started on this machine.

    Args:
      items: of `plan.plan`; all workers must see their paths.
      weights: a file that all workers see.
      workers: actors; each takes one GPU if the cluster has any, else one CPU of Ray's count.
      job: a folder for the job's checkpoints and results, kept for a rerun.
      settings: of `Upscaler`.
      options: of `SaveOptions`.

    Raises:
      InputError: Ray is not installed, the cluster is too small, or `job` is of another job.
    """
    require('ray', 'ray', 'upscaling on a cluster')
    import ray
    import ray.data
    from ray.data.checkpoint.interfaces import CheckpointConfig

    made_with = [sha256(Path(weights)), settings or {}, options or {}]
    _claim(job, made_with)
    job = job.resolve()
    rows, done = _rows(items, _results(job))
    for item in done:
        yield Result(item, skipped=True)
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
            fn_constructor_args=(str(Path(weights).resolve()), settings or {}, options or {}),
            num_gpus=1 if gpus else None,
            num_cpus=None if gpus else 1,
        ).write_json(str(job / 'results'))
    finally:
        context.checkpoint_config = None
    found = {row['id']: row['result'] for row in _results(job)}
    for row in rows:
        yield _of_json(found[row['id']], row['item'])


def _claim(job: Path, made_with: list[Any]) -> None:
    """Note in a new job what it is made with; compare with what an old one was."""
    path = job / 'job.json'
    if not path.exists():
        write_text(path, json.dumps(made_with))
    elif json.loads(path.read_text(encoding='utf-8')) != made_with:
        raise InputError(
            f'{job} is a job with other weights or settings: rerun it with its own, or name '
            'another folder.'
        )


def _results(job: Path) -> list[dict[str, Any]]:
    files = sorted((job / 'results').glob('*.json'))
    lines = [line for path in files for line in path.read_text(encoding='utf-8').splitlines()]
    return [json.loads(line) for line in lines]


def _rows(
    items: Sequence[Item], results: Iterable[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Item]]:
    """What is to be done, and which items are done.

    The id is what Ray's checkpoints know: it changes with the picture, and when an output failed or
    is gone, so that these are tried again.
    """
    before: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        before.setdefault(result['target'], []).append(result)
    rows, done = [], []
    for item in items:
        target = str(item.target.resolve())
        stat = item.source.stat()
        version = f'{target} {stat.st_size} {stat.st_mtime_ns}'
        made = [r for r in before.get(target, ()) if r['id'].startswith(version)]
        if made and item.target.exists() and not json.loads(made[-1]['result'])['error']:
            done.append(item)
            continue
        source = str(item.source.resolve())
        rows.append(
            {'id': f'{version} {len(made)}', 'source': source, 'target': target, 'item': item}
        )
    return rows, done


def _connect(workers: int) -> None:
    """To a cluster that runs, else start one here.

    Raises:
      InputError: it would never have room for all the workers, and wait for ever.
    """
    import ray

    if not ray.is_initialized():
        logging.getLogger('ray').setLevel(logging.ERROR)
        try:
            ray.init(address='auto', logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError:
            # a count for Ray's bookkeeping, not of cores: XLA uses them all in any case
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
    """A Ray datasource of one block for each row, so that every picture is a task of its own."""
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


def _to_json(result: Result) -> str:
    fields = dataclasses.asdict(result)
    del fields['item']
    return json.dumps(fields)


def _of_json(text: str, item: Item) -> Result:
    fields = json.loads(text)
    return Result(item, tuple(fields['size']), tuple(fields['new_size']), fields['error'])
