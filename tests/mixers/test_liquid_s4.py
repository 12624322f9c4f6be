"""Liquid-S4: where its products are all there are, it is the liquid system itself."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError


def liquid(**options):
    torch.manual_seed(0)
    mixer = build("liquid_s4", dim=3, state_size=6, step_min=0.3, step_max=0.9, **options).double()
    with torch.no_grad():
        mixer.system.B.normal_()
    return mixer


def solved(mixer, x):
    """h_t = (A + B u_t 1^T) h_{t-1} + B u_t, with whole matrices and both numbers of each pair."""
    A, B, C = mixer.system()
    A, B, C = (torch.cat([z, z.conj()], -1) for z in (A, B, C.squeeze(1) / 2))
    h, outputs = torch.zeros(len(x), *A.shape, dtype=A.dtype), []
    for u in x.unbind(1):
        transition = torch.diag_embed(A) + (u[..., None] * B)[..., None]
        h = (transition @ h.unsqueeze(3)).squeeze(3) + B * u[..., None]
        outputs.append((C * h).sum(2).real)
    return torch.stack(outputs, 1)


def answers(mixer, x):
    """The system's, without the layer behind it."""
    found = []
    handle = mixer.out.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    mixer(x)
    handle.remove()
    return found[0] - mixer.D * x


def test_two_neighbours_are_answered_as_by_the_liquid_system():
    """Alone in their sequence they have one product, which "kb" keeps: nothing is left out."""
    mixer, x = liquid(kernel="kb", order=2), torch.zeros(2, 20, 3, dtype=torch.float64)
    x[:, 7:9] = torch.randn(2, 2, 3, dtype=torch.float64)
    assert_close([answers(mixer, x)], [solved(mixer, x)], 1e-9, "answer")


def test_a_system_that_forgets_at_once_has_products_of_neighbours_only():
    """With A = 0 the liquid system is its products of neighbours, of every order; "pb" is the same as "kb"."""
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    for kernel in ("kb", "pb"):
        mixer = liquid(kernel=kernel, order=6, discretization="zoh")
        with torch.no_grad():
            mixer.system.log_real.fill_(6.0)  # e^(-400 steps)
            mixer.system.B.mul_(100)
        assert_close([answers(mixer, x)], [solved(mixer, x)], 1e-9, f"answer of {kernel}")


def test_an_order_below_2_is_refused():
    with pytest.raises(SeriatimError, match="order is 1; it must be at least 2"):
        liquid(order=1)
