"""Run a PyTorch network and record what it computes: its weights, every layer, gradients, steps.

    python probe.py CHECKPOINT FILE.py:NAME DUMP.npz

This file needs PyTorch and NumPy only, and is copied as it is to where these are installed. It
executes FILE.py with your rights; the checkpoint is read as data (`weights_only=True`). All maps in
the dump are [N, C, H, W]. `fmen-jax parity CHECKPOINT --reference DUMP.npz` compares with it.
"""

import argparse
import base64
import contextlib
import copy
import hashlib
import importlib.util
import inspect
import io
import json
import platform
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Replaced by `fmen-jax parity --write-probe`: the configuration of the network and the inputs.
SETTINGS: dict[str, Any] = {}

FORMAT = 1
_WRAPPERS = ('params_ema', 'params', 'state_dict', 'model_state_dict', 'model')
_PREFIXES = ('module.', 'model.')
_MAX_WRAPPERS = 8  # a file can contain a dict that contains itself
_SAFETENSORS = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
}


class ProbeError(Exception):
    """The reference or the checkpoint cannot be used; the message is one line."""


@contextlib.contextmanager
def running_foreign_code(what: str, printed: io.StringIO) -> Iterator[None]:
    """Turn whatever the code of the reference raises into one line; collect what it prints."""
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except ProbeError:
        raise
    except SystemExit as error:
        raise ProbeError(
            f'the reference called exit({error.code!r}) while {what}; move what its file runs as a '
            "script below `if __name__ == '__main__':`."
        ) from error
    except ModuleNotFoundError as error:
        raise ProbeError(
            f'the reference needs the module {error.name!r} while {what}; install it in the '
            f'environment of --python ({sys.executable}), or, if the network does not use it, '
            f'replace it by an empty module: --stub {error.name}.'
        ) from error
    except Exception as error:
        raise ProbeError(f'the reference failed while {what}: {_line(error)}') from error


def _line(error: Exception) -> str:
    text = ' '.join(str(error).split())[:300]
    return f'{type(error).__name__}: {text}'


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the bare state dict of a .pt, .pth or .safetensors file."""
    try:
        if path.suffix.lower() == '.safetensors':
            tree = _read_safetensors(path)
        else:
            tree = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise ProbeError(f'{path}: cannot be read as a checkpoint: {_line(error)}') from error
    state = {str(key): value for key, value in _unwrapped(tree).items()}
    if not state:
        raise ProbeError(f'{path}: holds no state dict, bare or under one of {_WRAPPERS}.')
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), ''):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    state = {}
    for key, entry in json.loads(data[8:start]).items():
        if key != '__metadata__':
            begin, end = (start + offset for offset in entry['data_offsets'])
            flat = torch.frombuffer(bytearray(data[begin:end]), dtype=_SAFETENSORS[entry['dtype']])
            state[key] = flat.reshape(entry['shape'])
    return state


def _unwrapped(tree: Any) -> dict[Any, Tensor]:
    """Return the tensors by key in a checkpoint; none if it is not a state dict."""
    for _ in range(_MAX_WRAPPERS + 1):
        if not isinstance(tree, dict):
            break
        if all(isinstance(value, Tensor) for value in tree.values()):
            return tree
        tree = next((tree[w] for w in _WRAPPERS if isinstance(tree.get(w), dict)), None)
    return {}


def import_reference(reference: str, stubs: list[str], printed: io.StringIO) -> Any:
    """Return the object NAME of FILE.py:NAME."""
    file, colon, name = reference.rpartition(':')
    if not (colon and Path(file).is_file()):
        raise ProbeError(f'{reference}: expected FILE.py:NAME with an existing file.')
    for stub in stubs:
        sys.modules[stub] = _Stub(stub)
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))  # for the modules next to it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ProbeError(f'{file}: not a Python file.')
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with running_foreign_code('being imported', printed):
        spec.loader.exec_module(module)
    if not hasattr(module, name):
        known = [
            k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == path.stem
        ]
        raise ProbeError(f'{file} defines no {name!r}; it has the classes {", ".join(known)}.')
    return getattr(module, name)


class _Stub(types.ModuleType):
    """An empty module: every public name in it is a function that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *_, **__: None


def construct(target: Any, config: dict[str, Any], extra: dict[str, Any]) -> nn.Module:
    """Return the network: the object itself, or what it returns when it is called.

    A first parameter named args or opt gets a namespace, as in EDSR and the published FMEN; other
    parameters get the fields of the configuration and the values of --arg by name.
    """
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ProbeError(
            f'the reference is a {type(target).__name__}; expected a class or function.'
        )
    parameters = list(inspect.signature(target).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    values = {**config, **extra}
    leading = []
    if named and named[0].name in ('args', 'opt'):
        scale = [config['scale']] if 'scale' in config else []
        leading = [types.SimpleNamespace(**{'rgb_range': 255, **config, 'scale': scale, **extra})]
        named, extra = named[1:], {}
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        names = [p.name for p in named]
        if unknown := sorted(set(extra) - set(names)):
            raise ProbeError(
                f'--arg {unknown[0]} is no parameter of the reference; it has {", ".join(names)}.'
            )
        values = {name: value for name, value in values.items() if name in names}
    missing = [p.name for p in named if p.default is p.empty and p.name not in values]
    if missing:
        raise ProbeError(
            f'the reference needs the argument {missing[0]!r}, which is not a field of our '
            f'configuration ({", ".join(config)}); give it with --arg {missing[0]}=VALUE.'
        )
    model = target(*leading, **values)
    if not isinstance(model, nn.Module):
        raise ProbeError(f'the reference returned a {type(model).__name__}; expected an nn.Module.')
    return model


def spelled_as(own: list[str], state: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """Return a state dict with the first components of its keys renamed to fit the keys `own`."""
    best = state
    for table in (renamed, {theirs: ours for ours, theirs in renamed.items()}):
        renamed = {}
        for key, value in state.items():
            first, dot, rest = key.partition('.')
            renamed[table.get(first, first) + dot + rest] = value
        best = max(best, renamed, key=lambda s: len(set(own) & set(s)))
    return best


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, without what `get_extra_state` returns."""
    return {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def load(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Any]:
    """Load a state dict as far as it fits, and return which keys do not."""
    own = state_of(model)
    misshapen = {
        key: [list(state[key].shape), list(own[key].shape)]
        for key in own
        if key in state and state[key].shape != own[key].shape
    }
    model.load_state_dict({k: v for k, v in state.items() if k not in misshapen}, strict=False)
    return {
        'missing': [key for key in own if key not in state],
        'unexpected': [key for key in state if key not in own],
        'misshapen': misshapen,
    }


def picture_of(output: Any, x: Tensor, scale: int) -> Tensor:
    """Return the output of the network if it is a picture of the right shape."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        size = f' of {len(output)}' if isinstance(output, tuple | list) else ''
        raise ProbeError(
            f'the reference returned a {kind}{size}; expected one tensor [N, C, sH, sW]. Name a '
            'class whose forward returns the picture alone.'
        )
    n, c, h, w = x.shape
    if output.shape != (n, c, scale * h, scale * w):
        raise ProbeError(
            f'the reference returned {list(output.shape)} for {list(x.shape)}; expected '
            f'{[n, c, scale * h, scale * w]}, an upscale by {scale}.'
        )
    return output


def record(model: nn.Module, x: Tensor, scale: int) -> dict[str, Tensor]:
    """Return the output, and input and output of every module with parameters that is called.

    Maps are cloned in the hooks: code that adds in place (`out += x`) changes them afterwards. Of a
    module that is called several times, the first call is recorded.
    """
    maps: dict[str, Tensor] = {}

    def take(key: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim == 4 and key not in maps:
            maps[key] = value.detach().clone()

    hooks = []
    for name, module in model.named_modules():
        if name and any(True for _ in module.parameters()):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: take(f'layers/{name}/in', args[0] if args else None)
                )
            )
            hooks.append(
                module.register_forward_hook(
                    lambda _, __, out, name=name: take(f'layers/{name}/out', out)
                )
            )
    try:
        with torch.no_grad():
            output = picture_of(model(x), x, scale)
    finally:
        for hook in hooks:
            hook.remove()
    return {'out': output.clone(), **maps}


def train(model: nn.Module, x: Tensor, y: Tensor, scale: int, steps: int) -> dict[str, Any]:
    """Return the figures of the first step, and the losses and state of all steps of Adam.

    Args:
      model: the network, changed by the steps.
      x: batches [steps, N, C, H, W].
      y: targets [steps, N, C, sH, sW].
      scale: upscaling factor.
      steps: number of steps; 0 for the gradients alone.
    """
    model.train()
    adam = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.9, 0.999), eps=1e-8)
    found: dict[str, Any] = {}
    losses = []
    for i in range(max(steps, 1)):
        adam.zero_grad()
        output = picture_of(model(x[i]), x[i], scale)
        loss = (output - y[i]).abs().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        if i == 0:
            found['out'] = output.detach()
            found['loss'] = losses[0]
            for key, parameter in model.named_parameters():
                if parameter.grad is not None:
                    found[f'grad/{key}'] = parameter.grad.clone()
            for key, value in model.named_buffers():
                found[f'stats/{key}'] = value.clone()
        adam.step()
    if steps:
        found['steps/loss'] = losses
        found |= {f'steps/state/{key}': value for key, value in state_of(model).items()}
    return found


def probe(settings: dict[str, Any], checkpoint: Path, reference: str) -> dict[str, np.ndarray]:
    """Run the reference and return the dump: arrays by name, and `meta` as JSON."""
    torch.manual_seed(0)  # for weights that the checkpoint lacks
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    device, scale = settings['device'], settings['config']['scale']
    printed, notes = io.StringIO(), []
    target = import_reference(reference, settings['stubs'], printed)
    with running_foreign_code('being constructed', printed):
        model = construct(target, settings['config'], settings['arguments'])
        tensors = [*model.parameters(), *model.buffers()]
        if strangers := sorted({str(t.device) for t in tensors} - {'cpu'}):
            notes.append(
                f'the reference was constructed on {", ".join(strangers)}; moved to {device}'
            )
        model = model.to('cpu').eval()
    state = spelled_as(list(state_of(model)), read_checkpoint(checkpoint), settings['renamed'])
    with running_foreign_code('loading the weights', printed):
        faults = load(model, state)
        model.to(device)
    dump: dict[str, Any] = {f'state/{k}': v.clone() for k, v in state_of(model).items()}
    with np.load(io.BytesIO(base64.b64decode(settings['inputs'])), allow_pickle=False) as file:
        inputs = {key: file[key] for key in file.files}
    dump |= inputs
    given = {key: torch.from_numpy(value).to(device) for key, value in inputs.items()}
    for name in settings['dtypes']:
        dtype = getattr(torch, name)
        typed = copy.deepcopy(model).to(dtype)
        with running_foreign_code(f'computing in {name}', printed):
            for key, x in given.items():
                if key.startswith('input/'):
                    # a copy: a forward pass in train mode would change what the next one computes
                    maps = record(copy.deepcopy(typed), x.to(dtype), scale)
                    case = key.removeprefix('input/')
                    dump |= {f'eval/{name}/{case}/{k}': v for k, v in maps.items()}
            if settings['gradients']:
                x, y = (given[k].to(dtype) for k in ('train/x', 'train/y'))
                figures = train(typed, x, y, scale, settings['steps'])
                dump |= {f'train/{name}/{k}': v for k, v in figures.items()}
    with running_foreign_code('upscaling pictures', printed), torch.no_grad():
        for key, x in given.items():
            if key.startswith('picture/'):
                y = picture_of(model.float()(x.float()), x, scale)
                dump[f'upscaled/{key.removeprefix("picture/")}'] = y.clamp(0, 255).round().byte()
    if printed.getvalue():
        lines = printed.getvalue().splitlines()
        notes.append(
            f'the reference printed {len(lines)} lines to stdout, first: {lines[0][:80]!r}'
        )
    meta = {
        'format': FORMAT,
        'reference': reference,
        'reference_sha256': hashlib.sha256(
            Path(reference.rpartition(':')[0]).read_bytes()
        ).hexdigest(),
        'checkpoint_sha256': hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        'class': type(model).__name__,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'device': torch.cuda.get_device_name() if device == 'cuda' else device,
        'precision': {
            'cudnn.allow_tf32': torch.backends.cudnn.allow_tf32,
            'cuda.matmul.allow_tf32': torch.backends.cuda.matmul.allow_tf32,
            'float32_matmul_precision': torch.get_float32_matmul_precision(),
        },
        'faults': faults,
        'notes': notes,
    }
    return {'meta': np.array(json.dumps(meta)), **{k: array_of(v) for k, v in dump.items()}}


def array_of(value: Any) -> np.ndarray:
    """Return a tensor or another value as an array, bfloat16, which NumPy lacks, as float32."""
    if isinstance(value, Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    return np.asarray(value)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else '')
    parser.add_argument('checkpoint', type=Path, help='.pt, .pth or .safetensors file')
    parser.add_argument('reference', help='FILE.py:NAME, which is executed')
    parser.add_argument('dump', type=Path, help='.npz file to write')
    args = parser.parse_args()
    if not SETTINGS:
        sys.exit('error: this copy has no settings; write one with fmen-jax parity --write-probe.')
    # The reference may change the working directory.
    checkpoint, dump = args.checkpoint.absolute(), args.dump.absolute()
    file, colon, name = args.reference.rpartition(':')
    reference = f'{Path(file).absolute()}{colon}{name}' if file else args.reference
    if dump.suffix != '.npz':
        sys.exit(f'error: {dump}: expected a name that ends in .npz.')
    try:
        with tempfile.TemporaryDirectory(prefix='.probe_', dir=dump.parent) as folder:
            arrays = probe(SETTINGS, checkpoint, reference)
            aside = Path(folder, dump.name)
            np.savez(aside, **arrays)  # pyright: ignore[reportArgumentType]
            aside.replace(dump)
    except ProbeError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        sys.exit(f'error: {dump} was not written: {error}')


if __name__ == '__main__':
    main()
