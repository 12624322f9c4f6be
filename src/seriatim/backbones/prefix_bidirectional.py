"""Any causal mixer, read from both sides over a prompt and causally after it."""

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.backbones.bidirectional import build_inner, reverse
from seriatim.core import ragged
from seriatim.core.build import Spec
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State

__all__ = ["PrefixBidirectional", "PrefixBidirectionalState"]


class PrefixBidirectionalState(NamedTuple):
    """How much of the prompt is still to come, and what the forward mixer carries."""

    prompt: Tensor  # (B,) int64, set by core.prompts.expect_prompt
    inner: State


class PrefixBidirectional(Mixer):
    r"""Two mixers of one kind; the second reads the prompt from its end, and each token after the prompt alone.

    .. math:: y_{1:M} = f(x)_{1:M} + \mathrm{rev}(g(\mathrm{rev}(x_{1:M}))), \quad
              y_t = f(x)_t + g(x_t) \quad (t > M)

    M is the prompt's length. In the paper one layer's state has two halves, and the second runs backwards under a
    forget gate that is 0 after the prompt, so that nothing there comes from the right. Half of the features of a
    diagonal state are a mixer of their own: `{"mixer": "gated_ssm", "state_size": N // 2}` is the paper's layer of
    state N, as large and as costly as a causal one.

    How long the prompt is stands in the state: `expect_prompt(mixer.init_state(B), lengths)` of
    :mod:`seriatim.core.prompts`. Without it there is none and the mixer is causal. The prompt must come in one segment:
    of one in pieces each piece is read from its own end. A reset ends the prompt.

    Args:
        dim: features in and out.
        inner: the spec of a causal mixer, such as `"mamba"` or `{"mixer": "gla", "heads": 2}`; it gets `dim`.

    Source: Blouir et al., 2024, arXiv:2411.01030, sections 3.1, A.3 and A.4.
    """

    def __init__(self, dim: int, inner: Spec = "gated_ssm"):
        super().__init__()
        check_size(dim=dim)
        self.dim, self.inner = dim, inner
        self.forwards, self.backwards = build_inner(inner, dim), build_inner(inner, dim)
        self.constant_state = self.forwards.constant_state

    def init_state(self, batch: int) -> PrefixBidirectionalState:
        prompt = torch.zeros(batch, dtype=torch.long, device=next(self.parameters()).device)
        return PrefixBidirectionalState(prompt, self.forwards.init_state(batch))

    def mix(
        self, x: Tensor, state: PrefixBidirectionalState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, PrefixBidirectionalState]:
        past, inner = self.forwards(x, state.inner, reset=reset, lengths=lengths)
        prompt, real = state.prompt, x.size(1) if lengths is None else lengths
        if reset is not None:
            prompt = torch.minimum(prompt, (ragged.segments(reset) == 0).sum(1))
        left = (prompt - real).clamp(min=0)
        if x.size(1) == 1:  # the same from either side
            return past + self.backwards(x)[0], PrefixBidirectionalState(left, inner)
        alone = ~ragged.real_tokens(prompt.clamp(max=real), x.size(1))
        future, _ = self.backwards(reverse(x, alone), reset=alone)
        return past + reverse(future, alone), PrefixBidirectionalState(left, inner)


def reference(m: PrefixBidirectional, x: Tensor, prompt: int = 0) -> Tensor:
    """Both directions by the mixer's own reference, where the first `prompt` tokens are the prompt."""
    home = sys.modules[type(m.forwards).__module__]
    future = [home.reference(m.backwards, x[:, t : t + 1]) for t in range(prompt, x.size(1))]
    if prompt:
        future.insert(0, home.reference(m.backwards, x[:, :prompt].flip(1)).flip(1))
    return home.reference(m.forwards, x) + torch.cat(future, 1)
