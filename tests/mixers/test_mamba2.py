"""Mamba-2 and Hydra: what they reduce to, their beginnings, and what they refuse."""

import pytest
import torch

from agreement import assert_close, resets
from seriatim import ops
from seriatim.core.build import build
from seriatim.mixers.state_space.base import dual_scan
from seriatim.nn.centred_conv import CentredConv

DIM = 12


def moved(name, **options):
    """A mixer in float64 with all parameters moved."""
    mixer = build(name, dim=DIM, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer


def test_the_dual_form_is_the_selective_scan_with_one_decay_a_head():
    heads, width, states = 3, 4, 5
    x, step = torch.randn(2, 30, heads, width).double(), torch.rand(2, 30, heads).double()
    B, C = torch.randn(2, 2, 30, 1, states).double()
    rates, reset = torch.tensor([0.5, 1.0, 3.0]).double(), resets(1, 2, 30)
    found, _ = dual_scan(x, step, -rates * step, B, C, None, reset)
    A = -rates.repeat_interleave(width)[:, None].expand(-1, states)
    wanted, _ = ops.selective_scan(
        x.flatten(2), step.repeat_interleave(width, -1), A, B[:, :, 0], C[:, :, 0], reset=reset
    )
    assert_close([found.flatten(2)], [wanted], 1e-12, "value")


def test_groups_with_equal_ports_are_one_group():
    one = moved("mamba2", state_size=4, head_dim=4, norm_groups=1)
    three = moved("mamba2", state_size=4, head_dim=4, norm_groups=1, groups=3)
    rows = [*range(48), *[48 + i for i in range(4)] * 3, *[52 + i for i in range(4)] * 3]
    conv = [row - 24 for row in rows[24:]]
    weights = one.state_dict()
    three.load_state_dict(
        weights
        | {"in_proj.weight": weights["in_proj.weight"][rows]}
        | {name: weights[name][conv] for name in ("conv.weight", "conv.bias")}
    )
    x = torch.randn(2, 20, DIM).double()
    assert_close([three(x)[0]], [one(x)[0]], 1e-12, "value")


def test_limits_hold_the_steps():
    mixer = build("mamba2", dim=DIM, step_min=0.02, step_max=0.05)
    steps = mixer.decay.steps(100 * torch.randn(2, 30, DIM))
    assert (steps.min().item(), steps.max().item()) == pytest.approx((0.02, 0.05))


def test_the_beginnings_are_the_papers():
    decay = build("mamba2", dim=4096, head_dim=8, state_size=1).decay
    rates, steps = decay.A_log.exp(), torch.nn.functional.softplus(decay.step_bias)
    assert 1 <= rates.min() < 1.2 < 15.8 < rates.max() <= 16.001
    assert 0.00099 <= steps.min() < 0.0012 < 0.09 < steps.max() <= 0.1001
    assert steps.log().mean().item() == pytest.approx(torch.tensor([0.001, 0.1]).log().mean().item(), abs=0.2)
    assert build("hydra", dim=DIM).decay.A_log.abs().max() == 0


def swapped(mixer):
    """The same Hydra with past and future exchanged."""
    other, weights = build("hydra", dim=DIM, state_size=3, head_dim=6).double(), mixer.state_dict()
    head, first, second = mixer.inner, slice(0, 6), slice(6, 12)

    def exchanged(z, start):
        return torch.cat([z[:start], z[start:][second], z[start:][first]])

    other.load_state_dict(
        weights
        | {"in_proj.weight": exchanged(weights["in_proj.weight"], 2 * head)}
        | {"conv.weight": exchanged(weights["conv.weight"], head).flip(1)}
        | {"conv.bias": exchanged(weights["conv.bias"], head)}
        | {"decay.step.weight": weights["decay.step.weight"].roll(mixer.heads, 0)}
    )
    return other


def test_hydra_reads_backwards_what_it_reads_forwards():
    mixer = moved("hydra", state_size=3, head_dim=6)
    x = torch.randn(2, 20, DIM).double()
    y = mixer(x)[0]
    assert_close([swapped(mixer)(x.flip(1))[0].flip(1)], [y], 1e-12, "value")
    assert (mixer(x.flip(1))[0].flip(1) - y).abs().max() > 1e-2


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_centred_convolution_is_torchs_own_in_each_document(size):
    conv = CentredConv(4, size).double()
    own = torch.nn.Conv1d(4, 4, size, padding=size // 2, groups=4).double()
    own.load_state_dict({"weight": conv.weight.unsqueeze(1), "bias": conv.bias})
    x, reset = torch.randn(1, 14, 4).double(), torch.zeros(1, 14, dtype=torch.bool)
    reset[0, [5, 6, 9]] = True
    parts = [own(part.mT).mT for part in x.split([5, 1, 3, 5], 1)]
    assert_close([conv(x), conv(x, reset)], [own(x.mT).mT, torch.cat(parts, 1)], 1e-12, "value")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba2", {"head_dim": 7}, "inner is 24 and head_dim is 7; inner must be a multiple of head_dim"),
        ("mamba2", {"head_dim": 8, "groups": 2}, "heads is 3 and groups is 2"),
        ("mamba2", {"head_dim": 0}, "head_dim is 0"),
        ("mamba2", {"norm_groups": 5}, "dim is 24 and norm_groups is 5"),
        ("mamba2", {"step_min": -1.0}, "step_min is -1.0; it must be at least 0"),
        ("mamba2", {"step_min": float("nan")}, "step_min is nan"),
        ("mamba2", {"step_min": 0.2, "step_max": 0.1}, "step_max is 0.1 and step_min 0.2"),
        ("hydra", {"conv_size": 4}, "conv_size is 4; it must be odd"),
        ("hydra", {"head_dim": 8, "groups": 2}, "heads is 3 and groups is 2"),
        ("mamba", {"heads": 5}, "inner is 24 and heads is 5"),
        ("mamba", {"select_norm": "rmss"}, "select_norm is 'rmss'; it must be one of rms"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, dim=DIM, **options)
