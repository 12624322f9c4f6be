"""The delta-rule mixers: what each is a special case of, their eigenvalues, and long and extreme inputs in float32."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build

DIM, HEADS = 16, 2
SAME_WIDTHS = {"dim": DIM, "heads": HEADS, "head_dim": DIM // HEADS, "expand_v": 1}
MIXERS = [
    ("deltanet", {}),
    ("gated_deltanet", {}),
    ("deltaproduct", {}),
    ("deltaproduct", {"householders": 3, "forget_gate": False, "output_gate": False}),
]
SILU_IS_ONE = 1.2784645427610738


def made(name, **options):
    return build(name, dim=DIM, heads=HEADS, **options)


def assert_same(one, other, x, tolerance=1e-12):
    """In outputs and in the state's memory."""
    (y, state), (expected, expected_state) = one(x), other(x)
    assert_close([y, state.memory], [expected, expected_state.memory], tolerance, "value")


@pytest.mark.parametrize("eigenvalues", ["positive", "signed"])
def test_deltaproduct_with_one_write_is_deltanet(eigenvalues):
    plain = made("deltanet", eigenvalues=eigenvalues).double()
    product = build(
        "deltaproduct", **SAME_WIDTHS, householders=1, forget_gate=False, output_gate=False, eigenvalues=eigenvalues
    ).double()
    product.load_state_dict(plain.state_dict())
    assert_same(product, plain, torch.randn(2, 30, DIM, dtype=torch.float64), 0)


@pytest.mark.parametrize("eigenvalues", ["positive", "signed"])
def test_deltaproduct_with_one_write_and_gates_is_gated_deltanet(eigenvalues):
    plain = made("gated_deltanet", eigenvalues=eigenvalues).double()
    product = made("deltaproduct", householders=1, eigenvalues=eigenvalues).double()
    product.load_state_dict(plain.state_dict())
    assert_same(product, plain, torch.randn(2, 30, DIM, dtype=torch.float64), 0)


@pytest.mark.parametrize("eigenvalues", ["positive", "signed"])
def test_gated_deltanet_that_never_fades_is_deltanet(eigenvalues):
    """Steps of 0 make every decay 1. A feature that is always 1 lets the output gate be 1, as it has no bias."""
    plain = made("deltanet", eigenvalues=eigenvalues).double()
    with_gates = build("gated_deltanet", **SAME_WIDTHS, eigenvalues=eigenvalues).double()
    with torch.no_grad():
        with_gates.decay.step.weight.zero_()
        with_gates.decay.step_bias.fill_(-1e4)
        with_gates.out_gate.weight.zero_()
        with_gates.out_gate.weight[:, -1] = SILU_IS_ONE
    with_gates.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    x[..., -1] = 1.0
    assert_same(with_gates, plain, x)


def test_writes_that_are_zero_are_no_writes():
    """Where all betas but the first are 0, several writes are one."""
    plain = made("gated_deltanet").double()
    product = made("deltaproduct", householders=3, eigenvalues="positive").double()
    keys, values = HEADS * plain.key_dim, HEADS * plain.value_dim
    weights = plain.state_dict()
    for name in ("qkv.weight", "conv.weight"):
        q, k, v = weights[name].split([keys, keys, values])
        weights[name] = torch.cat([q, k, torch.randn(2 * keys, k.size(1)), v, torch.randn(2 * values, v.size(1))])
    others = torch.zeros(2 * HEADS, DIM, dtype=torch.float64)
    others[:, -1] = -1e4
    weights["beta.weight"] = torch.cat([weights["beta.weight"], others])
    product.load_state_dict(weights)
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    x[..., -1] = 1.0
    assert_same(product, plain, x)


def transitions(mixer, x):
    """The matrices (H, K, K) by which one token x (1, 1, dim) multiplies the memory of every head."""
    start = mixer.init_state(1)

    def after(memory):
        return mixer(x, start._replace(memory=memory))[1].memory[0, ..., 0]

    columns = []
    for i in range(mixer.key_dim):
        memory = torch.zeros_like(start.memory)
        memory[:, :, i] = 1.0
        columns.append(after(memory) - after(start.memory))
    return torch.stack(columns, -1)


@pytest.mark.parametrize(("name", "options"), MIXERS, ids=str)
@pytest.mark.parametrize("eigenvalues", ["positive", "signed"])
def test_signed_eigenvalues_reach_below_zero(name, options, eigenvalues):
    mixer = made(name, **options, eigenvalues=eigenvalues).double()
    with torch.no_grad():
        mixer.beta.weight.mul_(20)  # betas from near 0 to near the largest
    found = torch.cat([torch.linalg.eigvals(transitions(mixer, x)) for x in torch.randn(30, 1, 1, DIM).double()])
    assert found.abs().max() <= 1 + 1e-9
    if eigenvalues == "signed":
        assert found.real.min() < -0.9
    elif mixer.householders < 3:  # a product of three matrices without negative eigenvalues may have some
        assert found.real.min() > -1e-9
        assert found.real.min() < 0.1
        assert found.imag.abs().max() < 1e-6


def test_two_reflections_are_a_rotation():
    mixer = made("deltaproduct", forget_gate=False).double()
    with torch.no_grad():
        mixer.beta.weight.zero_()
        mixer.beta.weight[:, -1] = 1e4
    x = torch.randn(1, 1, DIM, dtype=torch.float64)
    x[..., -1] = 1.0
    (rotation, *_) = transitions(mixer, x)
    identity = torch.eye(mixer.key_dim, dtype=torch.float64)
    assert_close([rotation @ rotation.mT], [identity], 1e-3, "value")  # keys are a little shorter than 1
    assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-3)
    assert torch.linalg.eigvals(rotation).imag.abs().max() > 0.1


@pytest.mark.parametrize(("name", "options"), MIXERS, ids=str)
@pytest.mark.parametrize("eigenvalues", ["positive", "signed"])
@torch.no_grad()
def test_thousands_of_tokens_stay_bounded_in_single_precision(name, options, eigenvalues):
    """A write adds at most beta |v|. Signed ones damp less of what is there, so more of the writes' noise stays."""
    mixer = made(name, **options, eigenvalues=eigenvalues)
    mixer.beta.weight.mul_(20)
    state, sizes, largest = mixer.init_state(2), [], 0.0
    for _ in range(10):
        y, state = mixer(10 * torch.randn(2, 400, DIM), state)
        assert y.isfinite().all()
        sizes.append(state.memory.norm(dim=(-2, -1)).max().item())
        largest = max(largest, y.abs().max().item())
    assert largest < 20
    assert max(sizes) < (30 if eigenvalues == "positive" else 60)


@pytest.mark.parametrize(("name", "options"), MIXERS, ids=str)
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_gradients_are_finite_at_extreme_gates(name, options, size):
    mixer = made(name, **options, eigenvalues="signed")
    with torch.no_grad():
        mixer.beta.weight.fill_(size)
        if getattr(mixer, "decay", None) is not None:
            mixer.decay.step_bias.copy_(torch.tensor([size, -size]))
            mixer.decay.A_log.fill_(10.0)
        if getattr(mixer, "out_gate", None) is not None:
            mixer.out_gate.weight.fill_(size)
    x = torch.randn(2, 70, DIM, requires_grad=True)
    y, state = mixer(x)
    (y.square().mean() + state.memory.square().mean()).backward()
    assert y.isfinite().all()
    for name, z in [("x", x), *mixer.named_parameters()]:
        assert z.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "deltaproduct"])
def test_wrong_options_are_named(name):
    with pytest.raises(ValueError, match="eigenvalues is 'negative'; it must be one of"):
        made(name, eigenvalues="negative")
    with pytest.raises(ValueError, match="conv_size is 0; it must be a whole number above 0"):
        made(name, conv_size=0)


def test_wrong_numbers_of_writes_are_named():
    with pytest.raises(ValueError, match=r"householders is 1\.5; it must be a whole number above 0"):
        made("deltaproduct", householders=1.5)
