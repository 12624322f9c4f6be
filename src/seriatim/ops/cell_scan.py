"""Nonlinear recurrent cells with block-diagonal recurrent matrices: h_t = cell(x_t, u_t, h_{t-1}), u_t = U h_{t-1} + b.

Dimensions: B batch, T time, G gates, H heads (the blocks), D head dim.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_one_of
from seriatim.kernels.cpu.cell_scan import cell_scan as compiled
from seriatim.ops import cell_loop
from seriatim.ops.backend import choose
from seriatim.ops.cell_states import STATES, CellState, HiddenState, LSTMState, SLSTMState, init_cell_state
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.precision import cast, compute_dtype, full_precision

__all__ = ["CellState", "HiddenState", "LSTMState", "SLSTMState", "cell_scan", "init_cell_state"]


def cell_scan(
    cell: str,
    inputs: Float[Tensor, "B T G H D"],
    recurrent: Float[Tensor, "G H D D"],
    bias: Float[Tensor, "G H D"] | None = None,
    *,
    state: CellState | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> tuple[Float[Tensor, "B T H D"], CellState]:
    r"""Runs a cell over time. With x the inputs and, for each gate, u = U h_{t-1} + b:

    elman (G = 1): :math:`h_t = \tanh(x + u)`.

    lstm (G = 4: i, f, g, o): :math:`c_t = \sigma(x_f + u_f) c_{t-1} + \sigma(x_i + u_i) \tanh(x_g + u_g)`,
    :math:`h_t = \sigma(x_o + u_o) \tanh(c_t)`.

    gru (G = 3: r, z, n): :math:`n = \tanh(x_n + \sigma(x_r + u_r) u_n)`, :math:`z = \sigma(x_z + u_z)`,
    :math:`h_t = (1 - z) n + z h_{t-1}`. The order of gates and the GRU's form are those of torch.nn.

    slstm (G = 4: i, f, z, o): with :math:`a_t = x_i + u_i` and :math:`g_t = \log\sigma(x_f + u_f)`, the logarithms of
    the input and the forget gate, :math:`m_t = \max(a_t, g_t + m_{t-1})`,
    :math:`c_t = e^{g_t + m_{t-1} - m_t} c_{t-1} + e^{a_t - m_t} \tanh(x_z + u_z)`,
    :math:`n_t = e^{g_t + m_{t-1} - m_t} n_{t-1} + e^{a_t - m_t}`, :math:`h_t = \sigma(x_o + u_o) c_t / n_t`.
    A feature that has read nothing (n = 0) begins with m = -inf, so that its first token is all it holds.

    slstm_exp: the same with an exponential forget gate, :math:`g_t = x_f + u_f`.

    Args:
        cell: "elman", "lstm", "gru", "slstm" or "slstm_exp".
        inputs: (B, T, G, H, D), what the tokens alone say to each gate, biases included.
        recurrent: (G, H, D, D); u of gate g and head h is recurrent[g, h] @ h_{t-1}.
        bias: (G, H, D), added to u. Only the GRU's candidate tells it from a bias of the inputs.
        state: what an earlier call returned; None is nothing read.
        reset: (B, T) bool, nothing was read before this token.
        lengths: (B,) int, the state stops after lengths[b] tokens; the outputs of the padding are 0.

    Returns:
        h (B, T, H, D) in the dtype of inputs, and the state after the last token.

    Raises:
        SeriatimError: an argument has another value, shape or dtype than the above.

    Source: sLSTM: Beck et al., 2024, arXiv:2405.04517; block-diagonal recurrence: FlashRNN, arXiv:2412.07752.
    """
    state = _checked(cell, inputs, recurrent, bias, state, reset, lengths)
    lengths = None if lengths is None else lengths.to(inputs.device, torch.int64)
    run = choose({"reference": reference, "torch": _loop, "cpu": compiled}, state.hidden)
    with full_precision(inputs.device):
        arguments = cast(state.hidden.dtype, inputs, recurrent, bias)
        out, state = run(cell, *arguments, state=state, reset=reset, lengths=lengths)
    return out.to(inputs.dtype), state


def reference(
    cell: str,
    inputs: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    *,
    state: CellState | None = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, CellState]:
    """The equations, token by token. Shapes as in :func:`cell_scan`."""
    inputs, (batch, time, _, heads, dim) = _real(inputs, lengths), inputs.shape
    empty = init_cell_state(cell, batch, heads, dim, like=inputs)
    state, out = state or empty, []
    for t in range(time):
        now = state
        if reset is not None:
            begins = reset[:, t, None, None]
            now = STATES[cell](*(torch.where(begins, new, old) for new, old in zip(empty, state, strict=True)))
        u = torch.einsum("ghij,bhj->gbhi", recurrent, now.hidden)
        u = u if bias is None else u + bias.unsqueeze(1)
        now = _token(cell, inputs[:, t].unbind(1), u.unbind(0), now)
        out.append(now.hidden)
        goes_on = torch.ones(batch, 1, 1, dtype=torch.bool, device=inputs.device)
        if lengths is not None:
            goes_on = (t < lengths)[:, None, None]
        state = STATES[cell](*(torch.where(goes_on, new, old) for new, old in zip(now, state, strict=True)))
    return _real(torch.stack(out, 1), lengths) if out else inputs.new_zeros(batch, 0, heads, dim), state


def _token(cell: str, x: tuple[Tensor, ...], u: tuple[Tensor, ...], state: CellState) -> CellState:
    """One token of the reference; x and u hold one (B, H, D) a gate."""
    if isinstance(state, SLSTMState):
        return _slstm_token(cell, x, u, state)
    if isinstance(state, LSTMState):
        i, f, o = (torch.sigmoid(x[gate] + u[gate]) for gate in (0, 1, 3))
        memory = f * state.cell + i * torch.tanh(x[2] + u[2])
        return LSTMState(o * torch.tanh(memory), memory)
    if cell == "elman":
        return HiddenState(torch.tanh(x[0] + u[0]))
    r, z = torch.sigmoid(x[0] + u[0]), torch.sigmoid(x[1] + u[1])
    candidate = torch.tanh(x[2] + r * u[2])
    return HiddenState((1 - z) * candidate + z * state.hidden)


def _slstm_token(cell: str, x: tuple[Tensor, ...], u: tuple[Tensor, ...], state: SLSTMState) -> SLSTMState:
    log_input, forget, z, o = (a + b for a, b in zip(x, u, strict=True))
    log_forget = torch.nn.functional.logsigmoid(forget) if cell == "slstm" else forget
    last = state.stabiliser.masked_fill(state.normaliser == 0, float("-inf"))
    stabiliser = torch.maximum(log_input, log_forget + last)
    # Nothing read and nothing to read, max(-inf, -inf), leaves nothing: never (-inf) - (-inf), never 0 / 0.
    finite = stabiliser.masked_fill(stabiliser == float("-inf"), 0)
    i, f = torch.exp(log_input - finite), torch.exp(log_forget + (last - finite))
    memory, normaliser = f * state.cell + i * torch.tanh(z), f * state.normaliser + i
    hidden = torch.sigmoid(o) * memory / normaliser.masked_fill(normaliser == 0, 1)
    return SLSTMState(hidden, memory, normaliser, stabiliser)


def _loop(
    cell: str,
    inputs: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    *,
    state: CellState,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, CellState]:
    """The same, with one batched product a step for all gates and heads."""
    batch, time, gates, heads, dim = inputs.shape
    if inputs.numel() == 0:
        return inputs.new_zeros(batch, time, heads, dim), state
    x = _real(inputs, lengths).permute(3, 1, 0, 2, 4).reshape(heads, time, batch, gates * dim)
    weight = recurrent.transpose(0, 1).reshape(heads, gates * dim, dim).transpose(1, 2)
    offset = None if bias is None else bias.transpose(0, 1).reshape(heads, 1, gates * dim)
    begins = None if reset is None else reset.unsqueeze(2)
    first = tuple(leaf.transpose(0, 1) for leaf in state)
    states = cell_loop.run(cell, x, weight, offset, begins, first)
    out = states[0][:, 1:].permute(2, 1, 0, 3).contiguous()
    if lengths is None:
        last = [leaf[:, -1] for leaf in states]
    else:
        index = lengths.view(1, 1, batch, 1).expand(heads, 1, batch, dim)
        last = [leaf.gather(1, index).squeeze(1) for leaf in states]
    # Cloned: a view would keep the states of all tokens in memory for as long as the last one lives.
    return _real(out, lengths), STATES[cell](*(leaf.transpose(0, 1).clone() for leaf in last))


def _real(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """The tokens (B, T, ...) with 0 for the padding, whatever stands there."""
    return tokens if lengths is None else ragged.mask(tokens, ragged.real_tokens(lengths, tokens.size(1)))


def _checked(
    cell: str,
    inputs: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    state: CellState | None,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> CellState:
    """The state to start from, in the dtype to compute in. Raises SeriatimError for arguments that do not fit."""
    check_one_of("cell", cell, STATES)
    kind, gates = STATES[cell], cell_loop.CELLS[cell].gates
    arguments: dict[str, tuple[Tensor | None, str]] = {
        "inputs": (inputs, "batch time gates heads dim"),
        "recurrent": (recurrent, "gates heads dim dim"),
        "bias": (bias, "gates heads dim?"),
    }
    if state is not None:
        if not isinstance(state, tuple) or len(state) != len(kind._fields):
            raise SeriatimError(f"state is a {type(state).__name__}; for cell {cell!r} it must be {kind.__name__}")
        names = (f"state.{field}" for field in kind._fields)
        arguments |= {name: (leaf, "batch heads dim") for name, leaf in zip(names, state, strict=True)}
    check_tensors(arguments)
    if inputs.size(2) != gates:
        raise SeriatimError(f"inputs has {inputs.size(2)} gates; for cell {cell!r} it must have {gates}")
    check_reset(reset, inputs)
    check_lengths(lengths, inputs)
    dtype = compute_dtype(inputs, recurrent, bias, *(state or ()))
    if state is None:
        return init_cell_state(
            cell, inputs.size(0), inputs.size(3), inputs.size(4), like=inputs.new_empty(0, dtype=dtype)
        )
    return kind(*(leaf.to(dtype) for leaf in state))
