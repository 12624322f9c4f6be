"""Expressions as instructions: the loop over strips, and a slot for every value.

A strip is as much as is computed at a time, some columns of a row or some rows. Operands and results that lie in memory
as a strip lies in a register are used where they are; the others are brought into registers, and written from there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seriatim.kernels.cpu.source.step_codes import (
    CODES,
    DIRECT,
    EXPRESSION,
    FLOAT,
    INT,
    LOADED,
    ONCE,
    SLOTS,
    STRIP,
    WIDTHS,
)
from seriatim.kernels.cpu.step.expressions import Constant, Expression, Function, Operand
from seriatim.kernels.cpu.step.instructions import Instruction, Places, bits
from seriatim.kernels.cpu.step.trace import Unsupported

__all__ = ["Strips"]

_DEAR = {"exp", "sigmoid", "tanh", "softplus", "log_sigmoid", "silu", "log", "erf", "gelu", "gelu_tanh", "div", "pow"}
_DEAREST = {"sin", "cos", "log1p", "expm1", "pow", "remainder", "int_remainder"}
_DIMENSIONS = 4


class _Layout(NamedTuple):
    """The four sizes, and how many rows and columns a strip has."""

    sizes: tuple[int, ...]
    rows: int
    columns: int


class Strips(Instruction):
    """An expression whose results are settled."""

    def __init__(self, expression: Expression):
        used = _used(expression)
        operands = [z for i, z in enumerate(expression.values) if isinstance(z, Operand) and i in used]
        targets = [result.target for result in expression.results]
        super().__init__([z.buffer for z in operands], [z.buffer for z in targets])
        self.expression, self.used = expression, used
        sizes, strides = _collapsed(expression.sizes, [z.stride for z in [*operands, *targets]])
        self.strides: dict[int, tuple[int, ...]] = dict(
            zip([id(z) for z in [*operands, *targets]], strides, strict=True)
        )
        rows = min(sizes[2], max(1, STRIP // max(1, sizes[3])))
        self.layout = _Layout(sizes, rows, min(sizes[3], STRIP))
        self._assign()
        count = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        names = [z.name for i, z in enumerate(expression.values) if isinstance(z, Function) and i in used]
        each = sum(40 if name in _DEAREST else 6 if name in _DEAR else 1 for name in names)
        self.cost = 2.0 * count * (each + len(operands) + len(targets))

    def _assign(self) -> None:
        """Gives every value a slot: a register, taken again when no longer used, or the memory where it lies."""
        expression, last = self.expression, self._last_uses()
        self.slots: dict[int, int] = {}
        self.copies: list[tuple[int, int]] = []  # (from slot, to slot): operands that are results as they are
        self.direct: dict[int, int] = {}  # result's index -> slot of memory
        free: list[int] = []
        self.count = 0

        def register() -> int:
            if free:
                return free.pop()
            self.count += 1
            return self.count - 1

        memory = iter(range(SLOTS - 1, -1, -1))
        owners = self._owners()
        values = expression.values
        lasting = {i for i in self.used if isinstance(values[i], Constant) or self._once(values[i])}
        for index in sorted(self.used):  # all operands are read before the first function runs
            value = expression.values[index]
            if not isinstance(value, Function):
                direct = isinstance(value, Operand) and index not in lasting and self._is_direct(value)
                self.slots[index] = next(memory) if direct else register()
        functions = [(i, z) for i, z in enumerate(expression.values) if isinstance(z, Function) and i in self.used]
        for index, function in functions:
            self.slots[index] = next(memory) if index in owners else register()
            if index in owners:
                self.direct[owners[index]] = self.slots[index]
            over = [z for z in set(function.arguments) if last[z] == index and z not in lasting]
            free += [self.slots[z] for z in over if self.slots[z] < self.count]
        for number, result in enumerate(expression.results):
            if number not in self.direct and self._is_direct(result.target):
                self.direct[number] = next(memory)
                self.copies.append((result.value, self.direct[number]))
        if next(memory, -1) < self.count:
            raise Unsupported("an expression with too many operands")

    def _once(self, value: Any) -> bool:
        """Whether an operand is one number for all of the expression."""
        return isinstance(value, Operand) and not any(self.strides[id(value)])

    def _is_direct(self, value: Operand) -> bool:
        """Whether a strip of it lies in memory as it would in a register."""
        if value.buffer.kind not in (FLOAT, INT):
            return False
        *_, down, along = self.strides[id(value)]
        columns = self.layout.sizes[3]
        return (along == 1 or columns == 1) and (self.layout.rows == 1 or down == columns)

    def _owners(self) -> dict[int, int]:
        """Functions whose value is computed where a result lies, and that result's index."""
        owners: dict[int, int] = {}
        for number, result in enumerate(self.expression.results):
            computed = isinstance(self.expression.values[result.value], Function)
            if computed and result.value not in owners and self._is_direct(result.target):
                owners[result.value] = number
        return owners

    def _last_uses(self) -> dict[int, int]:
        last = {i: i for i in self.used}
        for index, value in enumerate(self.expression.values):
            if index in self.used and isinstance(value, Function):
                last |= dict.fromkeys(value.arguments, index)
        return last | {result.value: len(self.expression.values) for result in self.expression.results}

    @property
    def _register_bytes(self) -> int:
        width = 8 if INT in self.expression.kinds else 4
        return width * self.layout.rows * self.layout.columns + 64  # rows may be written in whole vectors

    @property
    def registers(self) -> int:
        """Bytes of the thread's own memory."""
        return 8 * SLOTS + self.count * self._register_bytes

    @registers.setter
    def registers(self, value: int) -> None:
        pass

    def words(self, places: Places) -> list[int]:
        values = [(i, z) for i, z in enumerate(self.expression.values) if i in self.used]
        constants = [[self.slots[i], z.kind, _number(z)] for i, z in values if isinstance(z, Constant)]
        operands = [self._operand(self.slots[i], z, places) for i, z in values if isinstance(z, Operand)]
        functions = [self._function(i, z) for i, z in values if isinstance(z, Function)]
        for value, slot in self.copies:
            name = "int_copy" if self.expression.kinds[value] == INT else "copy"
            functions.append([CODES[name], slot, *[self.slots[value]] * 3])
        results = [
            self._operand(self.direct.get(n, self.slots[z.value]), z.target, places, n in self.direct)
            for n, z in enumerate(self.expression.results)
        ]
        parts = (constants, operands, functions, results)
        return [
            *(EXPRESSION, *self.layout.sizes, self.layout.rows, self.layout.columns, self._register_bytes, self.count),
            *(len(part) for part in parts),
            *(word for part in parts for item in part for word in item),
        ]

    def _operand(self, slot: int, z: Operand, places: Places, direct: bool | None = None) -> list[int]:
        width = WIDTHS[z.buffer.kind]
        reached = ONCE if direct is None and self._once(z) else DIRECT if self._is_direct(z) else LOADED
        if direct is not None:
            reached = DIRECT if direct else LOADED
        strides = [width * stride for stride in self.strides[id(z)]]
        return [slot, reached, z.buffer.kind, *places(z.buffer, width * z.offset), *strides]

    def _function(self, index: int, z: Function) -> list[int]:
        arguments = [self.slots[i] for i in z.arguments]
        return [CODES[z.name], self.slots[index], *arguments, *[arguments[0]] * (3 - len(arguments))]


def _number(constant: Constant) -> int:
    return int(constant.value) if constant.kind == INT else bits(constant.value)


def _used(expression: Expression) -> set[int]:
    """The values that results depend on."""
    used = {result.value for result in expression.results}
    for index in range(len(expression.values) - 1, -1, -1):
        value = expression.values[index]
        if index in used and isinstance(value, Function):
            used |= set(value.arguments)
    return used


def _collapsed(
    sizes: Sequence[int], strides: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Neighbouring dimensions that all can be read as one are one; then four of them, the first perhaps of size 1."""
    kept: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(sizes):
        along = [stride[axis] for stride in strides]
        if size == 1:
            continue
        if kept and all(a == b * size for a, b in zip(kept[-1][1], along, strict=True)):
            kept[-1] = (kept[-1][0] * size, along)
        else:
            kept.append((size, along))
    if len(kept) > _DIMENSIONS:
        raise Unsupported(f"an elementwise function over {len(kept)} dimensions")
    kept = [(1, [0] * len(strides))] * (_DIMENSIONS - len(kept)) + kept
    return tuple(size for size, _ in kept), [tuple(along[i] for _, along in kept) for i in range(len(strides))]
