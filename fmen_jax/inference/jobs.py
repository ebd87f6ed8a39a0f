"""Upscaling of many pictures, with reading, computing and writing in parallel.

Errors are collected in the results, and a manifest records the outputs.
"""

import dataclasses
import itertools
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fmen_jax.errors import FMENError
from fmen_jax.files import sha256
from fmen_jax.images.picture_rows import PictureRows
from fmen_jax.images.read import MAX_PIXELS, Opened, open_picture
from fmen_jax.images.write import SaveOptions, Writer
from fmen_jax.inference.planning import Item
from fmen_jax.inference.upscaler import Upscaler

_AHEAD = 2
"""Maximum number of pictures that wait to be computed, and likewise to be written."""
_READ_AHEAD = 2**24
"""Largest number of pixels of a picture that is decoded in advance."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of an item: the sizes (width, height) in pixels, or an error."""

    item: Item
    size: tuple[int, int] = (0, 0)
    new_size: tuple[int, int] = (0, 0)
    error: str = ''
    skipped: bool = False
    """Whether the item was skipped because its output already existed."""


class Manifest:
    """Record of the outputs as JSON lines with hashes, so that a rerun can skip them."""

    def __init__(self, path: Path | None, made_with: str) -> None:
        """Read the file; entries whose `made_with` (network and settings) differs are ignored."""
        self._path, self._made_with = path, made_with
        self._done: dict[str, dict[str, Any]] = {}
        if path and path.exists():
            for line in path.read_text(encoding='utf-8').splitlines():
                try:
                    entry = json.loads(line)
                    self._done[entry['output']] = entry
                except (ValueError, KeyError):
                    continue  # the process was killed while writing the line

    def has(self, item: Item) -> bool:
        """Return whether the output exists and was made from this input with these settings."""
        entry = self._done.get(str(item.target))
        return bool(
            entry
            and entry['made_with'] == self._made_with
            and item.target.is_file()
            and entry['input_sha256'] == sha256(item.source)
            and entry['output_sha256'] == sha256(item.target)
        )

    def add(self, result: Result) -> None:
        """Append a line for a result, unless it failed or was skipped."""
        if not self._path or result.error or result.skipped:
            return
        item = result.item
        entry = {
            'input': str(item.source),
            'input_sha256': sha256(item.source),
            'output': str(item.target),
            'output_sha256': sha256(item.target),
            'size': result.size,
            'new_size': result.new_size,
            'made_with': self._made_with,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._path.exists() and self._path.read_bytes()[-1:] not in (b'', b'\n')
        with self._path.open('a', encoding='utf-8') as file:
            file.write('\n' * torn + json.dumps(entry) + '\n')


def run(
    items: Sequence[Item],
    upscaler: Upscaler,
    *,
    options: SaveOptions = SaveOptions(),  # noqa: B008 - frozen
    manifest: Manifest | None = None,
    skip_existing: bool = False,
    progress: Callable[[int], object] = int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Result]:
    """Upscale and write each picture; a failure is reported in its result, and the rest continue.

    Args:
      items: items returned by `planning.plan`.
      upscaler: the upscaler to use.
      options: options for writing the outputs.
      manifest: record of earlier outputs, which are skipped; new outputs are added to it.
      skip_existing: whether to skip all outputs that exist, whatever made them.
      progress: called with the number of LR pixels finished since the last call.
      max_pixels: number of LR pixels above which a picture is refused.
    """
    done: queue.Queue[Result | None] = queue.Queue()
    todo = []
    for item in items:
        there = item.target.exists() if skip_existing else bool(manifest and manifest.has(item))
        if there:
            yield Result(item, skipped=True)
        else:
            todo.append(item)
    work = _Work(todo, upscaler, options, progress, max_pixels, done)
    thread = threading.Thread(target=work.run, daemon=True)
    thread.start()
    try:
        while (result := done.get()) is not None:
            if manifest:
                manifest.add(result)
            yield result
        if work.fault:
            raise work.fault
    finally:
        work.stopped.set()
        thread.join()


class _Work:
    """Pipeline of three threads: one opens the next picture, one computes, one encodes the last."""

    def __init__(
        self,
        items: Sequence[Item],
        upscaler: Upscaler,
        options: SaveOptions,
        progress: Callable[[int], object],
        max_pixels: int,
        done: queue.Queue[Result | None],
    ) -> None:
        self._items, self._upscaler, self._options = items, upscaler, options
        self._progress, self._max_pixels, self._done = progress, max_pixels, done
        self._open: dict[int, tuple[Item, Opened, Writer]] = {}
        self.stopped = threading.Event()
        self.fault: BaseException | None = None

    def run(self) -> None:
        """Run until all items are done or `stopped` is set, then put None into the queue."""
        with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(1) as saver:
            try:
                self._compute(opener, saver)
            except BaseException as error:
                self.fault = error
        for _, _, writer in self._open.values():
            writer.close()
        self._done.put(None)

    def _compute(self, opener: ThreadPoolExecutor, saver: ThreadPoolExecutor) -> None:
        saving: deque[Future] = deque()
        for number, band in self._upscaler.bands(self._pictures(opener), self.stopped.is_set):
            if self.stopped.is_set():
                break
            item, opened, writer = self._open[number]
            if isinstance(band, FMENError):
                del self._open[number]
                writer.close()
                self._done.put(Result(item, error=str(band)))
                continue
            try:
                writer.add(band)
            except OSError as error:  # the disk is full
                raise FMENError(f'{item.target}: {error}') from error
            self._progress(band.shape[0] * opened.rows.width // self._upscaler.scale)
            if writer.complete:
                del self._open[number]
                saving.append(saver.submit(self._save, item, opened, writer))
                if len(saving) > _AHEAD:
                    saving.popleft().result()
        for future in saving:
            future.result()

    def _pictures(self, opener: ThreadPoolExecutor) -> Iterator[PictureRows]:
        """Yield pictures opened in advance; report and omit those that cannot be opened."""
        upcoming: deque[tuple[Item, Future[Opened]]] = deque()
        items = iter(self._items)
        number = 0
        while not self.stopped.is_set():
            for item in itertools.islice(items, _AHEAD - len(upcoming)):
                future = opener.submit(_opened, item.source, self._max_pixels)
                upcoming.append((item, future))
            if not upcoming:
                return
            item, future = upcoming.popleft()
            try:
                opened = future.result()
                writer = Writer(item.target, opened, self._upscaler.scale, self._options)
            except Exception as error:  # whatever is wrong with one picture, the others go on
                self._done.put(Result(item, error=_message(item.source, error)))
                continue
            self._open[number] = (item, opened, writer)
            number += 1
            yield opened.rows

    def _save(self, item: Item, opened: Opened, writer: Writer) -> None:
        if self.stopped.is_set():
            writer.close()
            return
        try:
            writer.save()
        except Exception as error:
            self._done.put(Result(item, error=_message(item.target, error)))
        else:
            width, height = (side * self._upscaler.scale for side in opened.size)
            self._done.put(Result(item, opened.size, (width, height)))


def _message(path: Path, error: Exception) -> str:
    """What to report of an error; the path and the kind of error where its text lacks them."""
    known = isinstance(error, FMENError | OSError)
    return str(error) if known else f'{path}: {type(error).__name__}: {error}'


def _opened(path: Path, max_pixels: int) -> Opened:
    """Open a picture, and decode it entirely unless it is large."""
    opened = open_picture(path, max_pixels=max_pixels)
    rows = opened.rows
    if rows.height * rows.width > _READ_AHEAD:
        return opened
    pixels = rows.read(0, rows.height)
    return dataclasses.replace(
        opened, rows=dataclasses.replace(rows, read=lambda start, stop: pixels[start:stop])
    )
