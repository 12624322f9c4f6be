"""A call together with its gradients: forward and backward, as training does them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Differentiated", "draw", "drawn"]


class Differentiated:
    """Calls `call(*leaves)` and, with `backward`, its gradient; returns the output and the gradients.

    Args:
        call: tensors to one tensor.
        leaves: what is differentiated with respect to.
        cotangent: the gradient of the output; None draws one.
        parameters: what else `call` reads and is differentiated with respect to, after the leaves.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        leaves: Sequence[Tensor],
        backward: bool = True,
        cotangent: Tensor | None = None,
        parameters: Sequence[Tensor] = (),
    ):
        self.call, self.backward, self.cotangent = call, backward, cotangent
        self.leaves = [leaf.detach().requires_grad_(backward) for leaf in leaves]
        self.read = [*self.leaves, *parameters]

    def __call__(self) -> list[Tensor]:
        if not self.backward:
            with torch.no_grad():
                return [self.call(*self.leaves)]
        out = self.call(*self.leaves)
        if self.cotangent is None:
            self.cotangent = draw(1, *out.shape)
        return [out, *torch.autograd.grad(out, self.read, self.cotangent)]

    def bytes(self, out: Tensor) -> float:
        """Inputs read and outputs written; backward they are read again, and the gradients written."""
        read, written = sum(leaf.nbytes for leaf in self.read), out.nbytes
        return 3 * read + 2 * written if self.backward else read + written


def draw(seed: int, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(*shapes: Sequence[int]) -> list[Tensor]:
    """A tensor of normal numbers for each shape."""
    return [draw(seed, *shape) for seed, shape in enumerate(shapes)]
