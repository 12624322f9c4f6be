"""The family of matrix memories, written by outer products and faded by gates."""

from abc import abstractmethod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.mixer import Mixer

__all__ = ["MatrixInputs", "MatrixMixer", "normalised", "read_memory", "with_ones"]

SMALL = 1e-6  # beside a sum of weights


class MatrixInputs(NamedTuple):
    """What a token does to the memory. log_decay: None, or one rate a head (B, T, H), or one a key feature."""

    q: Tensor  # (B, T, H, K)
    k: Tensor  # (B, T, H, K)
    v: Tensor  # (B, T, H, V)
    log_decay: Tensor | None = None


class MatrixMixer(Mixer):
    """A memory S of shape (key_dim, value_dim) for each head: :func:`seriatim.ops.matrix_scan`.

    A method sets `heads`, `key_dim`, `value_dim` and writes `project` and `readout`; the scan, resets and padding are
    done here.
    """

    heads: int
    key_dim: int
    value_dim: int

    @abstractmethod
    def project(self, x: Tensor) -> MatrixInputs:
        """Queries, keys, values and gates of the tokens x (B, T, dim)."""

    @abstractmethod
    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        """The output (B, T, dim) from what the memory answered, o (B, T, H, V)."""

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.heads, self.key_dim, self.value_dim)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        o, state = read_memory(self.project(x), state, reset, lengths)
        return self.readout(x, o), state


def read_memory(
    inputs: MatrixInputs, state: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the memory answers, o (B, T, H, V), and the memory after the segment, (B, H, K, V)."""
    q, k, v, log_decay = inputs
    if lengths is not None:  # a padded token neither writes nor fades
        real = ragged.real_tokens(lengths, k.size(1))
        k = ragged.mask(k, real)
        log_decay = None if log_decay is None else ragged.mask(log_decay, real)
    return ops.matrix_scan(q, k, v, log_decay, state=state, reset=reset)


def with_ones(v: Tensor) -> Tensor:
    """One more value of 1, (B, T, H, V + 1): the memory then holds the sum of its keys too."""
    return F.pad(v, (0, 1), value=1.0)


def normalised(o: Tensor) -> Tensor:
    """The mean of the values: the answers (B, T, H, V + 1) of such a memory, divided by the last, the weights' sum."""
    return o[..., :-1] / (o[..., -1:] + SMALL)
