"""Linear time-invariant state spaces: their views are one map."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build, spec
from seriatim.core.errors import SeriatimError

TIME = 100
MIXERS = [
    {"mixer": "s4d", "dim": 6, "state_size": 8},
    {"mixer": "s4d", "dim": 6, "state_size": 8, "init": "inv", "discretization": "bilinear"},
    {"mixer": "dss", "dim": 6, "state_size": 8},
    {"mixer": "dss", "dim": 6, "state_size": 8, "variant": "softmax", "length": 200},
    {"mixer": "gss", "dim": 6, "systems": 3, "inner": 10, "state_size": 8},
    {"mixer": "lssl", "dim": 6, "state_size": 7, "channels": 3},
    {"mixer": "lssl", "dim": 6, "state_size": 8, "discretization": "zoh"},
    {"mixer": "s4", "dim": 6, "state_size": 8},
    {"mixer": "s4", "dim": 6, "state_size": 8, "discretization": "zoh"},
]
OPTIONS = [
    ({"discretization": "euler"}, "discretization is 'euler'; it must be one of bilinear, zoh"),
    ({"step_max": float("inf")}, "step_max is inf; it must be a finite number above 0"),
    ({"step_min": float("nan")}, "step_min is nan; it must be a finite number above 0"),
    ({"step_min": 0.2}, "step_min is 0.2 and step_max is 0.1; step_min must not be the larger"),
    ({"rate": float("inf")}, "rate is inf; it must be a finite number above 0"),
    ({"rate": 0.0}, "rate is 0.0; it must be a finite number above 0"),
]


def named(options):
    return "-".join(str(value) for value in options.values())


def accepts(options, wanted):
    """Whether the mixer has options of these names."""
    return set(wanted) <= spec(build(options)).keys()


def refused():
    names = sorted({options["mixer"] for options in MIXERS})
    return [(name, *each) for name in names for each in OPTIONS if accepts({"mixer": name, "dim": 8}, each[0])]


def built(options):
    torch.manual_seed(0)
    return build(options).double()


@pytest.fixture(params=MIXERS, ids=named)
def mixer(request):
    return built(request.param)


def drive(mixer):
    return torch.randn(2, TIME, mixer.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_recurrence_convolution_and_dense_matrix_agree(mixer):
    x = drive(mixer)
    u, kernel = mixer.project(x), mixer.kernel(TIME)
    lag = torch.arange(TIME)[:, None] - torch.arange(TIME)
    dense = kernel[:, :, lag.clamp(min=0)].masked_fill(lag < 0, 0.0)
    y = mixer.readout(x, u, torch.einsum("gmts,bsg->btgm", dense, u))
    wanted = mixer(x)[0]
    assert_close([mixer.convolve(x), y], [wanted, wanted], 1e-9, "view")


def test_kernel_is_the_powers_of_the_transition(mixer):
    A, B, C = mixer.system()
    power, rows = B, []
    for _ in range(TIME):
        rows.append((C @ power.unsqueeze(2)).squeeze(2).real)
        power = A * power if A.dim() == 2 else (A @ power.unsqueeze(2)).squeeze(2)
    assert_close([mixer.kernel(TIME)], [torch.stack(rows, 2)], 1e-9, "kernel")


@pytest.mark.parametrize("options", [options for options in MIXERS if accepts(options, ["rate"])], ids=named)
def test_half_the_samples_at_twice_the_rate(options):
    """Continuous time: a slow signal, sampled half as often and read with steps twice as long, is answered alike."""
    mixer = built(options)
    with torch.no_grad():
        next(p for name, p in mixer.named_parameters() if name.endswith("log_step")).fill_(-6.0)
    time = torch.linspace(0, 1, 2001, dtype=torch.float64)
    x = torch.sin(3 * time)[None, :, None].expand(1, -1, mixer.dim)
    fine = mixer(x)[0][:, 1::2]
    mixer.rate *= 2
    coarse = mixer(x[:, 1::2])[0]
    assert (fine - coarse).abs().max() < 0.01 * fine.abs().max()


@torch.no_grad()
def test_steps_see_changed_parameters(mixer):
    """What is kept of the systems between steps is never stale, neither before nor in a program."""
    mixer, x = mixer.float(), drive(mixer)[:, :2].float()
    state = mixer(drive(mixer).float())[1]
    for change in (0.0, 0.1, 0.0, -0.2):
        for parameter in mixer.parameters():
            parameter.data.mul_(1 + change)
        whole, last = mixer(x, state)
        y, state_1 = mixer.step(x[:, 0], state)
        z, state_2 = mixer.step(x[:, 1], state_1)
        assert_close([y, z, state_2], [whole[:, 0], whole[:, 1], last], 1e-5, "step")


@pytest.mark.parametrize(("name", "options", "message"), refused())
def test_a_wrong_option_is_named(name, options, message):
    with pytest.raises(SeriatimError, match=message):
        build(name, dim=8, **options)


@pytest.mark.parametrize("name", ["dss", "gss", "s4", "s4d"])
def test_pairs_make_an_even_number(name):
    with pytest.raises(SeriatimError, match="state_size is 7; it must be even"):
        build(name, dim=8, state_size=7)


def test_the_state_of_another_mixer_is_refused(mixer):
    state = build("s4d", dim=6, state_size=12).double().init_state(2)
    with pytest.raises(SeriatimError, match="state has shape"):
        mixer(drive(mixer), state)
