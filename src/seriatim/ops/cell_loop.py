"""The torch path of `cell_scan`: a loop over time whose backward pass is written by hand.

Autograd would form the gradient of the recurrent matrix at every step and add it up; here it is one product over time.

One step of a cell is a pair of functions. `advance(x, before, weight, bias)` returns the states after it and what must
be kept. `retreat(after, before, kept, grads)` returns the gradients of x, of the recurrent product, of the hidden state
before (what does not pass through that product) and of the other states before.

Dimensions: H heads, T time, B batch, D head dim, G gates. x (H, B, G*D), states (H, B, D), weight (H, D, G*D).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core.errors import SeriatimError

__all__ = ["CELLS", "Cell", "run"]

States: TypeAlias = tuple[Tensor, ...]
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor | None, States]

_sigmoid_backward = torch.ops.aten.sigmoid_backward
_tanh_backward = torch.ops.aten.tanh_backward


class Cell(NamedTuple):
    gates: int
    states: int
    advance: Callable[[Tensor, States, Tensor, Tensor | None], tuple[States, States]]
    retreat: Callable[[States, States, States, States], Gradients]


def _advance_elman(x: Tensor, before: States, weight: Tensor, bias: Tensor | None) -> tuple[States, States]:
    return (_product(x, bias, before[0], weight).tanh(),), ()


def _retreat_elman(after: States, before: States, kept: States, grads: States) -> Gradients:
    d = _tanh_backward(grads[0], after[0])
    return d, d, None, ()


def _advance_lstm(x: Tensor, before: States, weight: Tensor, bias: Tensor | None) -> tuple[States, States]:
    i, f, g, o = _product(x, bias, before[0], weight).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cell = torch.addcmul(f * before[1], i, g)
    return (o * cell.tanh(), cell), (i, f, g, o)


def _retreat_lstm(after: States, before: States, kept: States, grads: States) -> Gradients:
    i, f, g, o = kept
    shown = after[1].tanh()
    d_hidden, d_cell = grads
    d_cell = d_cell + _tanh_backward(d_hidden * o, shown)
    d_i, d_f = _sigmoid_backward(d_cell * g, i), _sigmoid_backward(d_cell * before[1], f)
    d_g, d_o = _tanh_backward(d_cell * i, g), _sigmoid_backward(d_hidden * shown, o)
    d = torch.cat([d_i, d_f, d_g, d_o], -1)
    return d, d, None, (d_cell * f,)


def _advance_gru(x: Tensor, before: States, weight: Tensor, bias: Tensor | None) -> tuple[States, States]:
    dim = before[0].size(-1)
    x_gates, x_new = x.split([2 * dim, dim], -1)
    u_gates, u_new = _product(None, bias, before[0], weight).split([2 * dim, dim], -1)
    gates = (x_gates + u_gates).sigmoid()
    r, z = gates.chunk(2, -1)
    new = torch.addcmul(x_new, r, u_new).tanh()
    return (torch.lerp(new, before[0], z),), (gates, new, u_new)


def _retreat_gru(after: States, before: States, kept: States, grads: States) -> Gradients:
    gates, new, u_new = kept
    r, z = gates.chunk(2, -1)
    through = grads[0] * z
    d_new = _tanh_backward(grads[0] - through, new)
    d_gates = _sigmoid_backward(torch.cat([d_new * u_new, grads[0] * (before[0] - new)], -1), gates)
    return torch.cat([d_gates, d_new], -1), torch.cat([d_gates, d_new * r], -1), through, ()


def _advance_slstm(
    log_gate: Callable[[Tensor], Tensor], x: Tensor, before: States, weight: Tensor, bias: Tensor | None
) -> tuple[States, States]:
    log_input, f, z, o = _product(x, bias, before[0], weight).chunk(4, -1)
    z, o, log_forget = z.tanh(), o.sigmoid(), log_gate(f)
    last = before[3].masked_fill(before[2] == 0, float("-inf"))
    log_kept = log_forget + last
    stabiliser = torch.maximum(log_input, log_kept)
    finite = stabiliser.clamp(min=torch.finfo(x.dtype).min)  # never (-inf) - (-inf)
    # The stabiliser is taken off the last one first, so that what rounding took from their sum is not lost.
    i, forget = (log_input - finite).exp(), (log_forget + (last - finite)).exp()
    cell, normaliser = torch.addcmul(forget * before[1], i, z), torch.addcmul(i, forget, before[2])
    hidden = o * cell / _not_zero(normaliser)
    # Which of the two the maximum was; as autograd has it, both by half where they are equal.
    newest = (log_input > log_kept) + 0.5 * (log_input == log_kept)
    return (hidden, cell, normaliser, stabiliser), (i, f, forget, z, o, newest)


def _retreat_slstm(
    log_gate_slope: Callable[[Tensor, Tensor], Tensor], after: States, before: States, kept: States, grads: States
) -> Gradients:
    i, f, forget, z, o, newest = kept
    d_hidden, d_cell, d_normaliser, d_stabiliser = grads
    divisor = _not_zero(after[2])
    mean = after[1] / divisor
    shown = d_hidden * o / divisor
    d_cell, d_normaliser = d_cell + shown, torch.addcmul(d_normaliser, shown, mean, value=-1)
    d_input = i * torch.addcmul(d_normaliser, d_cell, z)
    d_kept = forget * torch.addcmul(d_cell * before[1], d_normaliser, before[2])
    # 0 where the gradients come from outputs alone: no output depends on the stabiliser.
    gauge = d_stabiliser - d_input - d_kept
    newest_gauge = gauge * newest
    d_kept = d_kept + (gauge - newest_gauge)
    d_z, d_o = _tanh_backward(d_cell * i, z), _sigmoid_backward(d_hidden * mean, o)
    d = torch.cat([d_input + newest_gauge, log_gate_slope(d_kept, f), d_z, d_o], -1)
    return d, d, None, (d_cell * forget, d_normaliser * forget, d_kept.masked_fill(before[2] == 0, 0))


def _not_zero(normaliser: Tensor) -> Tensor:
    """1 where nothing was read: there the cell is 0, and 0 / 1 is what is shown."""
    return normaliser.masked_fill(normaliser == 0, 1)


def _product(x: Tensor | None, bias: Tensor | None, hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden @ weight + bias + x. bias (H, 1, G*D)."""
    added = x if bias is None else bias if x is None else x + bias
    return torch.bmm(hidden, weight) if added is None else torch.baddbmm(added, hidden, weight)


CELLS = {
    "elman": Cell(1, 1, _advance_elman, _retreat_elman),
    "lstm": Cell(4, 2, _advance_lstm, _retreat_lstm),
    "gru": Cell(3, 1, _advance_gru, _retreat_gru),
    "slstm": Cell(
        4,
        4,
        partial(_advance_slstm, F.logsigmoid),
        partial(_retreat_slstm, lambda d, f: d * (-f).sigmoid()),
    ),
    "slstm_exp": Cell(4, 4, partial(_advance_slstm, lambda f: f), partial(_retreat_slstm, lambda d, f: d)),
}


def run(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, begins: Tensor | None, first: States) -> States:
    """Every state from `first` on, each (H, T + 1, B, D). x (H, T, B, G*D), bias (H, 1, G*D), begins (B, T, 1) bool."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # the compiler differentiates the loop itself
        return _forward(name, x, weight, bias, begins, first, keep=False)[0]
    found: States = _Loop.apply(name, x, weight, bias, begins, *first)
    return found


def _forward(
    name: str, x: Tensor, weight: Tensor, bias: Tensor | None, begins: Tensor | None, first: States, keep: bool
) -> tuple[States, list[Tensor]]:
    """All states and, where asked to, what all steps keep for the backward pass, one after another."""
    state, history = first, [first]
    kept: list[Tensor] = []
    for t, token in enumerate(x.unbind(1)):
        state, of_step = CELLS[name].advance(token, _forget(state, begins, t), weight, bias)
        history.append(state)
        if keep:
            kept += of_step
    return tuple(torch.stack(states, 1) for states in zip(*history, strict=True)), kept


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, begins: Tensor | None, *first: Tensor
    ) -> States:
        states, kept = _forward(name, x, weight, bias, begins, first, keep=True)
        ctx.name, ctx.with_bias = name, bias is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, begins, *states, *kept)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SeriatimError("cell_scan cannot be differentiated twice; ops.backend('reference') can")
        cell = CELLS[ctx.name]
        weight, begins, *rest = ctx.saved_tensors
        states, kept = rest[: cell.states], rest[cell.states :]
        time = states[0].size(1) - 1
        each, transposed = len(kept) // time, weight.transpose(1, 2)
        carried: States = tuple(torch.zeros_like(leaf[:, 0]) for leaf in states)
        d_inputs, d_products = [], []
        for t in reversed(range(time)):
            carried = _add(carried, grads, t + 1)
            before = _forget(tuple(leaf[:, t] for leaf in states), begins, t)
            after = tuple(leaf[:, t + 1] for leaf in states)
            d_x, d_product, direct, others = cell.retreat(after, before, kept[each * t : each * (t + 1)], carried)
            carried = _forget((_product(direct, None, d_product, transposed), *others), begins, t)
            d_inputs.append(d_x)
            d_products.append(d_product)
        d_x = torch.stack(d_inputs[::-1], 1)
        d_product = d_x if d_inputs[0] is d_products[0] else torch.stack(d_products[::-1], 1)
        before = states[0][:, :-1]
        if begins is not None:
            before = before.masked_fill(begins.transpose(0, 1), 0)
        d_weight = before.flatten(1, 2).transpose(1, 2) @ d_product.flatten(1, 2)
        d_bias = d_product.sum((1, 2)).unsqueeze(1) if ctx.with_bias else None
        return None, d_x, d_weight, d_bias, None, *_add(carried, grads, 0)


def _forget(state: States, begins: Tensor | None, t: int) -> States:
    return state if begins is None else tuple(leaf.masked_fill(begins[:, t], 0) for leaf in state)


def _add(carried: States, grads: tuple[Tensor | None, ...], t: int) -> States:
    return tuple(a if g is None else a + g[:, t] for a, g in zip(carried, grads, strict=True))
