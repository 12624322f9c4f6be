"""Rows of a batch between a caller's memory and a kernel's own, and the product of a step's rows with packed weights.

A kernel keeps rows side by side, each as many whole vectors as its features need; what is beyond these means nothing.
Weights are packed once a call: cut into panels a few vectors wide, each panel one stream of memory, as a step reads it.
Places are addresses, counts are of float32s.
"""

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.simd import WIDTH, VectorAccess, first_lanes, tile, transpose

__all__ = ["add_row", "clear", "pack", "product", "read_row", "whole_vectors", "write_row"]

# Of a panel, and how many rows by so many vectors fit the registers beside the vectors they are multiplied with.
_VECTORS, _ROWS = (2, 6) if WIDTH == 8 else (3, 8)


def _mover(adds: bool, pads: bool):
    """A function that copies or adds `count` numbers to the target, whose last vector is whole if `pads`."""

    @intrinsic
    def move(typing, source, target, count):
        def generate(context, builder, _, arguments):
            pointer, size = ir.FloatType().as_pointer(), ir.Constant(ir.IntType(64), WIDTH)
            source, target = (builder.inttoptr(z, pointer) for z in arguments[:2])

            def piece(access, first, masked):
                value = access.load(builder.gep(source, [first]), masked)
                place = builder.gep(target, [first])
                if adds:
                    value = builder.fadd(value, access.load(place, masked and not pads))
                access.store(value, place, masked and not pads)

            whole = builder.sdiv(arguments[2], size)
            with cgutils.for_range(builder, whole) as loop:
                piece(VectorAccess(builder), builder.mul(loop.index, size), False)
            first = builder.mul(whole, size)
            left = builder.sub(arguments[2], first)
            with builder.if_then(builder.icmp_signed(">", left, ir.Constant(left.type, 0))):
                piece(VectorAccess(builder, first_lanes(builder, left)), first, True)
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.int64), generate

    return move


read_row = _mover(adds=False, pads=True)  # into the kernel's memory
add_row = _mover(adds=True, pads=True)  # to what stands in the kernel's memory
write_row = _mover(adds=False, pads=False)  # into the caller's


@function
def clear(target, count):
    """Zeros, as whole vectors."""
    for i in range(whole_vectors(count)):
        vector(target, whole_vectors(count))[i] = 0


@function
def whole_vectors(count):
    """How many numbers the vectors hold that `count` numbers need."""
    return (count + WIDTH - 1) // WIDTH * WIDTH


@function
def _panel(left):
    """How many vectors the next panel has, of `left` that remain: no lone one where two and two do."""
    if left == _VECTORS + 1 and left % 2 == 0:
        return left // 2
    return min(left, _VECTORS)


@function
def pack(rows, columns, source, row, column, target):
    """Lays out the matrix (rows x columns) whose numbers lie `row` and `column` apart, one of them 1, for `product`.

    It fills rows * whole_vectors(columns) numbers.
    """
    done = 0
    while done < columns:
        wide = _panel((columns - done + WIDTH - 1) // WIDTH) * WIDTH
        here = min(wide, columns - done)
        if here < wide:
            clear(target, rows * wide)
        if column == 1:
            for i in range(rows):
                write_row(source + 4 * (i * row + done), target + 4 * i * wide, here)
        else:
            transpose(here, rows, source + 4 * done * column, column, target, wide)
        target += 4 * rows * wide
        done += wide


@function
def _none(rows, inner, a, a_row, b, c, c_row, keep):
    pass


def _strip(vectors: int, sizes: tuple[int, ...]):
    """A function that multiplies all rows with one panel, in tiles of so many rows, the largest first."""
    size, width = sizes[0], vectors * WIDTH
    whole, rest = tile(size, vectors, False), _strip(vectors, sizes[1:]) if len(sizes) > 1 else _none

    @function
    def strip(rows, inner, a, a_row, b, c, c_row, keep):
        while rows >= size:
            whole(inner, a, a_row, 1, b, width, c, c_row, keep, WIDTH)
            rows -= size
            a += 4 * size * a_row
            c += 4 * size * c_row
        if rows > 0:
            rest(rows, inner, a, a_row, b, c, c_row, keep)

    return strip


# A tile reads the whole panel. The widest panels are most of the weights: there one tile takes any number of rows left.
_strip_most = _strip(_VECTORS, tuple(range(_ROWS, 0, -1)))
_strip_2 = _strip(2, (8, 4, 2, 1)) if _VECTORS > 2 else _strip_most
_strip_1 = _strip(1, (8, 4, 2, 1))


@function
def product(rows, columns, inner, a, a_row, packed, c, c_row, keep):
    """C (rows x columns) = A (rows x inner) W (inner x columns), or C += A W if `keep` is 1. W is packed.

    It writes whole vectors of C.
    """
    # As plain int64s: numba would compile all of it anew for every mixture of constants and unsigned numbers.
    _product(int64(rows), int64(columns), int64(inner), int64(a), int64(a_row), int64(packed), int64(c), int64(c_row),
             int64(keep))  # fmt: skip


@function
def _product(rows, columns, inner, a, a_row, packed, c, c_row, keep):
    vectors = (columns + WIDTH - 1) // WIDTH
    while vectors > 0:
        wide = _panel(vectors)
        if wide == _VECTORS:
            _strip_most(rows, inner, a, a_row, packed, c, c_row, keep)
        elif wide == 2:
            _strip_2(rows, inner, a, a_row, packed, c, c_row, keep)
        else:
            _strip_1(rows, inner, a, a_row, packed, c, c_row, keep)
        packed += 4 * inner * wide * WIDTH
        c += 4 * wide * WIDTH
        vectors -= wide
