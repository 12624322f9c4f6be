"""The matrix-mixer view: what a mixer does to its values, written out as the matrix that it is.

Softmax attention, linear attention, the delta rule and state spaces all read sums of values, weighted by what they make
of the other inputs. The weights are a matrix over time, whatever recurrence computes them. They are read out here as
the derivative of what is read with respect to the values.

Source: Hwang et al., 2024, arXiv:2407.09941, section 2; Ali et al., 2024, arXiv:2403.01590 (Mamba).

Dimensions: B batch, T time, H heads, E channels, D features in and out.
"""

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.core.linear import Reading, watch
from seriatim.core.mixer import Mixer

__all__ = ["mixing_matrices", "mixing_matrix", "readings"]


def mixing_matrix(mixer: Mixer, x: Tensor, *, reset: Tensor | None = None) -> Tensor:
    """The matrix M that the mixer multiplies its values by, in every head: read[t] = sum over s of M[t, s] values[s].

    The mixer's other inputs (queries, keys, gates, steps) are as x makes them, and it starts from no state. What the
    values and the read are is told by `readings`.

    Args:
        mixer: of which one function is linear in its values: attention, linear attention, state space.
        x: (B, T, D).
        reset: (B, T) bool, a new document begins at this token.

    Returns:
        M (B, H, T, T), whose last dimension is the tokens that are read; or (B, E, T, T) where each channel has its
        own, as in Mamba.

    Raises:
        SeriatimError: no function of the mixer is linear in its values, or several are.
    """
    found = mixing_matrices(mixer, x, reset=reset)
    if len(found) > 1:
        raise SeriatimError(
            f"mixer is a {type(mixer).__name__}, which multiplies by {len(found)} matrices; ask for mixing_matrices"
        )
    return found[0]


def mixing_matrices(mixer: Mixer, x: Tensor, *, reset: Tensor | None = None) -> list[Tensor]:
    """The same of every function that is linear, in the order of the calls: of the layers of a stack or a model too."""
    return [_matrix(reading) for reading in readings(mixer, x, reset=reset)]


def readings(mixer: Mixer, x: Tensor, *, reset: Tensor | None = None) -> list[Reading]:
    """Every call of a function that is linear in its values: what it was given, and what it read.

    Raises:
        SeriatimError: there is none, or not one value a token.
    """
    if not isinstance(mixer, Mixer):
        raise SeriatimError(f"mixer is {type(mixer).__name__}; it must be a seriatim.core.mixer.Mixer")
    with torch.enable_grad(), watch() as found:
        mixer(x, reset=reset)
    name = type(mixer).__name__
    if not found:
        raise SeriatimError(
            f"mixer is a {name}, which reads nothing linearly; "
            "attention, linear attention and state spaces have a matrix"
        )
    for reading in found:
        for tensor in (reading.values, reading.read):
            if tensor.shape[:2] != x.shape[:2]:
                raise SeriatimError(
                    f"mixer is a {name}, whose {reading.name} has {tensor.size(1)} values for {x.size(1)} tokens; "
                    "there must be one for each"
                )
    return found


@torch.enable_grad()
def _matrix(reading: Reading) -> Tensor:
    """The derivative of what is read, row by row: each gives what the sum over heads owes to every value."""
    values, read = reading.values, reading.read
    if reading.shared:  # one feature tells of all
        read, heads, own = read[..., 0], read.size(2), values.size(2)
    else:
        read, heads, own = read.flatten(2), read[0, 0].numel(), values[0, 0].numel()
    sharing = heads // own  # heads that read the same values: one at a time
    matrix = values.new_zeros(values.size(0), own, sharing, values.size(1), values.size(1))
    for turn in range(sharing):
        for t in range(values.size(1)):
            row = read[:, t].unflatten(1, (own, sharing))[:, :, turn].sum()
            (gradient,) = torch.autograd.grad(row, values, retain_graph=True, materialize_grads=True)
            gradient = gradient[..., 0] if reading.shared else gradient.flatten(2)
            matrix[:, :, turn, t] = gradient.mT
    return matrix.flatten(1, 2)
