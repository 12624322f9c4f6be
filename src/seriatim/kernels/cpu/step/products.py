"""Operators that multiply matrices."""

from collections.abc import Callable
from typing import Any

from seriatim.kernels.cpu.source.step_codes import BYTE, BYTES, DOTS, FLOAT, HALF, NIBBLES, ROWS, WHOLE, WHOLE_NIBBLES
from seriatim.kernels.cpu.step.instructions import Product, Quantized
from seriatim.kernels.cpu.step.rows import softmax
from seriatim.kernels.cpu.step.trace import Unsupported
from seriatim.kernels.cpu.step.values import View, contiguous
from seriatim.kernels.cpu.step.writer import Writer

__all__ = ["OPERATORS", "product"]


def product(writer: Writer, a: View, b: View, added: View | None = None, alpha: float = 1.0, beta: float = 1.0) -> View:
    """alpha a b + beta added: (B0, B1, M, K), (B0, B1, K, N), (B0, B1, M, N) to (B0, B1, M, N)."""
    if a.buffer.is_static and not b.buffer.is_static:
        # Weights on the left: turned, so that their rows are read one after another.
        turned = None if added is None else _turned(added)
        return _turned(product(writer, _turned(b), _turned(a), turned, alpha, beta))
    a, b = writer.plain(a), writer.ready(b) if b.buffer.kind == HALF else writer.plain(b)
    inner, columns = b.shape[-2:]
    by_rows = b.stride[-2] == 1 or (inner == 1 and b.stride[-1] != 1)  # b^T has contiguous rows
    if not by_rows and (b.stride[-1] != 1 or b.buffer.kind != FLOAT):
        b = writer.ready(writer.copy(b))
    if by_rows and a.stride[-1] != 1 and inner > 1:
        a = writer.ready(writer.copy(a))
    out = writer.fresh((*a.shape[:3], columns))
    if added is not None:
        added = writer.plain(added.expand(out.shape))
    writer.emit(Product(DOTS if by_rows else ROWS, a, b, out, added, alpha, beta))
    return out


def _turned(view: View) -> View:
    return view.permute([0, 1, 3, 2])


def _batched(view: View) -> View:
    """A matrix or a batch of them with two dimensions of batches."""
    missing = 4 - len(view.shape)
    return view._replace(shape=(1,) * missing + view.shape, stride=(0,) * missing + view.stride)


def _without(view: View, dimensions: int) -> View:
    """A batch of one as what it holds."""
    return view._replace(shape=view.shape[dimensions:], stride=view.stride[dimensions:])


def _mm(writer: Writer, a: View, b: View) -> View:
    return _without(product(writer, _batched(a), _batched(b)), 2)


def _addmm(writer: Writer, added: View, a: View, b: View, beta: float = 1, alpha: float = 1) -> View:
    shape = (a.shape[0], b.shape[1])
    return _without(product(writer, _batched(a), _batched(b), _batched(added.expand(shape)), alpha, beta), 2)


def _bmm(writer: Writer, a: View, b: View) -> View:
    return _without(product(writer, _batched(a), _batched(b)), 1)


def _baddbmm(writer: Writer, added: View, a: View, b: View, beta: float = 1, alpha: float = 1) -> View:
    shape = (a.shape[0], a.shape[1], b.shape[2])
    return _without(product(writer, _batched(a), _batched(b), _batched(added.expand(shape)), alpha, beta), 1)


def _mv(writer: Writer, a: View, x: View) -> View:
    column = x._replace(shape=(*x.shape, 1), stride=(*x.stride, 0))
    found = _mm(writer, a, column)
    return found._replace(shape=found.shape[:1], stride=found.stride[:1])


def _addmv(writer: Writer, added: View, a: View, x: View, beta: float = 1, alpha: float = 1) -> View:
    column = x._replace(shape=(*x.shape, 1), stride=(*x.stride, 0))
    added = added.expand(a.shape[:1])
    found = _addmm(writer, added._replace(shape=(*added.shape, 1), stride=(*added.stride, 0)), a, column, beta, alpha)
    return found._replace(shape=found.shape[:1], stride=found.stride[:1])


def _dot(writer: Writer, x: View, y: View) -> View:
    row = x._replace(shape=(1, *x.shape), stride=(0, *x.stride))
    found = _mm(writer, row, y._replace(shape=(*y.shape, 1), stride=(*y.stride, 0)))
    return found._replace(shape=(), stride=())


def _attention(
    writer: Writer,
    q: View,
    k: View,
    v: View,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: View | None = None,
    scale: float | None = None,
) -> View:
    """softmax(scale q k^T + mask) v; q (B, H, T, K), k (B, G, S, K), v (B, G, S, V), each of G serving H / G heads."""
    batch, heads, time, _ = q.shape
    groups = k.shape[1]
    if dropout_p or (is_causal and time > 1) or (groups != heads and time > 1):
        raise Unsupported("attention with dropout, causal over several tokens, or of several tokens to shared keys")
    mask = None if attn_mask is None else attn_mask.expand((batch, heads, time, k.shape[2]))
    if groups != heads:  # heads that share keys are rows of one product
        q, mask = _grouped(q, groups), None if mask is None else _grouped(mask, groups)
    scores = product(writer, q, _turned(k), mask, q.shape[3] ** -0.5 if scale is None else scale)
    found = product(writer, softmax(writer, scores, -1), v)
    shape = (batch, heads, time, v.shape[3])
    return found._replace(shape=shape, stride=contiguous(shape))


def _grouped(view: View, groups: int) -> View:
    """(B, H, 1, F) as (B, G, H / G, F)."""
    batch, heads, _, features = view.shape
    each, stride = heads // groups, view.stride
    return view._replace(
        shape=(batch, groups, each, features), stride=(stride[0], each * stride[1], stride[1], stride[3])
    )


def _byte_linear(writer: Writer, x: View, weight: View, scale: View, whole: bool) -> View:
    if weight.buffer.kind != BYTE or scale.buffer.kind != FLOAT or weight.stride[1] != 1:
        raise Unsupported("weights that are not int8, or scales that are not float32")
    column = scale._replace(shape=(scale.shape[0], 1), stride=(scale.stride[0], 1))
    return _quantized(writer, WHOLE if whole else BYTES, x, weight, column, x.shape[-1])


def _nibble_linear(writer: Writer, x: View, weight: View, scale: View, group: int, whole: bool) -> View:
    if weight.buffer.kind != BYTE or scale.buffer.kind != HALF or 1 not in (weight.stride[1], weight.shape[1]):
        raise Unsupported("weights that are not pairs of 4 bits, or scales that are not bfloat16")
    fits = group == 128 or (scale.shape[1] == 1 and x.shape[-1] <= 128)
    return _quantized(writer, WHOLE_NIBBLES if whole and fits else NIBBLES, x, weight, scale, group)


def _quantized(writer: Writer, kind: int, x: View, weight: View, scale: View, group: int) -> View:
    """x (..., K) times quantised rows of weights (N, bytes), to (..., N)."""
    rows = writer.plain(x)
    if rows.stride != contiguous(rows.shape):
        rows = writer.ready(writer.copy(rows))
    inner, shape = x.shape[-1], (*x.shape[:-1], weight.shape[0])
    rows = rows._replace(shape=(rows.size // inner, inner), stride=(inner, 1))
    out = writer.fresh((rows.shape[0], weight.shape[0]))
    writer.emit(Quantized(kind, rows, writer.ready(weight), writer.ready(scale), out, group))
    return out._replace(shape=shape, stride=contiguous(shape))


OPERATORS: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "addmm": _addmm,
    "addmv": _addmv,
    "baddbmm": _baddbmm,
    "bmm": _bmm,
    "dot": _dot,
    "mm": _mm,
    "mv": _mv,
    "seriatim::byte_linear": _byte_linear,
    "seriatim::nibble_linear": _nibble_linear,
}
