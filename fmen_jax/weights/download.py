"""Published weights: their addresses and hashes, and their download with pooch."""

import dataclasses
import logging
from pathlib import Path

from fmen_jax.errors import DownloadError, InputError
from fmen_jax.files import cache_folder

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


def download(name: str, *, url: str | None = None, progress: bool = False) -> Path:
    """Return the path of a published checkpoint in the cache; download it on first use.

    The file gets its final name only after its hash has been verified. A file of that name with
    another hash is replaced.

    Args:
      name: a key of PUBLISHED.
      url: another URL of the same file, such as a mirror.
      progress: whether to show a progress bar on standard error.

    Raises:
      InputError: If the name is unknown, or `url` is not an HTTP address.
      DownloadError: If the file could not be fetched, or its hash is not the expected one.
    """
    if name not in PUBLISHED:
        raise InputError(
            f'no published weights are named {name!r}; there are {", ".join(PUBLISHED)}.'
        )
    published = PUBLISHED[name]
    path = cache_folder() / (name + Path(published.filename).suffix)
    return fetch(published, path, option='--weights', url=url, progress=progress)


def fetch(
    published: Published, path: Path, *, option: str, url: str | None = None, progress: bool = False
) -> Path:
    """Download a published file to `path`, unless it is already there, and return the path.

    Args:
      published: where the file comes from, and its hash.
      path: where it is stored.
      option: option of the command line that takes the file from elsewhere, for messages.
      url: another URL of the same file, such as a mirror.
      progress: whether to show a progress bar on standard error.

    Raises:
      InputError: If `url` is not an HTTP address.
      DownloadError: If the file could not be fetched, or its hash is not the expected one.
    """
    source = url or published.url
    if not source.startswith(('https://', 'http://')):
        raise InputError(f'{source} is not an address; expected https://... or http://...')
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)  # it reports every download on standard error
    try:
        pooch.retrieve(
            source, f'sha256:{published.sha256}', path.name, path.parent, progressbar=progress
        )
    except (OSError, ValueError) as error:  # also those of requests; a wrong hash is a ValueError
        raise DownloadError(
            f'{source} could not be downloaded: {error}. To install the file by hand, put '
            f'{published.filename} from {published.url} at {path}, or pass another file as '
            f'{option} FILE.'
        ) from error
    return path
