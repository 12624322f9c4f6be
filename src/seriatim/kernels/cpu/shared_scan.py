"""What PyTorch sees of matrix_scan's kernels for heads that share queries and keys: two operators and the op on them.

Dimensions: B batch, T time, G groups, H heads, K key dim, V value dim.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.launch import Kernel, rows, threads
from seriatim.kernels.cpu.matrix_scan import fake, fake_gradients, gradients_by, gradients_like, results, save
from seriatim.kernels.cpu.memory import room
from seriatim.kernels.cpu.operator import differentiable, unread, wants_gradient
from seriatim.kernels.cpu.source.shared_layout import TOKENS, backward_sizes, forward_sizes

__all__ = ["share", "shared_scan"]

_forward, _backward = Kernel("shared_scan", "forward"), Kernel("shared_scan", "backward")


def shared_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.matrix_scan.matrix_scan`, all float32; no decay, or one a head."""
    o, last, _ = forward(q, k, v, log_decay, state, reset, scale, wants_gradient(q, k, v, log_decay, state))
    return o, last


def share(batch: int, groups: int, heads: int, threads: int) -> int:
    """How many heads of a group make a work item: all of them, or so many that every thread is as busy."""
    of_group = heads // groups
    return min(range(1, of_group + 1), key=lambda n: (n * -(-batch * groups * -(-of_group // n) // threads), -n))


@torch.library.custom_op("seriatim::cpu_shared_scan", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the last state (B, H, K, V), and if it `learns` the states before every chunk but the first."""
    o, last, states = results(q, v, TOKENS if learns else None, room)
    if not last.numel() or not q.size(1):
        return unread(o, last, states, state)
    each, parts = _items(q, v)
    inputs = [rows(z) for z in (q, k, v, log_decay, state, reset)]
    scratch = sum(forward_sizes(TOKENS, q.size(3), v.size(3)))
    items = q.size(0) * q.size(2) * parts
    _forward(items, *inputs, scale, TOKENS, each, o, last, states, scratch=scratch)
    return o, last, states


@torch.library.custom_op("seriatim::cpu_shared_scan_backward", mutates_args=())
def backward(
    grad_o: Tensor,
    grad_last: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    states: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, log_decay (empty if there is none) and state."""
    grads = gradients_like(q, k, v, log_decay, room)
    grad_q, grad_k, grad_v, grad_decay, grad_state = grads
    if not grad_state.numel() or not q.size(1):
        for z in grads:
            z.zero_()
        return grads if grad_last is None else (*grads[:4], grad_last.clone())
    each, parts = _items(q, v)
    found_q, found_k = (z.unsqueeze(0) if parts == 1 else room(z, parts, *z.shape) for z in (grad_q, grad_k))
    inputs = [rows(z) for z in (q, k, v, log_decay, state, reset, states, grad_o, grad_last)]
    outputs = [found_q, found_k, grad_v, grad_decay if log_decay is not None else None, grad_state]
    sizes = (*forward_sizes(TOKENS, q.size(3), v.size(3)), *backward_sizes(TOKENS, q.size(3), v.size(3)))
    _backward(q.size(0) * q.size(2) * parts, *inputs, scale, TOKENS, each, *outputs, scratch=sum(sizes))
    if parts > 1:
        torch.sum(found_q, 0, out=grad_q)
        torch.sum(found_k, 0, out=grad_k)
    return grads


def _items(q: Tensor, v: Tensor) -> tuple[int, int]:
    """How many heads a work item has, and how many items a group."""
    groups, heads = q.size(2), v.size(2)
    each = share(q.size(0), groups, heads, threads())
    return each, -(-heads // groups // each)


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Any, state: Any, reset: Any, scale: float, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return results(q, v, TOKENS if learns else None, fake)


backward.register_fake(fake_gradients)
differentiable(forward, save, gradients_by(backward))
