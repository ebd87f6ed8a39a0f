"""DIV2K through TensorFlow Datasets (TFDS), prepared and read without TensorFlow.

The stock TFDS builder lists and extracts files with TensorFlow. The builder in this module extracts
the images from the official zip files itself, one pair at a time. It uses the names, versions,
splits, URLs and checksums of the stock builder. Images are passed to TFDS as file paths and are
decoded with Pillow.
"""

import dataclasses
import functools
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fmen_jax.data.pairs import Loaded, fitted
from fmen_jax.errors import InputError, require
from fmen_jax.files import sha256

PREFIX = 'div2k/'
"""Prefix of DIV2K set names, such as div2k/bicubic_x4 or div2k/bicubic_x4/validation."""

_SCALES = {f'bicubic_x{scale}': scale for scale in (2, 3, 4)}


def home() -> Path:
    """Return the data folder of TFDS: TFDS_DATA_DIR, or ~/tensorflow_datasets if it is not set.

    Official zip files in its subfolder downloads/manual are used; the others are downloaded.
    """
    return Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()


@dataclasses.dataclass(frozen=True)
class Div2k:
    """A prepared DIV2K set, opened by name with `open_set`."""

    name: str
    scale: int
    folder: Path
    """Folder in which TFDS stores the prepared set."""
    examples: Any
    """TFDS data source: random access to {'lr', 'hr'}, each [H, W, 3] uint8."""

    def pair(self, number: int) -> Loaded:
        """Return the LR and HR images of example `number`.

        Raises:
          InputError: If the sizes of the two images do not differ by the scale.
        """
        example = self.examples[number]
        return fitted(f'{self.name}[{number}]', example['lr'], example['hr'], self.scale)


def open_set(name: str) -> Div2k:
    """Return a DIV2K set by name; the first call prepares it in the array_record format.

    Raises:
      InputError: If the set does not exist, a package is missing, or a zip file is not the official
        one.
    """
    config, _, part = name.removeprefix(PREFIX).partition('/')
    if config not in _SCALES or part not in ('', 'train', 'validation'):
        raise InputError(
            f'{name}: there is no such set; expected '
            + ', '.join(PREFIX + config for config in _SCALES)
            + ', optionally followed by /train (the default) or /validation.'
        )
    builder = _builder_class()(config=config, data_dir=home())
    builder.download_and_prepare(file_format='array_record')
    examples = builder.as_data_source(part or 'train')
    return Div2k(name, _SCALES[config], Path(builder.data_dir), examples)


@functools.cache
def _builder_class() -> Any:
    # TFDS imports importlib_resources without declaring it as a dependency
    for module in ('tensorflow_datasets', 'array_record', 'importlib_resources', 'PIL'):
        require(module, 'div2k', 'DIV2K through TensorFlow Datasets')
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.div2k import div2k_dataset_builder as stock

    base: Any = stock.Builder

    class Builder(base, skip_registration=True):  # pyright: ignore
        """Builds the stock data set from the same files without TensorFlow."""

        name = 'div2k'
        url_infos: Any = stock.Builder.url_infos

        def _info(self) -> Any:
            image = tfds.features.Image(shape=(None, None, 3))
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({'lr': image, 'hr': image}),
                supervised_keys=('lr', 'hr'),
                homepage='https://data.vision.ee.ethz.ch/cvl/DIV2K/',
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            urls = self.builder_config.download_urls
            zips = {key: self._zip(dl_manager, url) for key, url in urls.items()}
            return {
                name: _examples(zips[f'{part}_lr_url'], zips[f'{part}_hr_url'])
                for name, part in (('train', 'train'), ('validation', 'valid'))
            }

        def _zip(self, dl_manager: Any, url: str) -> Path:
            name = PurePosixPath(url).name
            # not dl_manager.manual_dir, which raises if the folder does not exist
            path = home() / 'downloads/manual' / name
            if not path.is_file():
                return Path(dl_manager.download(url))
            expected = self.url_infos[url].checksum
            if (found := sha256(path)) != expected:
                raise InputError(
                    f'{path} has SHA-256 {found}, but that of the official file is {expected}: '
                    'remove the file, so that it is downloaded again.'
                )
            return path

    return Builder


def _examples(lr_zip: Path, hr_zip: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the image pairs of two zip files as paths, valid until the next pair is requested."""
    with zipfile.ZipFile(lr_zip) as lr, zipfile.ZipFile(hr_zip) as hr:
        lr_names, hr_names = _pictures(lr), _pictures(hr)
        if lr_names.keys() != hr_names.keys():
            alone = sorted(lr_names.keys() ^ hr_names.keys())
            raise InputError(
                f'{lr_zip} and {hr_zip}: {len(alone)} pictures are in only one of the two files, '
                f'such as {alone[0]}: replace the files with the official ones.'
            )
        for stem in sorted(hr_names):
            with tempfile.TemporaryDirectory() as folder:
                paths = {
                    'lr': lr.extract(lr_names[stem], folder),
                    'hr': hr.extract(hr_names[stem], folder),
                }
                yield stem, paths


def _pictures(archive: zipfile.ZipFile) -> dict[str, str]:
    """Map image numbers to members: 0801 for .../0801x4.png and .../0801.png."""
    members = (PurePosixPath(name) for name in archive.namelist())
    return {path.stem[:4]: str(path) for path in members if path.suffix == '.png'}
