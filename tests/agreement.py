"""What the tests of the ops share: results with their gradients, how far two of them are apart, random resets."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from seriatim.core.state import leaves
from seriatim.ops import backend

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random leaf that wants its gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def resets(seed: int, batch: int, time: int, chance: float = 0.2) -> Tensor:
    """(B, T) bool, with that chance at every token."""
    return torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < chance


def floating(found: Any) -> list[Tensor]:
    """The floating leaves of an output and a state."""
    return [leaf for _, leaf in leaves(found) if leaf.is_floating_point()]


def gradients(found: Any, inputs: Sequence[Tensor], seed: int = 99) -> list[Tensor]:
    """The gradients of a random projection of everything floating in `found`; zeros where an input is not used."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for leaf in floating(found):
        total = total + (leaf.double() * torch.randn(leaf.shape, dtype=torch.float64, generator=generator)).sum()
    if not total.requires_grad:
        return [torch.zeros_like(z) for z in inputs]
    return list(torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True))


def assert_close(found: Iterable[Tensor], wanted: Iterable[Tensor], tolerance: float, what: str) -> None:
    """The largest difference, relative to the largest value (at least 1), stays below `tolerance`; infinities agree."""
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape, f"{what} {index}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
        if not b.numel():
            continue
        a, b = a.detach().double(), b.detach().double()
        infinite = b.isinf()
        assert torch.equal(a[infinite], b[infinite]), f"{what} {index}: infinities differ"
        a, b = a[~infinite], b[~infinite]
        assert a.isfinite().all(), f"{what} {index}: not finite"
        if b.numel():
            far = ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()
            assert far <= tolerance, f"{what} {index}: {far:.3g} apart"


def assert_backends_agree(run: Callable[[], Any], inputs: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    """`run` gives the same values and gradients with the torch backend as with the reference."""
    with backend("reference"):
        wanted = run()
    with backend("torch"):
        found = run()
    for (name, a), (_, b) in zip(leaves(found), leaves(wanted), strict=True):
        assert a.dtype == b.dtype, f"{name}: dtypes {a.dtype} and {b.dtype}"
    assert_close(floating(found), floating(wanted), tolerance, "value")
    assert_close(gradients(found, inputs), gradients(wanted, inputs), tolerance, "gradient")
