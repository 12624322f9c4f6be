"""Kernels of cell_scan. A work item is some rows of the batch of one head, over all time, its weights in the cache.

Dimensions: B batch, T time, G gates, H heads, D head dim, S states of a cell. Slots, and what each cell computes:
cell_equations.py. The product of gate g goes to slot g, or to one more where the last gate takes it apart. Of an item,
`part` is (head, first row, rows, numbers from row to row); its arrays hold a number of each row of the item.
"""

from seriatim.kernels.cpu.source import cell_equations
from seriatim.kernels.cpu.source.cell_equations import EXTRAS, GRU
from seriatim.kernels.cpu.source.cell_pieces import add_row, clear, pack, product, read_row, whole_vectors, write_row
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats3,
    Floats4,
    Floats5,
    Index,
    Ints1,
    address,
    function,
    kernel,
)
from seriatim.kernels.cpu.source.simd import multiply

__all__ = ["backward", "forward", "packed"]


@kernel
def packed(item: Index, scratch: Address, recurrent: Floats4, transposed: Index, weights: Floats3):
    """recurrent (G, H, D, D) as the products read it: for u = R h if `transposed` is 1, else for its gradient.

    weights (H, G, ...). An item is a gate of a head.
    """
    gates, dim = recurrent.shape[0], recurrent.shape[2]
    h, g = item // gates, item % gates
    source, row, target = address(recurrent, g, h), recurrent.strides[2] // 4, address(weights, h, g)
    if transposed == 1:
        pack(dim, dim, source, 1, row, target)
    else:
        pack(dim, dim, source, row, 1, target)


@kernel
def forward(
    item: Index,
    scratch: Address,
    cell: Index,
    inputs: Floats5,
    weights: Floats3,
    bias: Floats3,
    first: Floats4,
    reset: Bools2,
    lengths: Ints1,
    most: Index,
    chunk: Index,
    out: Floats4,
    last: Floats4,
    kept: Floats4,
    borders: Floats4,
):
    """out (B, T, H, D), of padded tokens not written, and last (S, B, H, D). An item has `most` rows of the batch.

    For the backward pass the slots (H, T, slots, B * D) and the states before every chunk (H, chunks, S, B * D).
    scratch: (2 S + slots) * rows.
    """
    states, time, gates, dim = first.shape[0], inputs.shape[1], inputs.shape[2], inputs.shape[4]
    part = _part(item, inputs.shape[0], dim, most)
    h, begin, rows, wide = part
    n = rows * wide
    for r in range(rows):
        for s in range(states):
            read_row(address(first, s, begin + r, h), scratch + 4 * (s * n + r * wide), dim)
    _write_last(last, lengths, 0, time, part, scratch)
    for t in range(_steps(lengths, time, part)):
        before, after = scratch + 4 * n * states * (t % 2), scratch + 4 * n * states * (1 - t % 2)
        slots, far = scratch + 8 * n * states, 4 * n
        _forget(reset, t, states, before, part)
        if kept.shape[0] > 0:
            slots, far = address(kept, h, t, 0, begin * wide), kept.strides[2]
            for s in range(states if t % chunk == 0 else 0):
                read_row(before + 4 * s * n, address(borders, h, t // chunk, s, begin * wide), n)
        _fill(cell, inputs, bias, lengths, t, slots, far, part)
        for g in range(gates):
            product(rows, dim, dim, before, wide, address(weights, h, g), slots + far * _slot(cell, g), wide, 1)
        cell_equations.forward(cell, n, slots, far, before, before + 4 * n, after, after + 4 * n)
        for r in range(rows):
            if t < _length(lengths, begin + r, time):
                write_row(after + 4 * r * wide, address(out, begin + r, t, h), dim)
        _write_last(last, lengths, t + 1, time, part, after)


@kernel
def backward(
    item: Index,
    scratch: Address,
    cell: Index,
    grad_out: Floats4,
    grad_last: Floats4,
    weights: Floats3,
    kept: Floats4,
    borders: Floats4,
    out: Floats4,
    reset: Bools2,
    lengths: Ints1,
    most: Index,
    chunk: Index,
    grad_inputs: Floats5,
    grad_first: Floats4,
    grad_weights: Floats4,
    grad_bias: Floats3,
):
    """grad_inputs, of padded tokens not written, and grad_first.

    grad_weights (items, G, D, D) and grad_bias (items, G, ...): 0 at first, to which each item adds its part.
    scratch: (chunk (slots + S + extras) + 3 S) * rows.
    """
    states, time, dim = borders.shape[2], out.shape[1], out.shape[3]
    part = _part(item, out.shape[0], dim, most)
    h, begin, rows, wide = part
    size = 4 * rows * wide
    places = _places(scratch, size, chunk, kept.shape[2], states)
    grads, hidden, inner, extra, spare, carried = places
    clear(carried, states * rows * wide)
    steps = _steps(lengths, time, part)
    for index in range((steps + chunk - 1) // chunk - 1, -1, -1):
        start, stop = index * chunk, min(steps, index * chunk + chunk)
        _again(cell, kept, borders, out, reset, start, stop, chunk, places, part)
        for t in range(stop - 1, start - 1, -1):
            k = t - start
            _collect(grad_out, grad_last, lengths, t + 1, time, carried, dim, part)
            before = _before(reset, t, states - 1, inner + k * (states - 1) * size, spare, part)
            after = inner + (k + 1) * (states - 1) * size
            slots, here, extras = address(kept, h, t, 0, begin * wide), grads + k * size, extra + k * size * EXTRAS
            cell_equations.backward(
                cell, rows * wide, slots, kept.strides[2], extras, hidden + k * size, before, after, carried,
                carried + size, here, size * chunk,
            )  # fmt: skip
            _write_gradients(grad_inputs, lengths, t, here, size * chunk, part)
            for g in range(grad_inputs.shape[2]):
                keep = 1 if cell == GRU or g > 0 else 0
                source = here + _slot(cell, g) * size * chunk
                product(rows, dim, dim, source, wide, address(weights, h, g), carried, wide, keep)
            _forget(reset, t, states, carried, part)
        for g in range(grad_inputs.shape[2]):
            source = grads + _slot(cell, g) * size * chunk
            _add_products(grad_weights, grad_bias, item, g, (stop - start) * rows, hidden, source, wide)
    _collect(grad_out, grad_last, lengths, 0, time, carried, dim, part)
    for r in range(rows):
        for s in range(states):
            write_row(carried + s * size + 4 * r * wide, address(grad_first, s, begin + r, h), dim)


@function
def _part(item, batch, dim, most):
    """Of an item: the head, the first row of the batch, how many rows, and how many numbers apart these are."""
    blocks = (batch + most - 1) // most
    begin = item % blocks * most
    return item // blocks, begin, min(most, batch - begin), whole_vectors(dim)


@function
def _length(lengths, b, time):
    """How many tokens of row b are real."""
    return lengths[b] if lengths.shape[0] > 0 else time


@function
def _steps(lengths, time, part):
    """How many tokens the longest of the rows has."""
    _, begin, rows, _ = part
    steps = 0
    for r in range(rows):
        steps = max(steps, _length(lengths, begin + r, time))
    return steps


@function
def _slot(cell, g):
    """The slot to which the product of gate g belongs."""
    return g + 1 if cell == GRU and g == 2 else g


@function
def _fill(cell, inputs, bias, lengths, t, slots, far, part):
    """What stands in the slots before the products are added: tokens, 0 for those of the padding, and bias."""
    h, begin, rows, wide = part
    gates, dim = inputs.shape[2], inputs.shape[4]
    for r in range(rows):
        here = slots + 4 * r * wide
        real = t < _length(lengths, begin + r, inputs.shape[1])
        for g in range(gates):
            if real:
                read_row(address(inputs, begin + r, t, g, h), here + g * far, dim)
            else:
                clear(here + g * far, dim)
        if cell == GRU:
            clear(here + gates * far, dim)
        for g in range(bias.shape[0]):
            add_row(address(bias, g, h), here + _slot(cell, g) * far, dim)


@function
def _write_last(last, lengths, read, time, part, place):
    """The states at `place`, for the rows that have no more than the `read` tokens behind them."""
    h, begin, rows, wide = part
    for r in range(rows):
        if _length(lengths, begin + r, time) == read:
            for s in range(last.shape[0]):
                write_row(place + 4 * wide * (s * rows + r), address(last, s, begin + r, h), last.shape[3])


@function
def _forget(reset, t, arrays, place, part):
    """Zeros for the rows that begin at token t, in so many arrays."""
    _, begin, rows, wide = part
    if reset.shape[0] > 0:
        for r in range(rows):
            if reset[begin + r, t]:
                for s in range(arrays):
                    clear(place + 4 * wide * (s * rows + r), wide)


@function
def _before(reset, t, arrays, place, spare, part):
    """Where the states are from which token t goes on: at `place`, or at `spare` without the rows that begin there."""
    _, begin, rows, wide = part
    begins = False
    if reset.shape[0] > 0:
        for r in range(rows):
            begins = begins or reset[begin + r, t]
    if not begins:
        return place
    read_row(place, spare, arrays * rows * wide)
    _forget(reset, t, arrays, spare, part)
    return spare


@function
def _places(scratch, size, chunk, slots, states):
    """Where the backward pass has what it works with.

    Of every token of a chunk the gradients of the slots, the hidden state before it, the other states before it (one
    token more) and extras; other states of one token; the gradients of all states.
    """
    hidden = scratch + size * chunk * slots
    inner = hidden + size * chunk
    extra = inner + size * (states - 1) * (chunk + 1)
    spare = extra + size * chunk * EXTRAS
    return scratch, hidden, inner, extra, spare, spare + size * (states - 1)


@function
def _again(cell, kept, borders, out, reset, start, stop, chunk, places, part):
    """The states of tokens start to stop (exclusive), and the hidden states from which they went on."""
    _, hidden, inner, extra, spare, _ = places
    h, begin, rows, wide = part
    states, n = borders.shape[2], rows * wide
    size, others = 4 * n, 4 * n * (states - 1)
    read_row(address(borders, h, start // chunk, 0, begin * wide), hidden, n)
    for s in range(1, states):
        read_row(address(borders, h, start // chunk, s, begin * wide), inner + (s - 1) * size, n)
    for t in range(start, stop):
        k = t - start
        for r in range(rows if k > 0 else 0):
            read_row(address(out, begin + r, t - 1, h), hidden + k * size + 4 * r * wide, out.shape[3])
        _forget(reset, t, 1, hidden + k * size, part)
        before = _before(reset, t, states - 1, inner + k * others, spare, part)
        slots, after = address(kept, h, t, 0, begin * wide), inner + (k + 1) * others
        cell_equations.again(cell, n, slots, kept.strides[2], before, after, extra + k * size * EXTRAS)


@function
def _collect(grad_out, grad_last, lengths, read, time, carried, dim, part):
    """Adds the gradients of what the caller saw of the state after `read` tokens to the carried ones."""
    h, begin, rows, wide = part
    for r in range(rows):
        here, length = carried + 4 * r * wide, _length(lengths, begin + r, time)
        if 0 < read <= length and grad_out.shape[0] > 0:
            add_row(address(grad_out, begin + r, read - 1, h), here, dim)
        if read == length:
            for s in range(grad_last.shape[0]):
                add_row(address(grad_last, s, begin + r, h), here + 4 * s * rows * wide, dim)


@function
def _write_gradients(grad_inputs, lengths, t, slots, step, part):
    """The gradients of the tokens' parts, from those of the slots, `step` apart."""
    h, begin, rows, wide = part
    for r in range(rows):
        if t < _length(lengths, begin + r, grad_inputs.shape[1]):
            for g in range(grad_inputs.shape[2]):
                target = address(grad_inputs, begin + r, t, g, h)
                write_row(slots + g * step + 4 * r * wide, target, grad_inputs.shape[4])


@function
def _add_products(grad_weights, grad_bias, item, g, tokens, hidden, grads, wide):
    """What so many tokens, of all rows, add to the gradients of the matrix and the bias of gate g."""
    dim, target, row = grad_weights.shape[2], address(grad_weights, item, g), grad_weights.strides[2] // 4
    multiply(dim, dim, tokens, grads, 1, wide, hidden, wide, target, row, 1)
    if grad_bias.shape[0] > 0:
        while tokens > 1:  # by halves, so that rounding does not grow with time
            half = (tokens + 1) // 2
            add_row(grads + 4 * half * wide, grads, (tokens - half) * wide)
            tokens = half
        add_row(grads, address(grad_bias, item, g), wide)
