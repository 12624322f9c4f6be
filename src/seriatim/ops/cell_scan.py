"""Nonlinear recurrent cells with block-diagonal recurrent matrices: h_t = cell(x_t, u_t, h_{t-1}), u_t = U h_{t-1} + b.

Dimensions: B batch, T time, G gates, H heads (the blocks), D head dim.
"""

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_one_of
from seriatim.core.mixer import state_dtype
from seriatim.ops import cell_loop
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.precision import compute_dtype, full_precision

__all__ = ["CellState", "HiddenState", "LSTMState", "cell_scan", "init_cell_state"]


class HiddenState(NamedTuple):
    """What an Elman cell and a GRU carry."""

    hidden: Tensor  # (B, H, D)


class LSTMState(NamedTuple):
    """What an LSTM carries."""

    hidden: Tensor  # (B, H, D)
    cell: Tensor  # (B, H, D)


CellState: TypeAlias = HiddenState | LSTMState

_STATES: dict[str, type[HiddenState] | type[LSTMState]] = {"elman": HiddenState, "lstm": LSTMState, "gru": HiddenState}


def init_cell_state(cell: str, batch: int, heads: int, dim: int, like: Tensor) -> CellState:
    """Zeros, on the device of `like`, in its dtype or float32 where that is half precision."""
    check_one_of("cell", cell, _STATES)
    kind = _STATES[cell]
    return kind(*(like.new_zeros(batch, heads, dim, dtype=state_dtype(like.dtype)) for _ in kind._fields))


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

    Args:
        cell: "elman", "lstm" or "gru".
        inputs: (B, T, G, H, D), what the tokens alone say to each gate, biases included.
        recurrent: (G, H, D, D); u of gate g and head h is recurrent[g, h] @ h_{t-1}.
        bias: (G, H, D), added to u. Only the GRU's candidate tells it from a bias of the inputs.
        state: what an earlier call returned; None is zeros.
        reset: (B, T) bool, the state is zeros before this token.
        lengths: (B,) int, the state stops after lengths[b] tokens; the outputs of the padding are 0.

    Returns:
        h (B, T, H, D) in the dtype of inputs, and the state after the last token.

    Raises:
        SeriatimError: an argument has another value, shape or dtype than the above.
    """
    state = _checked(cell, inputs, recurrent, bias, state, reset, lengths)
    lengths = None if lengths is None else lengths.to(inputs.device, torch.int64)
    real = None if lengths is None else ragged.real_tokens(lengths, inputs.size(1))
    wide = inputs if real is None else ragged.mask(inputs, real)
    dtype = state.hidden.dtype
    with full_precision(inputs.device):
        out, state = choose({"reference": reference, "torch": _loop}, inputs)(
            cell,
            wide.to(dtype),
            recurrent.to(dtype),
            None if bias is None else bias.to(dtype),
            state=state,
            reset=reset,
            lengths=lengths,
        )
    return (out if real is None else ragged.mask(out, real)).to(inputs.dtype), state


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
    batch, time, _, heads, dim = inputs.shape
    state, out = state or init_cell_state(cell, batch, heads, dim, like=inputs), []
    for t in range(time):
        now = state
        if reset is not None:
            now = _STATES[cell](*(leaf.masked_fill(reset[:, t, None, None], 0) for leaf in state))
        u = torch.einsum("ghij,bhj->gbhi", recurrent, now.hidden)
        u = u if bias is None else u + bias.unsqueeze(1)
        now = _token(cell, inputs[:, t].unbind(1), u.unbind(0), now)
        out.append(now.hidden)
        goes_on = torch.ones(batch, 1, 1, dtype=torch.bool, device=inputs.device)
        if lengths is not None:
            goes_on = (t < lengths)[:, None, None]
        state = _STATES[cell](*(torch.where(goes_on, new, old) for new, old in zip(now, state, strict=True)))
    return torch.stack(out, 1) if out else inputs.new_zeros(batch, 0, heads, dim), state


def _token(cell: str, x: tuple[Tensor, ...], u: tuple[Tensor, ...], state: CellState) -> CellState:
    """One token of the reference; x and u hold one (B, H, D) a gate."""
    if isinstance(state, LSTMState):
        i, f, o = (torch.sigmoid(x[gate] + u[gate]) for gate in (0, 1, 3))
        memory = f * state.cell + i * torch.tanh(x[2] + u[2])
        return LSTMState(o * torch.tanh(memory), memory)
    if cell == "elman":
        return HiddenState(torch.tanh(x[0] + u[0]))
    r, z = torch.sigmoid(x[0] + u[0]), torch.sigmoid(x[1] + u[1])
    candidate = torch.tanh(x[2] + r * u[2])
    return HiddenState((1 - z) * candidate + z * state.hidden)


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
    x = inputs.permute(3, 1, 0, 2, 4).reshape(heads, time, batch, gates * dim)
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
    return out, _STATES[cell](*(leaf.transpose(0, 1).clone() for leaf in last))


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
    check_one_of("cell", cell, _STATES)
    kind, gates = _STATES[cell], cell_loop.CELLS[cell].gates
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
