"""Cost of a compiled program, read from the program: bytes, FLOPs, collectives and a roofline."""

import dataclasses
import re
from typing import Any

import numpy as np

_BYTES = {'bf16': 2, 'f16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 'u8': 1, 's8': 1, 'pred': 1}
_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Result shapes, then the name of the operation. Asynchronous ones are counted at their start.
_COLLECTIVE = re.compile(rf'= (\(?[^=]*?\)?) ({"|".join(_KINDS)})(-start)?\(')
_COMMENT = re.compile(r'/\*.*?\*/')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published specifications of one chip."""

    flops: float
    """Peak bfloat16 throughput, in FLOPs per second."""
    bandwidth: float
    """Memory bandwidth, in bytes per second."""
    memory: float
    """Memory capacity, in bytes."""


# cloud.google.com/tpu/docs/v5e, /v5p, /v6e: peak compute, HBM bandwidth and capacity per chip
CHIPS = {
    'v5e': Chip(197e12, 819e9, 16 * 2**30),
    'v5p': Chip(459e12, 2765e9, 95 * 2**30),
    'v6e': Chip(918e12, 1640e9, 32 * 2**30),
}


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Return the number of collectives in a program's text and their result bytes, by kind."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind, started in _COLLECTIVE.findall(_COMMENT.sub('', program)):
        sizes = [
            _BYTES.get(dtype, 4) * int(np.prod([int(d) for d in dims.split(',') if d]))
            for dtype, dims in _SHAPE.findall(shapes)
        ]
        # The start of an asynchronous permute or gather lists its operand next to its result.
        pair = started and kind != 'all-reduce'
        size = max(sizes, default=0) if pair else sum(sizes)
        entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
        entry['count'] += 1
        entry['bytes'] += size
    return found


def figures(compiled: Any, chip: Chip) -> dict[str, Any]:
    """Return the compiler's figures for the program of one chip, and a roofline estimate.

    The predicted time is a roofline, not a measurement: the larger of compute time and memory time
    at published peaks, which no program reaches, without communication between chips. The bytes
    are all that the program accesses; where data stays in the chip's fast memory, the memory time
    is too pessimistic.
    """
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    flops, moved = float(cost['flops']), float(cost['bytes accessed'])
    needed = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return {
        'flops_per_chip': flops,
        'bytes_accessed_per_chip': moved,
        'temp_bytes_per_chip': memory.temp_size_in_bytes,
        'argument_bytes_per_chip': memory.argument_size_in_bytes,
        'output_bytes_per_chip': memory.output_size_in_bytes,
        'bytes_per_chip': needed,
        'fits': needed <= chip.memory,
        'collectives': collectives(compiled.as_text()),
        'roofline_seconds': max(flops / chip.flops, moved / chip.bandwidth),
        'bound_by': 'compute' if flops / chip.flops > moved / chip.bandwidth else 'memory',
    }
