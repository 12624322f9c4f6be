"""The matrices that mixers multiply their values by."""

import pytest
import torch
from torch import nn

from agreement import assert_close, resets
from seriatim.analysis.matrix import mixing_matrices, mixing_matrix, readings
from seriatim.core import linear
from seriatim.core.build import build
from seriatim.core.mixer import Mixer

DIM, TIME = 12, 9
CAUSAL = [
    {"mixer": "attention", "heads": 2},
    {"mixer": "attention", "heads": 6, "kv_heads": 2},
    {"mixer": "window", "heads": 2, "size": 4},
    {"mixer": "aaren", "heads": 2},
    {"mixer": "linear", "heads": 2},
    {"mixer": "linear", "heads": 2, "feature_map": "identity", "normalize": False},
    {"mixer": "based", "heads": 2, "query_dim": 4},
    {"mixer": "prefix_linear", "heads": 2, "feature_dim": 3},
    {"mixer": "retnet", "heads": 2},
    {"mixer": "gla", "heads": 2},
    {"mixer": "hgrn2", "heads": 2},
    {"mixer": "mlstm", "heads": 2},
    {"mixer": "plstm", "heads": 2},
    {"mixer": "lightnet", "heads": 2},
    {"mixer": "rwkv4"},
    {"mixer": "rwkv6", "heads": 2, "mix_rank": 3, "decay_rank": 3},
    {"mixer": "rwkv7", "heads": 2},
    {"mixer": "deltanet", "heads": 2},
    {"mixer": "gated_deltanet", "heads": 2},
    {"mixer": "mixture_of_memories", "heads": 2},
    {"mixer": "s4d", "state_size": 4},
    {"mixer": "mamba", "state_size": 4},
    {"mixer": "mamba", "state_size": 4, "heads": 3},
    {"mixer": "mamba2", "state_size": 4, "head_dim": 6, "groups": 2},
]
BOTH_SIDES = [
    {"mixer": "hydra", "state_size": 4, "head_dim": 6},
    {"mixer": "lightnet", "heads": 2, "causal": False},
]


def made(spec):
    """A mixer in float64 with all parameters moved, and tokens for it."""
    mixer = build(spec, dim=DIM).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer, torch.randn(2, TIME, DIM, dtype=torch.float64)


def times(matrix, values):
    """The matrix (B, H, T, T) or (B, E, T, T) times the values (B, T, H, V) or (B, T, E)."""
    if values.dim() == 3:
        return torch.einsum("bets,bse->bte", matrix, values)
    sharing = matrix.size(1) // values.size(2)
    return torch.einsum("bhts,bshv->bthv", matrix, values.repeat_interleave(sharing, 2))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("spec", CAUSAL + BOTH_SIDES, ids=str)
def test_the_matrix_times_the_values_is_what_the_mixer_read(spec, packed):
    mixer, x = made(spec)
    reset = resets(0, 2, TIME, 0.3) if packed else None
    matrix = mixing_matrix(mixer, x, reset=reset)
    (reading,) = readings(mixer, x, reset=reset)
    assert reading.read.abs().max() > 1e-2
    found = times(matrix, reading.values)
    assert_close([found], [reading.read.view_as(found)], 1e-9, "read")


@pytest.mark.parametrize("spec", CAUSAL, ids=str)
def test_a_causal_mixer_has_a_lower_triangle(spec):
    mixer, x = made(spec)
    matrix = mixing_matrix(mixer, x)
    assert matrix.triu(1).abs().max() == 0
    assert matrix.diagonal(dim1=-2, dim2=-1).abs().max() > 0


@pytest.mark.parametrize("spec", CAUSAL + BOTH_SIDES, ids=str)
def test_documents_are_blocks(spec):
    mixer, x = made(spec)
    reset = torch.zeros(2, TIME, dtype=torch.bool)
    reset[:, [0, 4]] = True
    matrix = mixing_matrix(mixer, x, reset=reset)
    assert matrix[..., 4:, :4].abs().max() == 0
    assert matrix[..., :4, 4:].abs().max() == 0
    assert_close([matrix[..., 4:, 4:]], [mixing_matrix(mixer, x[:, 4:])], 1e-9, "second document")


@pytest.mark.parametrize("spec", [CAUSAL[0], CAUSAL[1], CAUSAL[2]], ids=str)
def test_that_of_softmax_attention_is_a_mean(spec):
    mixer, x = made(spec)
    matrix = mixing_matrix(mixer, x)
    assert matrix.size(1) == mixer.heads
    assert matrix.min() >= 0
    assert_close([matrix.sum(-1)], [torch.ones(2, mixer.heads, TIME)], 1e-12, "sums of rows")


def test_that_of_hydra_is_quasiseparable():
    """Every block that keeps off the diagonal has at most the rank of the state; the diagonal is free."""
    mixer, x = made({"mixer": "hydra", "state_size": 2, "head_dim": 6})
    matrix = mixing_matrix(mixer, x)
    assert matrix.tril(-1).abs().max() > 1e-2
    assert matrix.triu(1).abs().max() > 1e-2
    for t in range(1, TIME):
        for block in (matrix[..., t:, :t], matrix[..., :t, t:]):
            assert (torch.linalg.matrix_rank(block, rtol=1e-9) <= 2).all()
    assert (torch.linalg.matrix_rank(matrix[..., 3:, :6], rtol=1e-9) > 2).any()


def test_that_of_mamba2_is_one_semiseparable_matrix_a_head():
    """C_i (product of decays) step_j B_j below the diagonal, with D on it: written out from the layer's own parts."""
    mixer, x = made({"mixer": "mamba2", "state_size": 4, "head_dim": 6})
    matrix, parts = mixing_matrix(mixer, x), mixer.in_proj(x).split([mixer.inner, mixer.conv.dim], -1)[1]
    _, B, C = nn.functional.silu(mixer.conv(parts)[0]).split([mixer.inner, 4, 4], -1)
    steps = mixer.decay.steps(x)
    rates = mixer.decay.A_log.exp()
    for h in range(mixer.heads):
        for i in range(TIME):
            for j in range(i + 1):
                faded = torch.exp(-rates[h] * steps[:, j + 1 : i + 1, h].sum(1))
                wanted = faded * steps[:, j, h] * (C[:, i] * B[:, j]).sum(-1) + (mixer.D[h] if i == j else 0)
                assert_close([matrix[:, h, i, j]], [wanted], 1e-9, f"entry {h, i, j}")


def test_a_stack_and_a_model_have_one_for_each_layer():
    layers = [{"mixer": "gla", "heads": 3}, "lstm", {"mixer": "attention", "heads": 2}]
    model = build("language_model", vocab_size=7, dim=DIM, layers=layers).double()
    tokens = torch.randint(7, (2, TIME))
    assert [tuple(matrix.shape) for matrix in mixing_matrices(model, tokens)] == [(2, 3, 9, 9), (2, 2, 9, 9)]
    with pytest.raises(ValueError, match="LanguageModel, which multiplies by 2 matrices; ask for mixing_matrices"):
        mixing_matrix(model, tokens)


@pytest.mark.parametrize("name", ["lstm", "gru", "elman"])
def test_a_mixer_that_is_not_linear_has_none(name):
    mixer, x = made({"mixer": name, "heads": 2})
    with pytest.raises(ValueError, match="which reads nothing linearly; attention, linear attention and state spaces"):
        mixing_matrix(mixer, x)


def test_several_values_a_token_are_refused():
    mixer, x = made({"mixer": "deltaproduct", "heads": 2, "householders": 3})
    with pytest.raises(ValueError, match="DeltaProduct, whose delta_scan has 27 values for 9 tokens"):
        mixing_matrix(mixer, x)
    with pytest.raises(ValueError, match="mixer is Linear; it must be a seriatim"):
        mixing_matrix(nn.Linear(3, 3), x)


class Faulty(Mixer):
    """Reads its values through a function that says it is linear and is not."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def init_state(self, batch):
        return ()

    def mix(self, x, state, reset, lengths):
        return self.read(x), ()

    @linear.linear_in("x", shared=False)
    def read(self, x):
        return x.cumsum(1).square()


def test_what_is_not_linear_shows():
    mixer, x = Faulty(DIM), torch.randn(2, TIME, DIM)
    (reading,) = readings(mixer, x)
    assert (times(mixing_matrix(mixer, x), reading.values) - reading.read).abs().max() > 1


def test_watching_changes_nothing_and_ends():
    mixer, x = made(CAUSAL[-1])
    x.requires_grad_()
    plain = mixer(x)[0]
    with linear.watch() as found:
        watched = mixer(x)[0]
    assert torch.equal(plain, watched)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (plain, watched)]
    assert_close(gradients[:1], gradients[1:], 1e-12, "gradient")
    mixer(x)
    assert [reading.name for reading in found] == ["scan"]
    with pytest.raises(RuntimeError, match="stop"), linear.watch():
        raise RuntimeError("stop")
    assert linear._watching == []
    with torch.no_grad():
        assert mixing_matrix(mixer, x).shape == (2, 4, TIME, TIME)
