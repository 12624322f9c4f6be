"""Where the buffers of a program lie, and the program as words.

Values that every thread computes for itself lie in the thread's own memory and take each other's places when no longer
used. What threads share lies in memory of one call, where nothing takes another's place: a thread that lags behind may
still read it.
"""

from collections.abc import Sequence, Set
from typing import NamedTuple

from seriatim.kernels.cpu.source.step_codes import COUNTERS, END, WAIT
from seriatim.kernels.cpu.step.instructions import Instruction
from seriatim.kernels.cpu.step.values import Buffer

__all__ = ["LINE", "Layout", "encode", "lay_out", "rounded"]

LINE = 64  # bytes: what is read from one place never shares a cache line with what is written to another
_OWN, _SHARED = 0, 1  # bases: the thread's own memory, the call's


class Layout(NamedTuple):
    """Base and offset of every buffer; bytes of each thread's own memory and of the call's."""

    places: dict[Buffer, tuple[int, int]]
    own: int
    shared: int


def rounded(size: int) -> int:
    """The next whole number of lines."""
    return -(-size // LINE) * LINE


def lay_out(instructions: Sequence[Instruction], bases: dict[Buffer, int], shared: Set[Instruction]) -> Layout:
    """Places for all buffers. Those in `bases` have a base of their own."""
    places = {buffer: (base, 0) for buffer, base in bases.items()}
    common, registers = 0, rounded(max((z.registers for z in instructions), default=0))
    own, free, last = registers, list[tuple[int, int]](), _last_uses(instructions)
    for index, instruction in enumerate(instructions):
        for buffer in instruction.writes:
            if buffer in places:
                continue
            size = rounded(buffer.bytes)
            if instruction in shared:
                places[buffer], common = (_SHARED, common), common + size
                continue
            start = _taken(free, size)
            if start is None:
                start, own = own, own + size
            places[buffer] = (_OWN, start)
        for buffer in {*instruction.reads, *instruction.writes}:
            if places[buffer][0] == _OWN and last[buffer] == index:
                free.append((places[buffer][1], rounded(buffer.bytes)))
    return Layout(places, own, common)


def _last_uses(instructions: Sequence[Instruction]) -> dict[Buffer, int]:
    return {b: index for index, z in enumerate(instructions) for b in (*z.reads, *z.writes)}


def _taken(free: list[tuple[int, int]], size: int) -> int | None:
    """The start of the smallest free place that is large enough, of which the rest stays free."""
    fitting = [place for place in free if place[1] >= size]
    if not fitting:
        return None
    start, found = min(fitting, key=lambda place: place[1])
    free.remove((start, found))
    if found > size:
        free.append((start + size, found - size))
    return start


def encode(
    instructions: Sequence[Instruction], layout: Layout, shared: Set[Instruction], threads: int
) -> tuple[list[int], int]:
    """The words of a program, and how many words of counters it needs. The counters' first line is for messages."""
    width = COUNTERS * -(-(1 + threads) // COUNTERS)
    words: list[int] = []
    unfinished: dict[Buffer, int] = {}
    counters = width

    def place(buffer: Buffer, offset: int) -> list[int]:
        base, start = layout.places[buffer]
        return [base, start + offset]

    for instruction in instructions:
        for ticket in sorted({unfinished[b] for b in instruction.reads if b in unfinished}):
            words += [WAIT, 3, ticket]
            unfinished = {b: other for b, other in unfinished.items() if other != ticket}
        ticket = -1
        if instruction in shared:
            ticket, counters = counters, counters + width
            unfinished |= dict.fromkeys(instruction.writes, ticket)
        code, *fields = instruction.words(place)
        words += [code, 3 + len(fields), ticket, *fields]
    return [*words, END, 3, -1], counters
