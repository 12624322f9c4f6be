"""What the tests of `cell_scan` share: the cells, and random arguments for them."""

import torch

from agreement import normal
from seriatim.ops.cell_scan import cell_scan
from seriatim.ops.cell_states import STATES

GATES = {"elman": 1, "lstm": 4, "gru": 3, "slstm": 4, "slstm_exp": 4}


def arguments(cell, seed, batch, time, heads, dim, dtype=torch.float64):
    """inputs, recurrent, bias and a state's leaves, such as a call could have returned."""
    gates = GATES[cell]
    tensors = [
        normal(seed, batch, time, gates, heads, dim, dtype=dtype),
        normal(seed + 1, gates, heads, dim, dim, dtype=dtype),
        normal(seed + 2, gates, heads, dim, dtype=dtype),
    ]
    fields = STATES[cell]._fields
    leaves = {field: normal(seed + 3 + i, batch, heads, dim, dtype=dtype) for i, field in enumerate(fields)}
    if "normaliser" in leaves:
        leaves["normaliser"] = leaves["normaliser"].detach().abs().add(1).requires_grad_()
    return tensors + list(leaves.values())


def call(cell, inputs, recurrent, bias, *leaves, **options):
    state = STATES[cell](*leaves) if leaves else None
    return cell_scan(cell, inputs, recurrent, bias, state=state, **options)
