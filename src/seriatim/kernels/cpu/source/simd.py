"""Matrix products and transposes on vectors, for use inside kernels.

`multiply` computes C = A B or C += A B for any sizes. A's rows and columns may lie at any distance (so A may be a
transpose); the rows of B and C are contiguous. It cuts C into tiles that are held in registers while a loop runs along
the inner dimension: one vector of B against one number of A for each row of the tile. Distances are in float32s, places
are addresses.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.language import function

__all__ = ["COLUMNS", "WIDTH", "VectorAccess", "first_lanes", "multiply", "tile", "transpose"]


def _machine() -> tuple[int, dict[int, int]]:
    """The lanes of a vector, and for tiles so many vectors wide how many rows fit the registers."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, {1: 16, 2: 12, 3: 8, 4: 6}  # 32 registers
    if features.get("avx2"):
        return 8, {1: 8, 2: 6}  # 16 registers
    return 4, {1: 12, 2: 12, 3: 8, 4: 6}  # 32 registers of 128 bits, as on ARM


WIDTH, _ROWS = _machine()
COLUMNS = WIDTH * max(_ROWS)  # of a full tile
_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_VECTOR, _MASK = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(ir.IntType(1), WIDTH)


class VectorAccess:
    """Loads and stores of vectors; with a mask, the lanes beyond it are neither read nor written."""

    def __init__(self, builder, mask=None) -> None:
        self.builder, self.mask = builder, mask

    def load(self, place, masked=False):
        place = self.builder.bitcast(place, _VECTOR.as_pointer())
        if self.mask is None or not masked:
            return self.builder.load(place, align=4)
        load = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(_VECTOR, [_VECTOR.as_pointer(), ir.IntType(32), _MASK, _VECTOR]),
            f"llvm.masked.load.v{WIDTH}f32.p0",
        )
        return self.builder.call(load, [place, ir.Constant(ir.IntType(32), 4), self.mask, ir.Constant(_VECTOR, None)])

    def store(self, value, place, masked=False) -> None:
        place = self.builder.bitcast(place, _VECTOR.as_pointer())
        if self.mask is None or not masked:
            self.builder.store(value, place, align=4)
            return
        store = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [_VECTOR, _VECTOR.as_pointer(), ir.IntType(32), _MASK]),
            f"llvm.masked.store.v{WIDTH}f32.p0",
        )
        self.builder.call(store, [value, place, ir.Constant(ir.IntType(32), 4), self.mask])

    def broadcast(self, number):
        builder = self.builder
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), zeros)


def first_lanes(builder, count):
    """The mask of the first `count` lanes."""
    lanes = ir.VectorType(_INDEX, WIDTH)
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), count, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    all_counts = builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), zeros)
    return builder.icmp_signed("<", ir.Constant(lanes, list(range(WIDTH))), all_counts)


def tile(rows: int, vectors: int, masked: bool):
    """A function that computes one tile of C, `rows` by `vectors` vectors, the last vector masked or whole."""

    @intrinsic
    def product(typing, inner, a, a_row, a_column, b, b_row, c, c_row, keep, lanes):
        """`keep`: 1 adds to C, 0 replaces it. `lanes`: how many of the last vector's count."""
        signature = types.void(*[types.int64, types.uintp, types.int64, types.int64, types.uintp, types.int64],
                               *[types.uintp, types.int64, types.int64, types.int64])  # fmt: skip

        def generate(context, builder, _, arguments):
            inner, a, a_row, a_column, b, b_row, c, c_row, keep, lanes = arguments
            pointer = _FLOAT.as_pointer()
            a, b, c = (builder.inttoptr(z, pointer) for z in (a, b, c))
            access = VectorAccess(builder, first_lanes(builder, lanes) if masked else None)
            kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")

            def at(base, row, stride, column):
                return builder.gep(base, [builder.add(builder.mul(row, stride), ir.Constant(_INDEX, column))])

            def last(j):
                return j == vectors - 1

            places = {
                (i, j): at(c, ir.Constant(_INDEX, i), c_row, j * WIDTH) for i in range(rows) for j in range(vectors)
            }
            # LLVM keeps these in registers. They begin at 0 even if C is added to: many additions lose fewer bits.
            sums = {key: cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for key in places}
            starts = [builder.gep(a, [builder.mul(ir.Constant(_INDEX, i), a_row)]) for i in range(rows)]
            with cgutils.for_range(builder, inner) as loop:
                right = [access.load(at(b, loop.index, b_row, j * WIDTH), last(j)) for j in range(vectors)]
                along = builder.mul(loop.index, a_column)
                for i in range(rows):
                    left = access.broadcast(builder.load(builder.gep(starts[i], [along])))
                    for j in range(vectors):
                        builder.store(builder.call(fma, [left, right[j], builder.load(sums[i, j])]), sums[i, j])
            adding = builder.icmp_signed("!=", keep, ir.Constant(_INDEX, 0))
            with builder.if_then(adding):
                for (i, j), place in places.items():
                    builder.store(builder.fadd(builder.load(sums[i, j]), access.load(place, last(j))), sums[i, j])
            for (i, j), place in places.items():
                access.store(builder.load(sums[i, j]), place, last(j))
            return context.get_dummy_value()

        return signature, generate

    return product


def _panel(vectors: int, masked: bool):
    """A function that computes columns of C, as many as `vectors` vectors hold, all rows of it."""
    most = _ROWS[vectors]
    tile_most, tile_4, tile_2, tile_1 = (tile(rows, vectors, masked) for rows in (most, 4, 2, 1))

    @function
    def panel(rows, inner, a, a_row, a_column, b, b_row, c, c_row, keep, lanes):
        i = 0
        while rows - i >= most:
            tile_most(inner, a + 4 * i * a_row, a_row, a_column, b, b_row, c + 4 * i * c_row, c_row, keep, lanes)
            i += most
        while rows - i >= 4:
            tile_4(inner, a + 4 * i * a_row, a_row, a_column, b, b_row, c + 4 * i * c_row, c_row, keep, lanes)
            i += 4
        if rows - i >= 2:
            tile_2(inner, a + 4 * i * a_row, a_row, a_column, b, b_row, c + 4 * i * c_row, c_row, keep, lanes)
            i += 2
        if rows - i >= 1:
            tile_1(inner, a + 4 * i * a_row, a_row, a_column, b, b_row, c + 4 * i * c_row, c_row, keep, lanes)

    return panel


_whole = _panel(max(_ROWS), False)
_parts = [_panel(vectors, True) for vectors in sorted(_ROWS)]
_part_1, _part_2 = _parts[0], _parts[1]
_part_3, _part_4 = _parts[min(2, len(_parts) - 1)], _parts[-1]


@intrinsic
def _plain(typing, x):
    """An integer as an int64 and no more: numba compiles a function anew for every constant and unsigned argument."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: arguments[0]


@function
def multiply(rows, columns, inner, a, a_row, a_column, b, b_row, c, c_row, keep):
    """C (rows x columns) = A (rows x inner) B (inner x columns), or C += A B if `keep` is 1.

    a, b, c are addresses. A[i, k] lies at a + 4 (i a_row + k a_column), B[k, j] at b + 4 (k b_row + j), C likewise.
    """
    _multiply(_plain(rows), _plain(columns), _plain(inner), _plain(a), _plain(a_row), _plain(a_column),
              _plain(b), _plain(b_row), _plain(c), _plain(c_row), _plain(keep))  # fmt: skip


@function
def _multiply(rows, columns, inner, a, a_row, a_column, b, b_row, c, c_row, keep):
    """The same, of int64s."""
    j = 0
    while columns - j >= COLUMNS:
        _whole(rows, inner, a, a_row, a_column, b + 4 * j, b_row, c + 4 * j, c_row, keep, WIDTH)
        j += COLUMNS
    left = columns - j
    if left > 0:
        vectors = (left + WIDTH - 1) // WIDTH
        lanes = left - (vectors - 1) * WIDTH
        if vectors == 1:
            _part_1(rows, inner, a, a_row, a_column, b + 4 * j, b_row, c + 4 * j, c_row, keep, lanes)
        elif vectors == 2:
            _part_2(rows, inner, a, a_row, a_column, b + 4 * j, b_row, c + 4 * j, c_row, keep, lanes)
        elif vectors == 3:
            _part_3(rows, inner, a, a_row, a_column, b + 4 * j, b_row, c + 4 * j, c_row, keep, lanes)
        else:
            _part_4(rows, inner, a, a_row, a_column, b + 4 * j, b_row, c + 4 * j, c_row, keep, lanes)


@intrinsic
def _transpose_square(typing, source, source_row, target, target_row):
    """WIDTH x WIDTH numbers, in log2(WIDTH) perfect shuffles of whole vectors."""

    def generate(context, builder, _, arguments):
        source, source_row, target, target_row = arguments
        pointer, access = _FLOAT.as_pointer(), VectorAccess(builder)
        source, target = builder.inttoptr(source, pointer), builder.inttoptr(target, pointer)

        def row(base, stride, i):
            return builder.gep(base, [builder.mul(ir.Constant(_INDEX, i), stride)])

        vectors = [access.load(row(source, source_row, i)) for i in range(WIDTH)]
        small, half = ir.IntType(32), WIDTH // 2
        low, high = (
            ir.Constant(ir.VectorType(small, WIDTH), [z for i in range(half) for z in (i + shift, i + shift + WIDTH)])
            for shift in (0, half)
        )
        for _ in range(WIDTH.bit_length() - 1):
            pairs = [(vectors[i], vectors[i + half]) for i in range(half)]
            vectors = [builder.shuffle_vector(x, y, order) for x, y in pairs for order in (low, high)]
        for i, z in enumerate(vectors):
            access.store(z, row(target, target_row, i))
        return context.get_dummy_value()

    return types.void(types.uintp, types.int64, types.uintp, types.int64), generate


@intrinsic
def _copy_number(typing, source, target):
    """*target = *source."""

    def generate(context, builder, _, arguments):
        source, target = (builder.inttoptr(z, _FLOAT.as_pointer()) for z in arguments)
        builder.store(builder.load(source), target)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), generate


@function
def transpose(rows, columns, source, source_row, target, target_row):
    """target[j, i] = source[i, j] for i < rows and j < columns."""
    i = 0
    while i < rows:
        j = 0
        while j < columns:
            if rows - i >= WIDTH and columns - j >= WIDTH:
                _transpose_square(
                    source + 4 * (i * source_row + j), source_row, target + 4 * (j * target_row + i), target_row
                )
            else:
                for p in range(i, min(rows, i + WIDTH)):
                    for q in range(j, min(columns, j + WIDTH)):
                        _copy_number(source + 4 * (p * source_row + q), target + 4 * (q * target_row + p))
            j += WIDTH
        i += WIDTH
