"""LRU and S5, one system for all features: their views are one map, and they begin as their papers say."""

import math

import pytest
import torch
import torch.nn.functional as F

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError

TIME = 100
MIXERS = [
    {"mixer": "lru", "dim": 6, "state_size": 10},
    {"mixer": "s5", "dim": 6, "state_size": 8, "blocks": 2},
    {"mixer": "s5", "dim": 6, "conj_sym": False, "discretization": "bilinear"},
]


@pytest.fixture(params=MIXERS, ids=lambda spec: "-".join(str(value) for value in spec.values()))
def mixer(request):
    torch.manual_seed(0)
    return build(request.param).double()


def drive(mixer, time=TIME):
    return torch.randn(2, time, mixer.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_recurrence_convolution_and_dense_matrix_agree(mixer):
    x, kernel = drive(mixer), mixer.kernel(TIME)
    lag = torch.arange(TIME)[:, None] - torch.arange(TIME)
    dense = kernel[:, :, lag.clamp(min=0)].masked_fill(lag < 0, 0.0)
    y = mixer.readout(torch.einsum("oits,bsi->bto", dense, x) + mixer.D * x)
    wanted = mixer(x)[0]
    assert_close([mixer.convolve(x), y], [wanted, wanted], 1e-9, "view")


def test_the_kernel_is_the_powers_of_the_transition(mixer):
    A, B, C = mixer.system()
    power, rows = B, []
    for _ in range(TIME):
        rows.append((C @ power).real)
        power = A.unsqueeze(1) * power
    assert_close([mixer.kernel(TIME)], [torch.stack(rows, 2)], 1e-9, "kernel")


def test_a_pair_kept_whole_is_a_pair_of_which_one_is_kept():
    torch.manual_seed(0)
    half = build("s5", dim=6, state_size=8, blocks=2).double()
    whole = build("s5", dim=6, state_size=8, blocks=2, conj_sym=False).double()
    conjugate = torch.tensor([1.0, -1.0], dtype=torch.float64)
    weights = half.state_dict()
    weights |= {name: weights[name].repeat(2) for name in ("real", "log_step")}
    weights["imaginary"] = torch.cat([half.imaginary, -half.imaginary])
    weights["B"] = torch.cat([half.B, half.B * conjugate])
    weights["C"] = torch.cat([half.C, half.C * conjugate], 1)
    whole.load_state_dict(weights)
    x = drive(half)
    assert_close([whole(x)[0]], [half(x)[0]], 1e-12, "value")


def test_lru_begins_on_its_ring():
    """Lemma 3.2: uniform by area between the radii; the phases uniform; gamma makes up for what the past adds."""
    torch.manual_seed(0)
    mixer = build("lru", dim=2, state_size=20000, r_min=0.5, r_max=0.9, max_phase=1.0).double()
    A, B, _ = mixer.system()
    area = (A.abs() ** 2 - 0.25) / (0.81 - 0.25)
    for share in (area, A.angle()):
        assert 0 < share.min() < 1e-3
        assert 1 - 1e-3 < share.max() < 1
        assert abs(share.mean() - 0.5) < 0.01
        assert abs(share.var() - 1 / 12) < 0.002
    scale = (B.abs() ** 2).sum(1) / mixer.B.square().sum((1, 2))
    assert_close([scale], [1 - A.abs() ** 2], 1e-5, "gamma")
    assert abs(mixer.B.square().sum(2).mean() - 1 / mixer.dim) < 0.02
    assert abs(mixer.C.square().sum(2).mean() - 2 / mixer.states) < 0.02 * 2 / mixer.states


def test_lru_keeps_the_size_of_white_noise():
    torch.manual_seed(0)
    mixer = build("lru", dim=16, state_size=64, r_min=0.8, r_max=0.99).double()
    _, state = mixer(torch.randn(100, 500, 16, dtype=torch.float64))
    assert abs(state.square().sum(2).mean() - 1) < 0.1


def test_lru_is_stable_whatever_is_learned():
    mixer = build("lru", dim=4)
    with torch.no_grad():
        for parameter in (mixer.nu, mixer.theta):
            parameter.normal_(std=30)
    assert (mixer.system().A.abs() <= 1).all()


@pytest.mark.parametrize("blocks", [1, 3])
def test_s5_begins_with_blocks_of_hippo(blocks):
    """Its B and C in the basis of the eigenvectors are real and of the variances of the official code."""
    torch.manual_seed(0)
    size, dim = 12, 4000
    mixer = build("s5", dim=dim, state_size=size, blocks=blocks).double()
    n = torch.arange(size // blocks, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    normal = -0.5 * root[:, None] * root
    normal = normal.tril(-1) - normal.triu(1) - 0.5 * torch.eye(size // blocks, dtype=torch.float64)
    wanted = torch.block_diag(*[normal] * blocks)
    found = torch.complex(mixer.real, mixer.imaginary)
    for eigenvalue in found:
        assert torch.linalg.svdvals(wanted - eigenvalue * torch.eye(size))[-1] < 1e-5
    assert (found.imag > 0).all()
    step = mixer.log_step.exp()
    assert 1e-3 <= step.min() <= step.max() <= 0.1
    B, C = mixer.B.square().sum(2), mixer.C.square().sum(2)  # V is unitary: it keeps the variance
    assert abs(B.mean() * size - 1) < 0.05
    assert abs(C.mean() * size - 2) < 0.05


def test_clipped_eigenvalues_keep_a_long_sequence_finite():
    torch.manual_seed(0)
    for clip in (False, True):
        mixer = build("s5", dim=4, state_size=4, clip_eigenvalues=clip)
        with torch.no_grad():
            mixer.real.fill_(5.0)
        y = mixer(torch.randn(1, 2000, 4))[0]
        assert y.isfinite().all() == clip


def test_an_episode_in_the_middle_of_the_scan_begins_anew():
    """arXiv:2303.03982, section 4: the scan itself forgets."""
    torch.manual_seed(0)
    mixer = build("s5", dim=6, state_size=8).double()
    x, reset = drive(mixer), torch.zeros(2, TIME, dtype=torch.bool)
    reset[:, [0, 37, 38]] = True
    y = mixer(x, torch.ones_like(mixer.init_state(2)), reset=reset)[0]
    wanted = torch.cat([mixer(part)[0] for part in x.split([37, 1, TIME - 38], 1)], 1)
    assert_close([y], [wanted], 1e-12, "value")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lru", {"r_min": 0.9, "r_max": 0.5}, "r_min is 0.9 and r_max is 0.5"),
        ("lru", {"r_min": "none"}, "r_min is 'none'; it must be a finite number"),
        ("lru", {"r_max": 1.5}, "r_min is 0.0 and r_max is 1.5"),
        ("lru", {"max_phase": 0.0}, "max_phase is 0.0; it must be a finite number above 0"),
        ("lru", {"state_size": 0}, "state_size is 0; it must be a whole number"),
        ("s5", {"state_size": 7}, "state_size / blocks must be even"),
        ("s5", {"state_size": 12, "blocks": 5}, "state_size is 12 and blocks is 5; state_size must be a multiple"),
        ("s5", {"discretization": "euler"}, "discretization is 'euler'"),
        ("s5", {"activation": "relu"}, "activation is 'relu'; it must be one of"),
        ("s5", {"c_init": "zeros"}, "c_init is 'zeros'; it must be one of"),
        ("s5", {"step_min": 0.0}, "step_min is 0.0; it must be a finite number above 0"),
        ("s5", {"step_max": math.nan}, "step_max is nan; it must be a finite number above 0"),
        ("s5", {"conj_sym": "no"}, "conj_sym is 'no'; it must be True or False"),
        ("s5", {"rate": -1.0}, "rate is -1.0; it must be a finite number above 0"),
    ],
)
def test_a_wrong_option_is_named(name, options, message):
    with pytest.raises(SeriatimError, match=message):
        build(name, dim=6, **options)


def test_the_state_of_another_mixer_is_refused(mixer):
    state = build("s5", dim=6, state_size=24).double().init_state(2)
    with pytest.raises(SeriatimError, match="state has shape"):
        mixer(drive(mixer), state)


@pytest.mark.parametrize("time", [1, 20, 150])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s5_equals_s5_pytorch(time):
    peer = pytest.importorskip("s5", reason="the extra `bench` is not installed")
    torch.manual_seed(0)
    theirs = peer.S5(12, 16, bcInit="dense")
    ours = build("s5", dim=12, state_size=16, conj_sym=False, activation="gelu")
    weights = theirs.seq
    ours.load_state_dict(
        {
            "log_step": weights.log_step,
            "real": weights.Lambda.real,
            "imaginary": weights.Lambda.imag,
            "B": weights.B,
            "C": torch.view_as_real(weights.C),
            "D": weights.D,
        }
    )
    x, cotangent = torch.randn(2, time, 12, requires_grad=True), torch.randn(2, time, 12)
    found, wanted = ours(x)[0], F.gelu(theirs(x))
    assert wanted.abs().mean() > 0.1
    assert_close([found], [wanted], 2e-5, "value")
    ours_x, peer_x = (torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted))
    assert_close([ours_x], [peer_x], 2e-4, "gradient")
