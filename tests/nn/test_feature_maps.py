import pytest
import torch

from seriatim.core.errors import SeriatimError
from seriatim.nn.feature_maps import FEATURE_MAPS, POSITIVE, build_feature_map


def vectors(seed: int, count: int, dim: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 15, 16])
def test_taylor_features_multiply_to_the_expansion(dim):
    q, k = vectors(0, 7, dim), vectors(1, 9, dim)
    phi = build_feature_map("taylor", dim)
    s = q @ k.T / dim**0.5
    assert torch.allclose(phi(q) @ phi(k).T, 1 + s + s**2 / 2, atol=1e-12)
    assert phi(q).shape == (7, phi.features)


def test_performer_estimates_the_softmax_kernel_without_bias():
    q, k = 0.35 * vectors(0, 5, 8), 0.35 * vectors(1, 6, 8)
    wanted = torch.exp(q @ k.T / 8**0.5)
    found = [build_feature_map("performer", 8, 4096, seed).double() for seed in range(4)]
    mean = torch.stack([phi(q) @ phi(k).T for phi in found]).mean(0)
    assert torch.allclose(mean, wanted, rtol=0.06)


def test_performer_features_are_orthogonal_in_blocks_and_seeded():
    w = build_feature_map("performer", 8, 20, seed=3).random
    gram = (w[:8] @ w[:8].T).fill_diagonal_(0)
    assert gram.abs().max() < 1e-5
    assert (w[:8] @ w[8:16].T).abs().max() > 0.1
    assert torch.equal(w, build_feature_map("performer", 8, 20, seed=3).random)
    assert not torch.equal(w, build_feature_map("performer", 8, 20, seed=4).random)


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_maps_give_weights(name):
    phi = build_feature_map(name, 6).double()
    assert (phi(vectors(0, 50, 6)) @ phi(vectors(1, 50, 6)).T >= 0).all()


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_are_finite_far_out(name):
    x = (100 * vectors(2, 4, 6)).float().requires_grad_()
    phi = build_feature_map(name, 6)(x)
    phi.sum().backward()
    assert phi.isfinite().all()
    assert x.grad.isfinite().all()


def test_wrong_options_are_named():
    with pytest.raises(SeriatimError, match="feature_map is 'exp'; it must be one of"):
        build_feature_map("exp", 4)
    with pytest.raises(SeriatimError, match="seed is -1"):
        build_feature_map("performer", 4, seed=-1)
    with pytest.raises(SeriatimError, match="random_features is 0"):
        build_feature_map("performer", 4, 0)
