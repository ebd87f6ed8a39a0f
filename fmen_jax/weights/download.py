"""The published weights: where they are, which hash they have, and how they get here."""

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
    """A checkpoint that its authors publish."""

    url: str
    """Public address, at a fixed commit."""
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        """The file's name at its address."""
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
    """Fetch a published checkpoint, once; the path of the file in the cache.

    An interrupted download goes on where it stopped. The file has its name only when its hash is
    right.

    Args:
      name: a key of PUBLISHED.
      url: another address of the same file, such as a mirror.
      report: called with the bytes at hand and the bytes in all (0 if not known).

    Raises:
      InputError: no such name.
      DownloadError: not reachable, or not the file expected.
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
            if not path.exists():  # another process may have been faster
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
    """Give a file its name, if it is the one expected; else remove it."""
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
    """Bring `part` to its full length, from the byte it has reached."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done}-'} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        return  # nothing is left to send; the hash tells whether that is so
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
