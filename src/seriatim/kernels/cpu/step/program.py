"""A program that can be called: a step without PyTorch in between."""

import ctypes
import threading
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.kernels.cpu import guard, launch
from seriatim.kernels.cpu.library import load
from seriatim.kernels.cpu.source.step_codes import FLOAT, INT, OUTSIDE
from seriatim.kernels.cpu.step.instructions import Instruction, Quantized
from seriatim.kernels.cpu.step.layout import LINE, encode, lay_out
from seriatim.kernels.cpu.step.values import Buffer

__all__ = ["Program"]

SHARED_FROM = 64 * 1024  # cost from which threads share an instruction: below it waiting takes longer
FETCHING = 2.0  # cost of a byte that another thread has written
THREADS_FROM = 512 * 1024  # cost of all that can be shared from which a program takes several threads
_TABLE = 15  # words before the table of addresses: of the launch, then of the kernel's arguments
_CALL = 2  # bases that no buffer has: the thread's own memory, the call's
_WORD = 8


class _Variant(NamedTuple):
    """A program for a number of threads."""

    code: "array[int]"
    template: "array[int]"  # the words of a launch, the table of addresses, the counters
    own: int  # bytes of each thread's memory
    shared: int  # bytes of the memory of a call
    counters: int  # where the counters begin in the template


class Program:
    """Instructions that compute outputs from inputs and from memory that lives on."""

    def __init__(self, instructions: Sequence[Instruction], inputs: int, outputs: Sequence[Tensor]):
        self.instructions, self.inputs = list(instructions), inputs
        self.rounds = any(isinstance(z, Quantized) and z.is_whole for z in self.instructions)
        self.like = [torch.empty(z.shape, dtype=z.dtype) for z in outputs]
        buffers = dict.fromkeys(b for z in instructions for b in (*z.reads, *z.writes))
        self.statics = [b for b in buffers if b.is_static]
        self.temporaries = [b for b in buffers if b.origin is None]
        self.bases = {b: _CALL + b.origin[1] for b in buffers if isinstance(b.origin, tuple) and b.origin[0] == "input"}
        self.bases |= {
            b: _CALL + inputs + b.origin[1] for b in buffers if isinstance(b.origin, tuple) and b.origin[0] == "output"
        }
        self.bases |= {b: _CALL + inputs + len(outputs) + i for i, b in enumerate(self.statics)}
        self.several = sum(z.cost for z in _shared(instructions)) >= THREADS_FROM
        self.here = threading.local()
        self.variants: dict[int, _Variant] = {}
        compiled = load("step")["run"]
        self.entry = compiled.address
        self.alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The outputs, or None where an index is out of range. The inputs are contiguous, like those of the trace."""
        outputs = [*map(torch.empty_like, self.like)]
        if guard.on():
            return self._guarded(inputs, outputs)
        threads = launch.threads() if self.several else 1
        variant = self.variants.get(threads) or self._variant(threads)
        start = self._memory(threads * variant.own + variant.shared)
        words = variant.template[:]
        data = Tensor.data_ptr
        filled = array("q", [start + threads * variant.own, *map(data, inputs), *map(data, outputs)])
        words[_TABLE + 1 : _TABLE + 1 + len(filled)] = filled
        return outputs if self._run(words, variant, start, threads) else None

    def _run(self, words: "array[int]", variant: _Variant, start: int, threads: int) -> bool:
        """Whether all indices were in range."""
        address = words.buffer_info()[0]
        words[3] = start
        words[8], words[11] = address + _WORD * _TABLE, address + _WORD * variant.counters
        if threads == 1:
            self.alone(address)
        else:
            launch.parallel(self.entry, address, threads)
        return words[variant.counters + OUTSIDE] == 0

    def _memory(self, size: int) -> int:
        """The address of so many bytes that only this Python thread uses, and that no call leaves anything in."""
        memory = getattr(self.here, "memory", None)
        if memory is None or memory.numel() < size + LINE:
            memory = self.here.memory = torch.empty(size + LINE, dtype=torch.uint8)
            self.here.start = -(-memory.data_ptr() // LINE) * LINE
        return self.here.start

    def _variant(self, threads: int) -> _Variant:
        table = [0] * (_CALL + self.inputs + len(self.like))
        table += [b.origin.untyped_storage().data_ptr() for b in self.statics]
        found = _variant(self.instructions, self.bases, table, threads)
        self.variants[threads] = found
        return found

    def _guarded(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The same on one thread, with a fence around every buffer."""
        dtypes = {FLOAT: torch.float32, INT: torch.int64}
        temporaries = [torch.zeros(b.size, dtype=dtypes[b.kind]) for b in self.temporaries]
        storages = [torch.empty(0, dtype=b.origin.dtype).set_(b.origin.untyped_storage()) for b in self.statics]
        first = _CALL + self.inputs + len(outputs) + len(self.statics)
        bases = self.bases | {b: first + i for i, b in enumerate(self.temporaries)}
        own = torch.empty(_variant(self.instructions, bases, [], 1).own, dtype=torch.uint8)
        with guard.fenced([*inputs, *outputs, *storages, *temporaries, own]) as held:
            *table, start = [z.data_ptr() for z in held]
            variant = _variant(self.instructions, bases, [0] * _CALL + table, 1)
            inside = self._run(variant.template[:], variant, start, 1)
        return list(outputs) if inside else None


def _shared(instructions: Sequence[Instruction]) -> set[Instruction]:
    """The instructions that threads share: what takes long, and what reads much that threads have written in parts."""
    found: set[Instruction] = set()
    written: set[Buffer] = set()
    for z in instructions:
        apart = sum(b.bytes for b in z.reads if b in written)
        if z.cost + FETCHING * apart >= SHARED_FROM and all(b.writers <= 1 for b in z.writes):
            found.add(z)
            written.update(z.writes)
    return found


def _variant(
    instructions: Sequence[Instruction], bases: dict[Buffer, int], table: Sequence[int], threads: int
) -> _Variant:
    shared = _shared(instructions) if threads > 1 else set()
    layout = lay_out(instructions, bases, shared)
    words, counters = encode(instructions, layout, shared, threads)
    code = array("q", words)
    arguments = [code.buffer_info()[0], len(code), _WORD, 0, len(table), _WORD, 0, counters, _WORD, threads]
    template = array("q", [0, threads, 0, 0, layout.own, *arguments, *table, *[0] * counters])
    return _Variant(code, template, layout.own, layout.shared, _TABLE + len(table))
