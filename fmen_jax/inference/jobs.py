"""Upscaling of many image files, with reading, computing and writing in parallel.

Errors are reported in the results, and a manifest records the outputs.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fmen_jax.errors import FMENError, InputError
from fmen_jax.files import sha256
from fmen_jax.images.read import MAX_PIXELS, Opened, open_picture
from fmen_jax.images.write import SaveOptions, Writer
from fmen_jax.inference.planning import Item
from fmen_jax.inference.upscaler import Upscaler

_AHEAD = 2
"""Maximum number of images that wait to be computed, and likewise to be written."""
_READ_AHEAD = 2**24
"""Largest number of pixels of an image that is decoded in advance."""


@dataclasses.dataclass(frozen=True)
class JobResult:
    """Outcome of an item: the sizes (width, height) in pixels, or an error."""

    item: Item
    size: tuple[int, int] = (0, 0)
    new_size: tuple[int, int] = (0, 0)
    error: str = ''
    skipped: bool = False
    """Whether the item was skipped because its output already existed."""


class Manifest:
    """Record of the outputs as JSON lines with hashes, so that a rerun can skip them."""

    def __init__(self, path: Path, made_with: str) -> None:
        """Read the file; entries whose `made_with` (network and settings) differs are ignored.

        Raises:
          InputError: The file is not text.
        """
        self._path, self._made_with = path, made_with
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                lines = path.read_text(encoding='utf-8').splitlines()
            except UnicodeDecodeError as error:
                raise InputError(
                    f'the manifest {path} is not a text file; expected one that an earlier job has '
                    'written, or the name of a new file.'
                ) from error
            for line in lines:
                try:
                    entry = json.loads(line)
                    self._done[entry['output']] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # the process was killed while writing the line

    def has(self, item: Item, input_sha256: str) -> bool:
        """Return whether the output exists and was made from this input with these settings."""
        entry = self._done.get(str(item.target))
        return bool(
            entry
            and entry.get('made_with') == self._made_with
            and entry.get('input_sha256') == input_sha256
            and item.target.is_file()
            and entry.get('output_sha256') == sha256(item.target)
        )

    def add(self, result: JobResult, input_sha256: str) -> None:
        """Append a line for an output that was just written."""
        item = result.item
        entry = {
            'input': str(item.source),
            'input_sha256': input_sha256,
            'output': str(item.target),
            'output_sha256': sha256(item.target),
            'size': result.size,
            'new_size': result.new_size,
            'made_with': self._made_with,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open('ab+') as file:
            incomplete = False  # whether a process was killed while writing the last line
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                incomplete = file.read() != b'\n'
            line = json.dumps(entry) + '\n'
            file.write((f'\n{line}' if incomplete else line).encode())


def run(
    items: Sequence[Item],
    upscaler: Upscaler,
    *,
    options: SaveOptions = SaveOptions(),  # noqa: B008 - frozen
    manifest: Manifest | None = None,
    skip_existing: bool = False,
    progress: Callable[[int], object] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[JobResult]:
    """Upscale and write each image; a failure is reported in its result, and the rest continue.

    One thread opens the next image, the calling thread computes, and one thread encodes the
    previous image. Results come as soon as they are known, in nearly the order of the items.

    Args:
      items: items returned by `planning.plan`.
      upscaler: the upscaler to use.
      options: options for writing the outputs.
      manifest: record of earlier outputs, which are skipped; new outputs are added to it.
      skip_existing: whether to skip all outputs that exist, whatever made them.
      progress: called with the number of LR pixels finished since the last call.
      max_pixels: number of LR pixels above which an image is refused.
    """
    job = _Job(upscaler, options, manifest, skip_existing, progress, max_pixels)
    try:
        yield from job.results(items)
    finally:
        job.close()


@dataclasses.dataclass(frozen=True)
class _Source:
    """An input that was opened."""

    item: Item
    opened: Opened
    version: tuple[int, ...]
    sha256: str
    """Hash of the file; empty if there is no manifest."""

    def check_unchanged(self) -> None:
        """Raise InputError if the file has changed or is gone since it was opened."""
        if _version(self.item.source) != self.version:
            raise InputError(f'{self.item.source}: the file was changed while it was read.')


class _Job:
    """State of one call of `run`."""

    def __init__(
        self,
        upscaler: Upscaler,
        options: SaveOptions,
        manifest: Manifest | None,
        skip_existing: bool,
        progress: Callable[[int], object] | None,
        max_pixels: int,
    ) -> None:
        self._upscaler, self._options, self._manifest = upscaler, options, manifest
        self._skip_existing, self._progress = skip_existing, progress
        self._max_pixels = max_pixels
        self._opener, self._encoder = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._encoding: deque[tuple[Future[None], Writer]] = deque()
        self._done: queue.SimpleQueue[JobResult] = queue.SimpleQueue()

    def results(self, items: Sequence[Item]) -> Iterator[JobResult]:
        for item, source in self._sources(items):
            with self._errors_reported(item):
                if opened := source.result():
                    yield from self._compute(opened)
            yield from self._new_results()
        for encoded, _ in self._encoding:
            encoded.result()
            yield from self._new_results()

    def close(self) -> None:
        """Stop the threads; outputs that are not being written yet are discarded."""
        self._opener.shutdown(cancel_futures=True)
        for encoded, writer in self._encoding:
            if encoded.cancel():
                writer.close()
        self._encoder.shutdown()

    @contextlib.contextmanager
    def _errors_reported(self, item: Item) -> Iterator[None]:
        """Report any exception as the error of an image, so that the other images continue."""
        try:
            yield
        except Exception as error:
            self._done.put(failed(item, error))

    def _new_results(self) -> Iterator[JobResult]:
        while not self._done.empty():
            yield self._done.get()

    def _sources(self, items: Sequence[Item]) -> Iterator[tuple[Item, Future[_Source | None]]]:
        """Yield the items, each with its source, while the next sources are being opened."""
        opening: deque[tuple[Item, Future[_Source | None]]] = deque()
        remaining = iter(items)
        while True:
            for item in itertools.islice(remaining, _AHEAD - len(opening)):
                opening.append((item, self._opener.submit(self._open, item)))
            if not opening:
                return
            yield opening.popleft()

    def _open(self, item: Item) -> _Source | None:
        """Open an input, and decode it entirely unless it is large; None if it is skipped."""
        version = _version(item.source)
        # The hash is that of the file before it is read, and `version` tells if it changes later.
        digest = sha256(item.source) if self._manifest else ''
        if (self._skip_existing and item.target.exists()) or (
            self._manifest and self._manifest.has(item, digest)
        ):
            self._done.put(JobResult(item, skipped=True))
            return None
        opened = open_picture(item.source, max_pixels=self._max_pixels)
        rows = opened.rows
        if rows.height * rows.width <= _READ_AHEAD:
            pixels = rows.read(0, rows.height)
            rows = dataclasses.replace(rows, read=lambda start, stop: pixels[start:stop])
        return _Source(item, dataclasses.replace(opened, rows=rows), version, digest)

    def _compute(self, source: _Source) -> Iterator[JobResult]:
        """Upscale an image and pass it on to be written; yield the results of earlier ones."""
        scale = self._upscaler.scale
        writer = Writer(source.item.target, source.opened, scale, self._options)
        try:
            for band in self._upscaler.bands(source.opened.rows):
                writer.add(band)
                if self._progress:
                    self._progress(len(band) * source.opened.rows.width // scale)
                yield from self._new_results()
            source.check_unchanged()
        except BaseException:
            writer.close()
            raise
        self._encoding.append((self._encoder.submit(self._write, source, writer), writer))
        if len(self._encoding) > _AHEAD:
            self._encoding.popleft()[0].result()

    def _write(self, source: _Source, writer: Writer) -> None:
        with self._errors_reported(source.item), contextlib.closing(writer):
            writer.save()
            width, height = source.opened.size
            scale = self._upscaler.scale
            result = JobResult(source.item, (width, height), (width * scale, height * scale))
            if self._manifest:
                self._manifest.add(result, source.sha256)
            self._done.put(result)


def _version(path: Path) -> tuple[int, ...]:
    """Return numbers that change if the content of a file changes."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def failed(item: Item, error: Exception) -> JobResult:
    """Return the result of an item that failed, with the path of the file in its message."""
    if isinstance(error, FMENError):
        message = str(error)
    elif isinstance(error, OSError):
        message = f'{error.filename or item.target}: {error.strerror or error}.'
    else:
        message = f'{item.source}: {type(error).__name__}: {error}'
    return JobResult(item, error=message)
