"""mLSTM: gates of any size, and the official package where it is installed."""

import pytest
import torch

from seriatim import build, ops
from seriatim.core.errors import SeriatimError
from seriatim.mixers.linear_attention.mlstm import MatrixCellState, matrix_cell


def empty(batch: int, heads: int, dim: int) -> MatrixCellState:
    memory = torch.zeros(batch, heads, dim, dim + 1, dtype=torch.float64)
    return MatrixCellState(memory, torch.full((batch, heads), float("-inf"), dtype=torch.float64))


def inputs(time: int, size: float, forget: float = -0.1) -> list[torch.Tensor]:
    """q, k, v and the logarithms of the gates; `size` is the spread of the input gates."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, time, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    log_input = size * torch.randn(2, time, 2, generator=generator, dtype=torch.float64)
    log_forget = forget * torch.rand(2, time, 2, generator=generator, dtype=torch.float64)
    return [q, k, v, log_input, log_forget]


def unstabilised(q, k, v, log_input, log_forget):
    """The cell's three equations as they stand in the paper."""
    C, n, out = torch.zeros(2, 2, 4, 4).double(), torch.zeros(2, 2, 4).double(), []
    for t in range(q.size(1)):
        f, i, key = log_forget[:, t].exp(), log_input[:, t].exp(), k[:, t] / 2
        C = f[..., None, None] * C + i[..., None, None] * v[:, t, :, :, None] * key[..., None, :]
        n = f[..., None] * n + i[..., None] * key
        divisor = (n * q[:, t]).sum(-1).abs().clamp(min=1)
        out.append((C @ q[:, t, :, :, None]).squeeze(-1) / divisor[..., None])
    return torch.stack(out, 1)


@pytest.mark.parametrize(("size", "forget"), [(0.1, -0.1), (3, -2), (12, -0.01), (3, 0.5)])
def test_the_stabilised_cell_is_the_unstabilised_one(size, forget):
    given = inputs(50, size, forget)
    assert torch.allclose(matrix_cell(*given, empty(2, 2, 4))[0], unstabilised(*given), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("forget", [0.0, -1e4, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_extreme_gates_are_finite_in_values_and_gradients(size, forget, dtype, backend):
    given = [z.to(dtype).requires_grad_() for z in inputs(70, size, forget)]
    state = MatrixCellState(*(z.to(dtype) for z in empty(2, 2, 4)))
    with ops.backend(backend):
        h, state = matrix_cell(*given, state)
        again, _ = matrix_cell(*given, state)
        (h.square().mean() + again.square().mean()).backward()
    for z in (h, again, state.memory, state.stabiliser, *(z.grad for z in given)):
        assert z.isfinite().all()


def test_an_input_gate_that_is_shut_from_the_start_writes_nothing():
    q, k, v, log_input, log_forget = inputs(20, 1)
    log_input[:, :7] = float("-inf")
    for z in (log_input, log_forget):
        z.requires_grad_()
    h, _ = matrix_cell(q, k, v, log_input, log_forget, empty(2, 2, 4))
    h.sum().backward()
    assert (h[:, :7] == 0).all()
    later = matrix_cell(*(z[:, 7:] for z in (q, k, v, log_input, log_forget)), empty(2, 2, 4))
    assert torch.allclose(h[:, 7:], later[0])
    assert log_forget.grad.isfinite().all()
    assert log_input.grad.isfinite().all()


def test_nothing_grows_by_rounding():
    q, k, v, log_input, log_forget = (z.float() for z in inputs(200, 1.0))
    state = MatrixCellState(*(z.float() for z in empty(2, 2, 4)))
    _, state = matrix_cell(q, k, v, log_input, log_forget, state)
    state = state._replace(stabiliser=torch.full_like(state.stabiliser, 2.0**24))  # where float32 has steps of 2
    before, forget = state.memory.abs().max(), torch.full_like(log_input, 0.9)
    for t in range(200):
        h, state = matrix_cell(*(z[:, t : t + 1] for z in (q, k, v, log_input, forget)), state)
    assert h.isfinite().all()
    assert state.memory.abs().max() <= before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_the_official_layer(heads):
    pytest.importorskip("xlstm", reason="the peer: pip install 'seriatim[bench]'")
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig

    torch.manual_seed(0)
    peer = mLSTMLayer(mLSTMLayerConfig(embedding_dim=32, num_heads=heads, context_length=40)).double()
    m = build("mlstm", dim=32, heads=heads).double()
    cell = peer.mlstm_cell
    with torch.no_grad():
        for gate in (cell.igate, cell.fgate):
            gate.weight.normal_(std=0.3)
        cell.outnorm.weight.normal_(std=0.3)
        peer.learnable_skip.normal_()
        pairs = [
            (m.up.weight, peer.proj_up.weight), (m.down.weight, peer.proj_down.weight), (m.skip, peer.learnable_skip),
            (m.query, peer.q_proj.weight), (m.key, peer.k_proj.weight), (m.value, peer.v_proj.weight),
            (m.conv.weight, peer.conv1d.conv.weight.squeeze(1)), (m.conv.bias, peer.conv1d.conv.bias),
            (m.gates.weight, torch.cat([cell.igate.weight, cell.fgate.weight])),
            (m.gates.bias, torch.cat([cell.igate.bias, cell.fgate.bias])), (m.norm_weight, 1 + cell.outnorm.weight),
        ]  # fmt: skip
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            ours.copy_(theirs)
        x = torch.randn(2, 40, 32).double()
        found, wanted = m(x)[0], peer(x)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))  # theirs divides by 1e-6 more


def test_wrong_options_are_named():
    with pytest.raises(SeriatimError, match="forget_gate is 'tanh'"):
        build("mlstm", dim=8, forget_gate="tanh")
    with pytest.raises(SeriatimError, match="heads is 3; expand \\* dim = 16 must be a multiple of it"):
        build("mlstm", dim=8, heads=3)
