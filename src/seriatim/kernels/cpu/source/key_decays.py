"""Some tokens under a decay for every key feature: scores between them and their gradients, exact for any decay.

The decay between tokens j < i is the product of exp(log decay) over j + 1 to i, multiplied up one token at a time. It
is never a quotient, so that a decay of 0 is right. Distances are in float32s, places are addresses.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.lanes import every, lanes, load, number, store
from seriatim.kernels.cpu.source.language import function
from seriatim.kernels.cpu.source.matrix_layout import TOKENS_PER_KEY as TOKENS
from seriatim.kernels.cpu.source.simd import WIDTH

__all__ = ["block_gradients", "block_scores"]

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, TOKENS)


@intrinsic
def block_scores(typing, keys, q, q_row, k, k_row, decays, decays_row, p, p_row):
    """P[i, j] = the sum over keys of q[i] k[j] and the decays j + 1 to i, for j <= i; 0 for j > i. TOKENS x TOKENS.

    q and decays (TOKENS, keys), k (keys, TOKENS): its lanes are the tokens j, each of which fades as i goes on.
    """
    signature = types.void(types.int64, *[types.uintp, types.int64] * 4)

    def generate(context, builder, _, arguments):
        keys, *given = arguments
        (q, q_row), (k, k_row), (decays, decays_row), (p, p_row) = zip(given[::2], given[1::2], strict=True)
        q, k, decays, p = (builder.inttoptr(z, _FLOAT.as_pointer()) for z in (q, k, decays, p))
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{TOKENS}f32")

        def row(base, stride, i):
            return builder.gep(base, [builder.mul(ir.Constant(_INDEX, i), stride)])

        def broadcast(place):
            first = builder.insert_element(
                ir.Constant(_VECTOR, ir.Undefined), builder.load(place), ir.Constant(_INDEX, 0)
            )
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), TOKENS), [0] * TOKENS)
            return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), zeros)

        def up_to(i, value, other):
            """`value` for tokens before i, `other` from i on."""
            mask = ir.Constant(ir.VectorType(ir.IntType(1), TOKENS), [lane < i for lane in range(TOKENS)])
            return builder.select(mask, value, other)

        q_rows, decay_rows = (
            [row(q, q_row, i) for i in range(TOKENS)],
            [row(decays, decays_row, i) for i in range(TOKENS)],
        )
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for _ in range(TOKENS)]
        with cgutils.for_range(builder, keys) as loop:
            place = builder.gep(k, [builder.mul(loop.index, k_row)])
            faded = builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4)
            for i in range(TOKENS):
                if i > 0:
                    decay = broadcast(builder.gep(decay_rows[i], [loop.index]))
                    faded = up_to(i, builder.fmul(faded, decay), faded)
                query = broadcast(builder.gep(q_rows[i], [loop.index]))
                builder.store(builder.call(fma, [query, faded, builder.load(sums[i])]), sums[i])
        for i in range(TOKENS):
            place = builder.bitcast(row(p, p_row, i), _VECTOR.as_pointer())
            builder.store(up_to(i + 1, builder.load(sums[i]), ir.Constant(_VECTOR, None)), place, align=4)
        return context.get_dummy_value()

    return signature, generate


@function
def block_gradients(
    n, keys, q, q_row, k, k_row, decays, decays_row, grad_p, p_row, scale, grad_q, grad_q_row, grad_k, grad_k_row
):
    """Adds what the scores between n <= TOKENS tokens give, for j < i.

    grad_q[i] += s grad_p[i, j] k[j] decay and grad_k[j] += s grad_p[i, j] q[i] decay. What tokens give to themselves is
    left out: no decay fades it.
    """
    for first in range(0, keys, WIDTH):
        some, at = lanes(keys - first), 4 * first
        for j in range(n - 1):
            key = load(k + at + 4 * j * k_row, some)
            total = load(grad_k + at + 4 * j * grad_k_row, some)
            decay = every(scale)
            for i in range(j + 1, n):
                decay = decay * load(decays + at + 4 * i * decays_row, some)
                part = decay * number(grad_p + 4 * (i * p_row + j))
                total = total + part * load(q + at + 4 * i * q_row, some)
                place = grad_q + at + 4 * i * grad_q_row
                store(load(place, some) + part * key, place, some)
            store(total, grad_k + at + 4 * j * grad_k_row, some)
