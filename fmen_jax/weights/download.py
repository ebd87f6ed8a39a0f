"""Published weights: their addresses and hashes, and the download."""

import dataclasses
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import filelock

from fmen_jax.errors import DownloadError, InputError
from fmen_jax.files import cache_folder, sha256

_RAW = 'https://raw.githubusercontent.com'
_NTIRE = f'{_RAW}/ofsoundof/NTIRE2022_ESR/044c9300a60595a11c4a921d335f5694187c17d0/model_zoo'


@dataclasses.dataclass(frozen=True)
class Published:
    """Checkpoint published by its authors."""

    url: str
    """Public URL, at a fixed commit."""
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        """File name in the URL."""
        return self.url.rpartition('/')[2]


PUBLISHED = {
    'fmen_s_x4_github': Published(
        f'{_RAW}/NJU-Jet/FMEN/a1def169d0e2c99ecebdb1b08bf567f329c3a566/test_weights.pt',
        'd5534eba1feacfdd4043d9175d3bf0730b1ab4c91ba5c3f40a2282cd496fb4a5',
        'Apache-2.0',
    ),
    'fmen_s_x4_ntire2022': Published(
        f'{_NTIRE}/team03_fmen.pth',
        'f20cde0828068c5f50d3b64aa82c8a363fe6abc8d536d1a9fd4d09899f019bea',
        'MIT',
    ),
    'e_rfdn_x4': Published(
        f'{_NTIRE}/rfdn_baseline.pth',
        '11af8ec8ebd68689e90ef1e29044f9804c72d3bd9f7573820b7b26035782760c',
        'MIT',
    ),
    'rlfn_x4_ntire2022': Published(
        f'{_NTIRE}/team04_rlfn.pth',
        'ca81b7757708ce749ac3766589690db6c2729961d026c0137e7659924ec36622',
        'MIT',
    ),
}


def download(
    name: str,
    *,
    url: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Return the path of a published checkpoint in the cache; download it on first use.

    An interrupted download is resumed where it stopped. The file gets its final name only after its
    hash has been verified.

    Args:
      name: a key of PUBLISHED.
      url: another URL of the same file, such as a mirror.
      report: called with the number of bytes received and the total number (0 if unknown).

    Raises:
      InputError: the name is unknown, or `url` is not an HTTP address.
      DownloadError: the file could not be fetched, or its hash is not the expected one.
    """
    if name not in PUBLISHED:
        raise InputError(f'no published weights are named {name!r}; there are {_names()}.')
    published = PUBLISHED[name]
    path = cache_folder() / (name + Path(published.filename).suffix)
    by_hand = f'By hand: put {published.filename} from {published.url} at {path}'
    source = url or published.url
    if not source.startswith(('https://', 'http://')):
        raise InputError(f'{source} is not an address; expected https://... or http://...')
    if path.exists():
        if (found := sha256(path)) == published.sha256:
            return path
        raise DownloadError(
            f'{path} is not {name}: SHA-256 is {found}, expected {published.sha256}. '
            'Delete the file and try again.'
        )
    part = path.with_name(path.name + '.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f'{path}.lock'):
            if not path.exists():  # another process may have downloaded it meanwhile
                _fetch(source, part, report)
                _keep(part, path, name, source)
    except DownloadError:
        raise
    except (http.client.HTTPException, OSError) as error:
        raise DownloadError(
            f'{source} could not be fetched: {error}. Try again to go on where it stopped. '
            f'{by_hand}, or give --weights FILE.'
        ) from error
    return path


def _keep(part: Path, path: Path, name: str, source: str) -> None:
    """Rename `part` to `path` if it has the expected hash, else delete it."""
    expected = PUBLISHED[name].sha256
    if (found := sha256(part)) != expected:
        part.unlink()
        raise DownloadError(
            f'{source} is not {name}: SHA-256 is {found}, expected {expected}. Nothing was kept.'
        )
    part.replace(path)


def _names() -> str:
    return ', '.join(PUBLISHED)


def _fetch(url: str, part: Path, report: Callable[[int, int], None] | None) -> None:
    """Download the rest of `part`, starting after the bytes that it already has."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done}-'} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        return  # The range is empty: the file should be complete, which its hash verifies.
    with response, part.open('ab' if response.status == 206 else 'wb') as file:
        done = file.tell()
        length = int(response.headers.get('Content-Length') or 0)
        total = done + length if length else 0
        while chunk := response.read(1 << 16):
            file.write(chunk)
            done += len(chunk)
            if report:
                report(done, total)
    if done < total:
        raise OSError(f'the connection ended after {done} of {total} bytes')
