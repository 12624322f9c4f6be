"""A feed-forward layer of many experts, of which each token uses few."""

import math

import torch
from torch import Tensor, nn

from seriatim.core import taps
from seriatim.core.errors import SeriatimError, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.core.stepping import is_recording
from seriatim.nn.pointwise import swiglu
from seriatim.nn.routing import imbalance, top_scores

__all__ = ["MixtureOfExperts", "reference"]


class MixtureOfExperts(nn.Module):
    r"""SwiGLU layers side by side; a router gives each token to the `active` ones of the highest score.

    .. math:: s = \mathrm{softmax}(W_r x), \quad y = \sum_{i \in \mathrm{top}(s)} g_i\, E_i(x), \quad
              E_i(x) = W_{o,i} (\mathrm{silu}(W_{g,i} x) \odot W_{u,i} x)

    g = s, or with `normalize` s divided by the sum over the chosen. No token is dropped. While somebody collects taps
    the layer offers its weights and a loss, `balance` times :func:`seriatim.nn.routing.imbalance`, which counts every
    token that it is given.

    Args:
        dim: features in and out.
        hidden: units of an expert.
        experts: how many there are.
        active: how many a token uses.
        normalize: whether the weights of the chosen sum to 1.
        balance: of the loss.

    Source: Lieber et al., 2024, arXiv:2403.19887 (Jamba: not normalised); normalised: Jiang et al., 2024,
        arXiv:2401.04088.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        experts: int = 8,
        active: int = 2,
        normalize: bool = False,
        balance: float = 0.01,
    ):
        super().__init__()
        check_size(dim=dim, hidden=hidden, experts=experts, active=active)
        check_positive(balance=balance)
        if active > experts:
            raise SeriatimError(f"active is {active}; it must be at most experts = {experts}")
        self.experts, self.active, self.normalize, self.balance = experts, active, normalize, balance
        self.router = nn.Linear(dim, experts, bias=False)
        self.inner = nn.Parameter(torch.empty(experts, 2 * hidden, dim).uniform_(-1, 1) / math.sqrt(dim))
        self.out = nn.Parameter(torch.empty(experts, dim, hidden).uniform_(-1, 1) / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        tokens = x.reshape(-1, x.size(-1))
        scores = self.router(tokens)
        scores = scores.to(state_dtype(scores.dtype)).softmax(-1)
        best = top_scores(scores, self.active)
        weights = best / best.sum(-1, keepdim=True) if self.normalize else best
        taps.tap(self, "weights", weights)
        if taps.is_collecting():
            taps.add_loss(self, "balance", self.balance * imbalance(scores, best > 0, self.active))
        every = torch.compiler.is_compiling() or is_recording()  # their graphs must not depend on who is chosen
        mixed = self._all_experts if every else self._chosen_experts
        return mixed(tokens, weights.to(x.dtype)).view(x.shape)

    def _chosen_experts(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Every expert on the tokens that go to it."""
        y = torch.zeros_like(tokens)
        for index in range(self.experts):
            rows = weights[:, index].nonzero().squeeze(1)
            found = swiglu(tokens[rows] @ self.inner[index].mT) @ self.out[index].mT
            y = y.index_add(0, rows, found * weights[rows, index, None])
        return y

    def _all_experts(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """The same with every expert on every token."""
        hidden = swiglu(tokens @ self.inner.mT) * weights.mT.unsqueeze(2)  # (experts, tokens, hidden)
        return (hidden @ self.out.mT).sum(0)


def reference(m: MixtureOfExperts, x: Tensor) -> Tensor:
    """The equations, token by token, for x (tokens, dim)."""
    rows = []
    for token in x:
        scores = torch.exp(m.router.weight @ token)
        scores = scores / scores.sum()
        chosen = sorted(range(m.experts), key=lambda i: -scores[i].item())[: m.active]
        total = sum(scores[i] for i in chosen) if m.normalize else 1.0
        y = torch.zeros_like(token)
        for i in chosen:
            gate, up = (m.inner[i] @ token).chunk(2)
            y = y + scores[i] / total * (m.out[i] @ (gate * torch.sigmoid(gate) * up))
        rows.append(y)
    return torch.stack(rows) if rows else x
