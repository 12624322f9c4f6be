"""What the cells of `cell_scan` carry from one token to the next. Dimensions: B batch, H heads, D head dim."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from seriatim.core.errors import check_one_of
from seriatim.core.mixer import state_dtype

__all__ = ["STATES", "CellState", "HiddenState", "LSTMState", "SLSTMState", "init_cell_state"]


class HiddenState(NamedTuple):
    """What an Elman cell and a GRU carry."""

    hidden: Tensor  # (B, H, D)


class LSTMState(NamedTuple):
    """What an LSTM carries."""

    hidden: Tensor  # (B, H, D)
    cell: Tensor  # (B, H, D)


class SLSTMState(NamedTuple):
    """What an sLSTM carries. The stabiliser is a gauge: e^stabiliser times the cell and the normaliser is what counts.

    A feature whose normaliser is 0 has read nothing, whatever its stabiliser says.
    """

    hidden: Tensor  # (B, H, D)
    cell: Tensor  # (B, H, D)
    normaliser: Tensor  # (B, H, D)
    stabiliser: Tensor  # (B, H, D), -inf before anything was read


CellState: TypeAlias = HiddenState | LSTMState | SLSTMState

STATES: dict[str, type[HiddenState] | type[LSTMState] | type[SLSTMState]] = {
    "elman": HiddenState,
    "lstm": LSTMState,
    "gru": HiddenState,
    "slstm": SLSTMState,
    "slstm_exp": SLSTMState,
}


def init_cell_state(cell: str, batch: int, heads: int, dim: int, like: Tensor) -> CellState:
    """The state before anything was read, on the device of `like`, in its dtype or float32 where that is half."""
    check_one_of("cell", cell, STATES)
    kind, empty = STATES[cell], {"stabiliser": float("-inf")}
    return kind(
        *(
            torch.full((batch, heads, dim), empty.get(field, 0.0), dtype=state_dtype(like.dtype), device=like.device)
            for field in kind._fields
        )
    )
