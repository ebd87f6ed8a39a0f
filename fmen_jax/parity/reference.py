"""Run the PyTorch reference in a process of its own, and the inputs that it is given."""

import ast
import base64
import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fmen_jax import porting
from fmen_jax.errors import InputError
from fmen_jax.files import write_text
from fmen_jax.images.bicubic import imresize
from fmen_jax.images.read import read_rgb8
from fmen_jax.network import Network
from fmen_jax.parity.dump import Dump, renamed_modules

NOT_LITERAL = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
"""What `ast.literal_eval` raises for a text that is not a Python literal."""

_FOLDER = Path(__file__).parent
_STDERR_BYTES = 2**16
"""Bytes at the end of stderr that are searched for the cause of a failure."""
_BUILTIN = {'FMENConfig': 'fmen', 'RFDNConfig': 'rfdn', 'RLFNConfig': 'rlfn'}


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """How the reference is constructed and what it is asked for."""

    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the reference by name."""
    stubs: tuple[str, ...] = ()
    """Modules that the reference imports but does not use; each is replaced by an empty one."""
    python: str = sys.executable
    """Python interpreter with PyTorch and NumPy."""
    timeout: float = 300.0
    """Time limit in seconds."""
    dtypes: tuple[Literal['float64', 'float32'], ...] = ('float64', 'float32')
    """Dtypes to compute in."""
    gradients: bool = False
    """Whether to record the gradients of a train step."""
    steps: int = 0
    """Number of steps of Adam; more than 0 implies `gradients`."""
    device: Literal['cpu', 'gpu'] = 'cpu'
    """Device of the reference."""


def run_reference(
    network: Network,
    reference: str,
    checkpoint: str | Path | None = None,
    config: ReferenceConfig = ReferenceConfig(),
    pictures: Mapping[str, np.ndarray] | None = None,
) -> Dump:
    """Run a PyTorch implementation of a network and return what it computed.

    The file is executed with the rights of the user, in a subprocess with a temporary working
    directory and a time limit; that isolates failures, not malice.

    Args:
      network: the network to compare with.
      reference: 'FILE.py:NAME', or 'builtin' for the implementation in this package.
      checkpoint: file that the reference loads by itself; the weights of `network` if omitted.
      config: how to construct and run the reference.
      pictures: HR pictures [H, W, C], uint8, by name; each is shrunk by the scale.

    Raises:
      InputError: If the reference cannot be run; the message is one line that says why.
    """
    if reference == 'builtin':
        kind = type(network.config).__name__
        if kind not in _BUILTIN:
            raise InputError(
                f'there is no builtin reference for {kind}, only for {", ".join(_BUILTIN)}: name a '
                'Python file with --reference FILE.py:NAME.'
            )
        name = _BUILTIN[kind]
        deploy = {'deploy': network.graph == 'deploy'} if name == 'fmen' else {}
        config = dataclasses.replace(config, arguments={**deploy, **config.arguments})
        reference = f'{_FOLDER / "torch_fmen.py"}:{name}'
    file, _, name = reference.rpartition(':')
    if not (name and Path(file).is_file()):
        raise InputError(
            f'{reference}: no such reference; expected FILE.py:NAME with an existing file, '
            'DUMP.npz, or builtin.'
        )
    python = shutil.which(config.python)
    if python is None:
        raise InputError(
            f'--python is {config.python!r}, which is not an executable program; expected the path '
            'of a Python interpreter, or the name of one on PATH.'
        )
    with tempfile.TemporaryDirectory(prefix='fmen_jax_parity_') as folder:
        script, output = Path(folder, 'probe.py'), Path(folder, 'dump.npz')
        if checkpoint is None:
            checkpoint = Path(folder, 'weights.safetensors')
            porting.write(checkpoint, network.state_dict(), {})
        write_probe(script, network, config, pictures)
        target = f'{Path(file).resolve()}:{name}'
        # absolute, but with its links, by which Python recognizes a virtual environment
        python = str(Path(python).absolute())
        arguments = [str(Path(checkpoint).resolve()), target, str(output)]
        code, errors = _run([python, str(script), *arguments], folder, config.timeout)
        if code == 0 and output.is_file():
            return Dump(output)
    raise InputError(_failure(reference, config, code, errors))


def write_probe(
    path: Path,
    network: Network,
    config: ReferenceConfig = ReferenceConfig(),
    pictures: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the probe as one script for a machine with PyTorch and without JAX.

    `python PATH CHECKPOINT FILE.py:NAME DUMP.npz` there writes the dump to compare with.
    """
    source = (_FOLDER / 'probe.py').read_text(encoding='utf-8')
    mark = 'SETTINGS: dict[str, Any] = {}'
    assert source.count(mark) == 1
    settings = probe_settings(network, config, pictures)
    write_text(path, source.replace(mark, f'SETTINGS: dict[str, Any] = {settings!r}'))


def probe_settings(
    network: Network,
    config: ReferenceConfig = ReferenceConfig(),
    pictures: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return what the probe has to know about the network, and its inputs, in plain types."""
    for name, value in config.arguments.items():
        try:
            ast.literal_eval(repr(value))
        except NOT_LITERAL as error:
            raise InputError(
                f'the argument {name!r} of the reference is {value!r}; expected a Python literal, '
                'which the script of the probe can contain, such as a finite number or a string.'
            ) from error
    hyper_parameters: Any = network.config
    return {
        'config': dataclasses.asdict(hyper_parameters),
        'arguments': dict(config.arguments),
        'stubs': list(config.stubs),
        'dtypes': list(config.dtypes),
        'gradients': config.gradients or config.steps > 0,
        'steps': config.steps,
        'device': {'cpu': 'cpu', 'gpu': 'cuda'}[config.device],
        'renamed': renamed_modules(),
        'inputs': _packed(make_inputs(network, max(config.steps, 1), pictures or {})),
    }


def make_inputs(
    network: Network, steps: int, pictures: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the inputs of a comparison as uint8 [N, C, H, W], by their names in the dump.

    Small sizes at which the borders matter, and a batch of two: random values, and a crop of a
    photograph. Networks that see the whole image need 15 or more pixels in both directions.

    Raises:
      InputError: If a picture is too small or has other channels than those of the network.
    """
    config, generator = network.config, np.random.default_rng(0)
    whole = config.receptive_radius is None

    def noise(*shape: int) -> np.ndarray:
        return generator.integers(0, 256, shape, np.uint8)

    colors = np.arange(config.n_colors) % 3
    photo = read_rgb8(_FOLDER / 'astronaut.png')[..., colors].transpose(2, 0, 1)
    c, h, w = photo.shape
    sizes = [(15, 15), (15, 22)] if whole else [(1, 1), (5, 7)]
    inputs = {f'input/{h}x{w}': noise(1, c, h, w) for h, w in sizes}
    inputs[f'input/{h}x{w}'] = np.concatenate([noise(1, c, h, w), photo[None]])
    size = 16 if whole else 12
    inputs['train/x'] = noise(steps, 2, c, size, size)
    inputs['train/y'] = noise(steps, 2, c, *[size * config.scale] * 2)
    least = config.scale * config.min_size
    for name, hr in pictures.items():
        if hr.shape[2:] != (config.n_colors,) or min(hr.shape[:2]) < least:
            raise InputError(
                f'the picture {name} is {list(hr.shape)}; expected [H, W, {config.n_colors}], with '
                f'{least} or more in height and width for this network: leave it out, or choose '
                'another.'
            )
        original = cropped(hr, config.scale)
        inputs[f'original/{name}'] = original
        lr = imresize(original[0].transpose(1, 2, 0), 1 / config.scale)
        inputs[f'picture/{name}'] = lr.transpose(2, 0, 1)[None]
    return inputs


def cropped(hr: np.ndarray, scale: int) -> np.ndarray:
    """Return a picture [H, W, C], cut to multiples of the scale, as [1, C, H, W]."""
    height, width = (size // scale * scale for size in hr.shape[:2])
    return hr[:height, :width].transpose(2, 0, 1)[None]


def _packed(arrays: Mapping[str, np.ndarray]) -> str:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return base64.b64encode(file.getvalue()).decode()


def _run(command: list[str], folder: str, timeout: float) -> tuple[int | None, str]:
    """Run a command; return its exit code, None if the time ran out, and the end of its stderr.

    The whole process group is ended at the time limit: a reference may have started others. Windows
    has no process groups; there, the reference alone is ended.
    """
    environment = {**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'}
    # A file: a pipe would have to be read until the last process that has it open ends.
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(
                f'{command[0]}: cannot be run as --python: {error.strerror}.'
            ) from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if hasattr(os, 'killpg'):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        return code, stderr.read().decode(errors='replace')


def _failure(reference: str, config: ReferenceConfig, code: int | None, errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    if code is None:
        return (
            f'{reference}: the reference did not finish within the time limit of '
            f'{config.timeout:g} s; if it does not hang, raise --timeout.'
        )
    if said := [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]:
        return f'{reference}: {said[-1]}'
    if any(f"No module named '{name}'" in line for line in lines for name in ('torch', 'numpy')):
        return (
            f'{config.python} has no PyTorch: name a Python that has it with --python, or install '
            'it with pip install "fmen_jax[torch]", or run the reference elsewhere with '
            '--write-probe.'
        )
    last = lines[-1] if lines else 'it wrote nothing to stderr'
    return f'{reference}: its process ended with exit code {code} before it wrote results: {last}'
