"""Any causal mixer, read from both sides."""

import sys

import torch
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.build import Spec, build
from seriatim.core.errors import SeriatimError, check_one_of, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State

__all__ = ["Bidirectional", "build_inner", "reverse"]


class Bidirectional(Mixer):
    r"""Two mixers of one kind, one of which reads every document from its end.

    .. math:: y = f(x) + \mathrm{rev}(g(\mathrm{rev}(x))), \quad \text{or} \quad
              y = W [f(x);\, \mathrm{rev}(g(\mathrm{rev}(x)))]

    Not causal: each token sees its whole document, and nothing of another.

    Args:
        dim: features in and out.
        inner: the spec of a causal mixer, such as `"lstm"` or `{"mixer": "gla", "heads": 4}`; it gets `dim`.
        combine: "sum", or "concat" with a projection W.
        tied: whether both directions share one mixer's weights.

    Source: Schuster and Paliwal, 1997, "Bidirectional recurrent neural networks".
    """

    causal = False

    def __init__(self, dim: int, inner: Spec = "gla", combine: str = "sum", tied: bool = False):
        super().__init__()
        check_size(dim=dim)
        check_one_of("combine", combine, ("sum", "concat"))
        self.dim, self.inner, self.combine, self.tied = dim, inner, combine, tied
        self.forwards = build_inner(inner, dim)
        self.backwards = None if tied else build_inner(inner, dim)
        self.out = nn.Linear(2 * dim, dim, bias=False) if combine == "concat" else None

    def init_state(self, batch: int) -> State:
        return ()

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        past, _ = self.forwards(x, reset=reset, lengths=lengths)
        backwards = self.backwards or self.forwards
        future, _ = backwards(reverse(x, reset, lengths), reset=reset, lengths=lengths)
        future = reverse(future, reset, lengths)
        return (past + future if self.out is None else self.out(torch.cat([past, future], -1))), ()


def build_inner(inner: Spec, dim: int) -> Mixer:
    """The causal mixer that `inner` describes. Raises SeriatimError where it is none, or not of `dim` features."""
    try:
        mixer = build(inner, dim=dim)
    except SeriatimError as error:
        raise SeriatimError(f"inner: {error}") from error
    if not isinstance(mixer, Mixer) or mixer.reads_tokens or not mixer.causal or mixer.dim != dim:
        raise SeriatimError(f"inner is a {type(mixer).__name__}; it must be a causal mixer of {dim} features")
    return mixer


def reverse(x: Tensor, reset: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """Every document of x (B, T, ...) from its end, in the place where it stands; the padding stays on the right.

    Args:
        x: (B, T, ...).
        reset: (B, T) bool, a document begins at this token, also without one at the first.
        lengths: (B,) int, tokens that are real.
    """
    time = x.size(1)
    if time == 0 or (reset is None and lengths is None):
        return x.flip(1)
    index = torch.arange(time, device=x.device)
    begins = torch.zeros_like(index, dtype=torch.bool).expand(x.size(0), time) if reset is None else reset
    if lengths is not None:  # the padding is as a document of its own
        begins = begins | (index == lengths[:, None])
    first = torch.where(begins, index, 0).cummax(1).values
    next_first = torch.where(begins, index, time).flip(1).cummin(1).values.flip(1)
    last = torch.cat([next_first[:, 1:], torch.full_like(next_first[:, :1], time)], 1) - 1
    mirrored = first + last - index
    if lengths is not None:
        mirrored = torch.where(ragged.real_tokens(lengths, time), mirrored, index)
    return x.gather(1, mirrored.view(*mirrored.shape, *[1] * (x.dim() - 2)).expand(x.shape))


def reference(m: Bidirectional, x: Tensor) -> Tensor:
    """Both directions by the mixer's own reference."""
    home = sys.modules[type(m.forwards).__module__]
    past, future = home.reference(m.forwards, x), home.reference(m.backwards or m.forwards, x.flip(1)).flip(1)
    return past + future if m.out is None else torch.cat([past, future], -1) @ m.out.weight.T
