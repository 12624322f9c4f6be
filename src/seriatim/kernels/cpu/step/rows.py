"""Operators that reduce dimensions, put tensors together, or fetch rows of a table."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from seriatim.kernels.cpu.source.step_codes import FLOAT, INT
from seriatim.kernels.cpu.step.instructions import Fetch, Reduction
from seriatim.kernels.cpu.step.trace import Unsupported
from seriatim.kernels.cpu.step.values import View, contiguous
from seriatim.kernels.cpu.step.writer import Writer

__all__ = ["OPERATORS", "reduce", "softmax"]


def reduce(
    writer: Writer, name: str, x: View, dims: Sequence[int] | None, keepdim: bool = False, factor: float = 1.0
) -> View:
    """The sum, maximum, minimum or product over dimensions; over all where none is named."""
    x, rank = writer.plain(x), len(x.shape)
    reduced = {dim % rank for dim in dims} if dims else set(range(rank))
    kept = [i for i in range(rank) if i not in reduced]
    kept_part, reduced_part = _collapsed(x, kept, 3), _collapsed(x, sorted(reduced), 2)
    laid = x._replace(
        shape=tuple(size for size, _ in kept_part + reduced_part),
        stride=tuple(stride for _, stride in kept_part + reduced_part),
    )
    out = writer.fresh([size for size, _ in kept_part])
    writer.emit(Reduction(name, laid, out, factor))
    shape = [1 if i in reduced else size for i, size in enumerate(x.shape)] if keepdim else [x.shape[i] for i in kept]
    return out._replace(shape=tuple(shape), stride=contiguous(shape))


def _collapsed(x: View, dimensions: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Sizes and strides of some dimensions, neighbours that lie one after another as one, filled up to `most`."""
    found: list[tuple[int, int]] = []
    for i in dimensions:
        size, stride = x.shape[i], x.stride[i]
        if size == 1:
            continue
        if found and found[-1][1] == stride * size:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    if len(found) > most:
        raise Unsupported(f"a reduction with {len(found)} dimensions apart")
    return [(1, 0)] * (most - len(found)) + found


def softmax(writer: Writer, x: View, dim: int, half_to_float: bool = False) -> View:
    """e^x / sum e^x, from the largest down."""
    powers, total = _powers(writer, x, dim)[:2]
    return writer.elementwise(lambda f, x, y: f.real("div", x, y), [powers, total])


def _powers(writer: Writer, x: View, dim: int) -> tuple[View, View, View]:
    """e^(x - max), their sum, x - max."""
    most = reduce(writer, "amax", x, [dim], keepdim=True)
    less = writer.elementwise(lambda f, x, y: f.real("sub", x, y), [x, most])
    powers = writer.elementwise(lambda f, x: f.real("exp", x), [less])
    return powers, reduce(writer, "sum", powers, [dim], keepdim=True), less


def _log_softmax(writer: Writer, x: View, dim: int, half_to_float: bool = False) -> View:
    _, total, less = _powers(writer, x, dim)
    return writer.elementwise(lambda f, x, y: f.real("sub", x, f.real("log", y)), [less, total])


def _sum(
    writer: Writer, x: View, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None
) -> View:
    return reduce(writer, "sum", x, dim, keepdim)


def _mean(
    writer: Writer, x: View, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None
) -> View:
    count = prod(x.shape[i] for i in (dim or range(len(x.shape))))
    return reduce(writer, "sum", x, dim, keepdim, 1 / count)


def _extreme(name: str) -> Callable[..., View]:
    def handler(writer: Writer, x: View, dim: Sequence[int] | None = None, keepdim: bool = False) -> View:
        return reduce(writer, name, x, dim, keepdim)

    return handler


def _prod(writer: Writer, x: View, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> View:
    return reduce(writer, "prod", x, None if dim is None else [dim], keepdim)


def _truth(name: str) -> Callable[..., View]:
    """Whether any or all are true: the maximum or minimum of 1 and 0."""

    def handler(writer: Writer, x: View, dim: Any = None, keepdim: bool = False) -> View:
        flags = writer.elementwise(lambda f, x: f.compare("ne", x, 0), [x], dtype=torch.bool)
        return reduce(writer, name, flags, [dim] if isinstance(dim, int) else dim, keepdim)

    return handler


def _norm(
    writer: Writer, x: View, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> View:
    if ord != 2:
        raise Unsupported(f"a norm of order {ord}")
    squares = writer.elementwise(lambda f, x: f.real("square", x), [x])
    total = reduce(writer, "sum", squares, [dim] if isinstance(dim, int) else dim, keepdim)
    return writer.elementwise(lambda f, x: f.real("sqrt", x), [total])


def _scaled(f: Any, x: Any, factor: Any, weight: Any = None, bias: Any = None) -> Any:
    x = f.real("mul", x, factor)
    x = x if weight is None else f.real("mul", x, weight)
    return x if bias is None else f.real("add", x, bias)


def _layer_norm(
    writer: Writer, x: View, normalized_shape: Sequence[int], weight: View | None, bias: View | None, eps: float
) -> tuple[View, View, View]:
    dims = list(range(len(x.shape) - len(normalized_shape), len(x.shape)))
    mean = _mean(writer, x, dims, True)
    centred = writer.elementwise(lambda f, x, y: f.real("sub", x, y), [x, mean])
    squares = writer.elementwise(lambda f, x: f.real("square", x), [centred])
    variance = _mean(writer, squares, dims, True)
    factor = writer.elementwise(lambda f, x: f.real("rsqrt", f.real("add", x, eps)), [variance])
    return writer.elementwise(_scaled, [centred, factor, weight, bias]), mean, factor


def _rms_norm(
    writer: Writer, x: View, normalized_shape: Sequence[int], weight: View | None, eps: float | None
) -> tuple[View, View]:
    dims = list(range(len(x.shape) - len(normalized_shape), len(x.shape)))
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    squares = writer.elementwise(lambda f, x: f.real("square", x), [x])
    factor = writer.elementwise(
        lambda f, x: f.real("rsqrt", f.real("add", x, eps)), [_mean(writer, squares, dims, True)]
    )
    return writer.elementwise(_scaled, [x, factor, weight]), factor


def _cat(writer: Writer, tensors: Sequence[View], dim: int = 0) -> View:
    tensors = [z for z in tensors if z.size] or tensors[:1]
    kinds = {z.buffer.kind == INT for z in tensors}
    if len(kinds) > 1:
        raise Unsupported("integers and floating numbers put together")
    dim %= len(tensors[0].shape)
    shape = list(tensors[0].shape)
    shape[dim] = sum(z.shape[dim] for z in tensors)
    out, start = writer.fresh(shape, INT if True in kinds else FLOAT), 0
    for z in tensors:
        writer.write(z, out.narrow(dim, start, z.shape[dim]))
        start += z.shape[dim]
    writer.written(out)
    return out


def _stack(writer: Writer, tensors: Sequence[View], dim: int = 0) -> View:
    dim %= len(tensors[0].shape) + 1
    return _cat(
        writer,
        [
            z._replace(shape=(*z.shape[:dim], 1, *z.shape[dim:]), stride=(*z.stride[:dim], 0, *z.stride[dim:]))
            for z in tensors
        ],
        dim,
    )


def _pad(writer: Writer, x: View, pad: Sequence[int], value: float = 0) -> View:
    shape, inside = list(x.shape), []
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        if before < 0 or after < 0:
            raise Unsupported("padding that cuts")
        dim = len(shape) - 1 - i
        inside.append((dim, before, x.shape[dim]))
        shape[dim] += before + after
    dtype = torch.int64 if x.buffer.kind == INT else torch.float32
    out = writer.elementwise(lambda f, number: f.as_kind(number, f.kind), [value], None, shape, dtype)
    if 0 in x.shape:
        return out
    writer.ready(out).buffer.writers += 1
    target = out
    for dim, before, length in inside:
        target = target.narrow(dim, before, length)
    writer.write(x, target)
    writer.written(out)
    return out


def _embedding(
    writer: Writer, table: View, indices: View, padding_idx: int = -1, *options: Any, wraps: bool = False
) -> View:
    flat = indices if len(indices.shape) == 1 else writer.copy(indices)
    flat = writer.ready(flat)
    if flat.buffer.kind != INT or len(table.shape) != 2 or table.stride[1] != 1 or table.buffer.kind == INT:
        raise Unsupported("indices or a table that cannot be read row by row")
    flat = flat._replace(shape=(flat.size,), stride=(flat.stride[-1] if len(indices.shape) == 1 else 1,))
    out = writer.fresh((flat.size, table.shape[1]))
    writer.emit(Fetch(writer.ready(table), flat, out, wraps))
    shape = (*indices.shape, table.shape[1])
    return out._replace(shape=shape, stride=contiguous(shape))


def _index_select(writer: Writer, x: View, dim: int, index: View) -> View:
    if dim % len(x.shape):
        raise Unsupported("rows of another dimension than the first")
    flat = writer.plain(x)
    columns = prod(x.shape[1:])
    if x.stride[1:] != contiguous(x.shape[1:]):
        flat = writer.ready(writer.copy(x))
    row = flat.stride[0]
    table = flat._replace(shape=(x.shape[0], columns), stride=(row, 1))
    found = _embedding(writer, table, index)
    shape = (index.size, *x.shape[1:])
    return found._replace(shape=shape, stride=contiguous(shape))


OPERATORS: dict[str, Callable[..., Any]] = {
    "_fused_rms_norm": _rms_norm,
    "_log_softmax": _log_softmax,
    "_softmax": softmax,
    "all": _truth("amin"),
    "amax": _extreme("amax"),
    "amin": _extreme("amin"),
    "any": _truth("amax"),
    "cat": _cat,
    "constant_pad_nd": _pad,
    "embedding": _embedding,
    "index_select": _index_select,
    "linalg_vector_norm": _norm,
    "mean": _mean,
    "native_layer_norm": _layer_norm,
    "prod": _prod,
    "stack": _stack,
    "sum": _sum,
}
