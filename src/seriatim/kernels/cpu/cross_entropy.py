"""What PyTorch sees of the cross entropy's kernels: two operators, and the loss on top of them.

Dimensions: N rows, V classes. Second derivatives are those of the portable equation.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["IGNORED", "cross_entropy"]

IGNORED = -100  # a target that is none
_ITEM = 1 << 14  # numbers in a work item: some ten microseconds
_SCRATCH = 2 * 64  # numbers: two lines of the kernel's LANES
_forward, _backward = Kernel("cross_entropy", "forward"), Kernel("cross_entropy", "backward")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over the targets that are not -100 of -log softmax(logits)[target], in nats; logits (N, V) float32."""
    loss, _ = forward(logits, targets)
    return loss


def _blocks(logits: Tensor) -> tuple[int, int]:
    """How many items the rows make, and how many rows an item has."""
    block = max(1, _ITEM // max(logits.size(1), 1))
    return -(-logits.size(0) // block), block


def _check(targets: Tensor, classes: int) -> None:
    """Raises if there is a target that is no class."""
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= classes))]
    if wrong.numel():
        raise SeriatimError(f"targets holds {int(wrong[0])}; it must stay within 0 and {classes - 1}, or be {IGNORED}")


@torch.library.custom_op("seriatim::cpu_cross_entropy", mutates_args=())
def forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and of every row the largest logit and the sum of e^(logit - largest), (2, N)."""
    sums, nats = logits.new_empty(2, logits.size(0)), logits.new_empty(logits.size(0))
    items, block = _blocks(logits)
    _forward(items, block, rows(logits), rows(targets), nats, sums, scratch=_SCRATCH)
    loss = torch.add(nats, sums[1].log()).sum()
    if math.isnan(loss.item()):
        _check(targets, logits.size(1))
    return loss, sums


@torch.library.custom_op("seriatim::cpu_cross_entropy_backward", mutates_args=())
def backward(grad: Tensor, logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    """The gradient of the logits."""
    grad_logits = logits.new_empty(logits.shape)
    items, block = _blocks(logits)
    _backward(items, block, grad.reshape(1), rows(logits), rows(targets), sums, grad_logits, scratch=_SCRATCH)
    return grad_logits


@forward.register_fake
def _(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(2, logits.size(0))


@backward.register_fake
def _(grad: Tensor, logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
    return backward(grad, *ctx.saved_tensors), None


def _again(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
    logits, targets, _ = ctx.saved_tensors
    chosen = F.one_hot(targets.clamp(min=0), logits.size(1)).to(logits.dtype)
    return grad * (logits.softmax(1) - chosen) * (targets != IGNORED)[:, None], None


differentiable(forward, _save, _gradients, _again)
