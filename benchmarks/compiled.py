"""What a compiled program costs, read from the program: bytes, FLOPs, collectives; a roofline."""

import dataclasses
import re
from typing import Any

import numpy as np

_BYTES = {'bf16': 2, 'f16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 'u8': 1, 's8': 1, 'pred': 1}
_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
# result shapes, then the name of the operation; asynchronous ones are counted where they start
_COLLECTIVE = re.compile(rf'= (\(?[^=]*?\)?) ({"|".join(_KINDS)})(-start)?\(')
_COMMENT = re.compile(r'/\*.*?\*/')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip."""

    flops: float
    """Peak of bfloat16 products, per second."""
    bandwidth: float
    """Of its memory, bytes per second."""
    memory: float
    """Bytes."""


# cloud.google.com/tpu/docs/v5e, /v5p, /v6e: peak compute, HBM bandwidth and capacity per chip
CHIPS = {
    'v5e': Chip(197e12, 819e9, 16 * 2**30),
    'v5p': Chip(459e12, 2765e9, 95 * 2**30),
    'v6e': Chip(918e12, 1640e9, 32 * 2**30),
}


def collectives(program: str) -> dict[str, dict[str, int]]:
    """How many of each kind a program's text has, and the bytes of their results together."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind, started in _COLLECTIVE.findall(_COMMENT.sub('', program)):
        sizes = [
            _BYTES.get(dtype, 4) * int(np.prod([int(d) for d in dims.split(',') if d]))
            for dtype, dims in _SHAPE.findall(shapes)
        ]
        # what starts a permute or a gather names its operand beside its result
        pair = started and kind != 'all-reduce'
        size = max(sizes, default=0) if pair else sum(sizes)
        entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
        entry['count'] += 1
        entry['bytes'] += size
    return found


def figures(compiled: Any, chip: Chip) -> dict[str, Any]:
    """The program of one chip: what the compiler says, and what that means at the chip's peaks.

    The predicted time is a roofline, not a measurement: the larger of compute and memory, without
    exchanges, at published peaks, which no program reaches. The bytes are all that the program
    touches; where they stay in the chip's fast memory, the memory side is too pessimistic.
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
