"""The interpreter of step programs: all that a model does with one token, in one call.

Every thread runs the whole program. Of an instruction with a ticket each does the parts that it is first to claim, its
own part before any other's, and a wait before the first use holds until all parts are done; a thread that comes late,
or never, holds nobody up. An instruction without a ticket is done by every thread in memory of its own. What threads
share is written by one instruction only, so a thread that lags behind reads what all others read.
"""

from seriatim.kernels.cpu.source.language import Address, Index, Ints1, kernel
from seriatim.kernels.cpu.source.step_codes import END, EXPRESSION, GATHER, PRODUCT, QUANTIZED, REDUCTION, WAIT
from seriatim.kernels.cpu.source.step_expressions import express
from seriatim.kernels.cpu.source.step_memory import atomic_add, atomic_read, rest, routine, word
from seriatim.kernels.cpu.source.step_products import multiply_rows
from seriatim.kernels.cpu.source.step_quantized import multiply_quantized
from seriatim.kernels.cpu.source.step_reductions import fetch, reduce

__all__ = ["run"]


@routine
def _do(at, places, counters, scratch, part, parts):
    """One of `parts` equal shares of the instruction at an address."""
    code = word(at, 0)
    if code == PRODUCT:
        multiply_rows(at, places, scratch, part, parts)
    elif code == QUANTIZED:
        multiply_quantized(at, places, scratch, part, parts)
    elif code == EXPRESSION:
        express(at, places, scratch, part, parts)
    elif code == REDUCTION:
        reduce(at, places, scratch, part, parts)
    elif code == GATHER:
        fetch(at, places, scratch, counters)


@routine
def _share(at, places, counters, scratch, thread, threads):
    """The parts of an instruction that no other thread has claimed."""
    done = counters + 8 * word(at, 2)
    for i in range(threads):
        part = (thread + i) % threads
        if atomic_add(done + 8 * (1 + part), 1) == 0:
            _do(at, places, counters, scratch, part, threads)
            atomic_add(done, 1)


@routine
def _run(at, places, counters, scratch, thread, threads):
    while word(at, 0) != END:
        if threads == 1:
            _do(at, places, counters, scratch, 0, 1)
        elif word(at, 0) == WAIT:
            done, times = counters + 8 * word(at, 2), 0
            while atomic_read(done) < threads:
                rest(times)
                times += 1
        elif word(at, 2) < 0:
            _do(at, places, counters, scratch, 0, 1)
        else:
            _share(at, places, counters, scratch, thread, threads)
        at += 8 * word(at, 1)


@kernel
def run(item: Index, scratch: Address, code: Ints1, places: Ints1, counters: Ints1, threads: Index):
    """Runs a program as thread `item` of `threads`."""
    _run(code.ctypes.data, places.ctypes.data, counters.ctypes.data, scratch, item, threads)
