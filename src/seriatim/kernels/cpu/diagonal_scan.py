"""What PyTorch sees of the diagonal scan's kernels: two operators, and the op on top of them.

Dimensions: B batch, T time, F features; the kernels count a complex feature twice.
"""

import math
from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.memory import room
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["block_size", "diagonal_scan"]

_LINE = 16  # numbers of a line of the cache
_WIDTHS = tuple(_LINE << shift for shift in range(13))  # numbers of a row that a work item may take
_ROUNDS = 4  # of items, after which it does not matter any more that the last one leaves threads without work
_forward, _backward = Kernel("diagonal_scan", "forward"), Kernel("diagonal_scan", "backward")


def diagonal_scan(
    a: Tensor, b: Tensor, *, state: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.diagonal_scan.diagonal_scan`, all float32 or all complex64."""
    if b.size(1) == 0:
        return b, b.new_zeros(b.size(0), *b.shape[2:]) if state is None else state
    return forward(a, b, state, reset)


def block_size(batch: int, features: int, threads: int) -> int:
    """How many numbers of a row a work item takes.

    As many as there are, since memory is read fastest in order; fewer where threads would have no work, or where what
    is carried, and added up, does not stay in the first level cache beside the rows that stream by.
    """
    widest = largest_block(lambda width: (2 * 8 + 2 * 5 * 4) * width, caches().first, _WIDTHS)
    across = 1 if batch >= _ROUNDS * threads else threads // math.gcd(batch, threads)
    across = max(across, -(-features // widest))
    return max(1, -(-features // (across * _LINE))) * _LINE


@torch.library.custom_op("seriatim::cpu_diagonal_scan", mutates_args=())
def forward(a: Tensor, b: Tensor, state: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """h (B, T, *F) and the last state (B, *F); a (B, T, *F) or (*F)."""
    values, factors = _numbers(b, 2), _factors(a, b)
    h, last = room(values, *values.shape), values.new_empty(values.size(0), values.size(2))
    width, items = _items(values)
    inputs = (factors, values, _numbers(state, 1), rows(reset))
    _forward(items, *inputs, int(b.is_complex()), width, h, last, scratch=2 * width)
    return _as_given(h, b.shape, b), _as_given(last, b[:, 0].shape, b)


@torch.library.custom_op("seriatim::cpu_diagonal_scan_backward", mutates_args=())
def backward(
    grad_h: Tensor, grad_last: Tensor, a: Tensor, h: Tensor, state: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, b and the state."""
    found, factors, is_constant = _numbers(h, 2), _factors(a, h), a.dim() < h.dim()
    (batch, time, features), (width, items) = found.shape, _items(found)
    grad_a, grad_b = room(found, batch, 1 if is_constant else time, features), room(found, *found.shape)
    grad_state = found.new_empty(batch, features)
    inputs = (_numbers(grad_h, 2), _numbers(grad_last, 1), factors, found, _numbers(state, 1), rows(reset))
    outputs = (grad_a, grad_b, grad_state)
    _backward(items, *inputs, int(h.is_complex()), width, int(is_constant), *outputs, scratch=4 * width)
    if is_constant:
        grad_a = grad_a.sum((0, 1))
    return _as_given(grad_a, a.shape, h), _as_given(grad_b, h.shape, h), _as_given(grad_state, grad_last.shape, h)


def _numbers(tensor: Tensor | None, leading: int) -> Any:
    """The tensor with one dimension behind the `leading` ones, a complex number as two real ones."""
    if tensor is None:
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return rows(tensor.reshape(*tensor.shape[:leading], math.prod(tensor.shape[leading:])))


def _factors(a: Tensor, b: Tensor) -> Tensor:
    """a as (B, T, numbers), not copied where it is the same at every token."""
    factors = _numbers(a, 2 if a.dim() == b.dim() else 0)
    return factors.expand(*b.shape[:2], factors.size(-1))


def _items(numbers: Tensor) -> tuple[int, int]:
    """How wide work items are, and how many."""
    width = block_size(numbers.size(0), numbers.size(2), torch.get_num_threads())
    return width, numbers.size(0) * -(-numbers.size(2) // width)


def _as_given(numbers: Tensor, shape: Any, like: Tensor) -> Tensor:
    """Numbers of a kernel as a tensor of that shape, complex where `like` is."""
    return torch.view_as_complex(numbers.view(*shape, 2)) if like.is_complex() else numbers.view(shape)


@forward.register_fake
def _(a: Tensor, b: Tensor, state: Any, reset: Any) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), b.new_empty(b[:, 0].shape)


@backward.register_fake
def _(grad_h: Any, grad_last: Tensor, a: Tensor, h: Tensor, state: Any, reset: Any) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), h.new_empty(h.shape), h.new_empty(grad_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, _, state, reset = inputs
    ctx.save_for_backward(a, output[0], state, reset)


def _gradients(ctx: Any, grad_h: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    a, h, state, reset = ctx.saved_tensors
    grad_a, grad_b, grad_state = backward(grad_h, grad_last, a, h, state, reset)
    return grad_a, grad_b, None if state is None else grad_state, None


differentiable(forward, _save, _gradients)
