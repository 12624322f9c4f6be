"""The families of matrix memories: written by outer products and faded by gates, or corrected by the delta rule."""

from abc import abstractmethod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer
from seriatim.nn.norms import l2_norm
from seriatim.nn.pointwise import silu
from seriatim.nn.short_conv import ShortConv

__all__ = [
    "EIGENVALUES",
    "DeltaInputs",
    "DeltaMixer",
    "DeltaState",
    "MatrixInputs",
    "MatrixMixer",
    "init_projections",
    "normalised",
    "read_mean",
    "read_memory",
    "with_ones",
]

SMALL = 1e-6  # beside a sum of weights

EIGENVALUES = {"positive": 1.0, "signed": 2.0}  # the largest beta: of what it corrects, the transition keeps 1 - beta


class MatrixInputs(NamedTuple):
    """What a token does to the memory. log_decay: None, or one rate a head (B, T, H), or one a key feature."""

    q: Tensor  # (B, T, H, K)
    k: Tensor  # (B, T, H, K)
    v: Tensor  # (B, T, H, V)
    log_decay: Tensor | None = None


class MatrixMixer(Mixer):
    """A memory S of shape (key_dim, value_dim) for each head: :func:`seriatim.ops.matrix_scan`.

    A method sets `heads`, `key_dim`, `value_dim` and writes `project` and `readout`; the scan, resets and padding are
    done here. Where `normalize` is set, the memory's last value is always 1, which `project` leaves out, and answers
    are divided by it, the sum of the weights.
    """

    heads: int
    key_dim: int
    value_dim: int
    normalize: bool = False

    @abstractmethod
    def project(self, x: Tensor) -> MatrixInputs:
        """Queries, keys, values and gates of the tokens x (B, T, dim)."""

    @abstractmethod
    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        """The output (B, T, dim) from what the memory answered, o (B, T, H, V)."""

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.heads, self.key_dim, self.value_dim)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        o, state = read_memory(self.project(x), state, reset, lengths, normalize=self.normalize)
        return self.readout(x, o), state


def read_memory(
    inputs: MatrixInputs, state: Tensor, reset: Tensor | None, lengths: Tensor | None, *, normalize: bool = False
) -> tuple[Tensor, Tensor]:
    """What the memory answers, o (B, T, H, V), and the memory after the segment, (B, H, K, V) or (B, H, K, V + 1)."""
    q, k, v, log_decay = inputs
    k, log_decay = _still(lengths, k, log_decay)
    read = read_mean if normalize else ops.matrix_scan
    return read(q, k, v, log_decay, state=state, reset=reset)


@linear_in("v")
def read_mean(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, *, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`seriatim.ops.matrix_scan`, its answers divided by the sum of their weights."""
    o, state = ops.matrix_scan(q, k, with_ones(v), log_decay, state=state, reset=reset)
    return normalised(o), state


def with_ones(v: Tensor) -> Tensor:
    """One more value of 1, (B, T, H, V + 1): the memory then holds the sum of its keys too."""
    return F.pad(v, (0, 1), value=1.0)


def normalised(o: Tensor) -> Tensor:
    """The mean of the values: the answers (B, T, H, V + 1) of such a memory, divided by the last, the weights' sum."""
    return o[..., :-1] / (o[..., -1:] + SMALL)


class DeltaState(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, conv_size - 1, F): the last inputs of the convolution
    memory: Tensor  # (B, H, K, V)


class DeltaInputs(NamedTuple):
    """What a token brings; n writes of beta at most 2, and one decay before them: None, (B, T, H) or (B, T, H, K)."""

    features: Tensor  # (B, T, F): a query, n keys and n values of every head, F = H (K + n K + n V)
    beta: Tensor  # (B, T, n, H)
    log_decay: Tensor | None = None


class DeltaMixer(Mixer):
    r"""A memory S of shape (key_dim, value_dim) for each head that a token corrects: :func:`seriatim.ops.delta_scan`.

    .. math:: q, k, v = \mathrm{silu}(\mathrm{conv}(features)), \quad q \leftarrow q / |q|, \quad k \leftarrow k / |k|

    .. math:: S_{t,0} = \mathrm{diag}(\alpha_t) S_{t-1}, \quad
              S_{t,i} = S_{t,i-1} + \beta_{t,i} k_{t,i} (v_{t,i} - S_{t,i-1}^\top k_{t,i})^\top, \quad
              o_t = S_{t,n}^\top q_t / \sqrt{K}

    A method sets `heads`, `key_dim`, `value_dim`, `conv` over the F features and, where n is not 1, `householders`, and
    writes `project` and `readout`; the convolution, the norms, the scan, resets and padding are done here.
    """

    heads: int
    key_dim: int
    value_dim: int
    householders: int = 1
    conv: ShortConv

    @abstractmethod
    def project(self, x: Tensor) -> DeltaInputs:
        """Features and gates of the tokens x (B, T, dim)."""

    @abstractmethod
    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        """The output (B, T, dim) from what the memory answered, o (B, T, H, V)."""

    def init_state(self, batch: int) -> DeltaState:
        tail = self.new_state(batch, self.conv.size - 1, self.conv.dim)
        return DeltaState(tail, self.new_state(batch, self.heads, self.key_dim, self.value_dim))

    def mix(
        self, x: Tensor, state: DeltaState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, DeltaState]:
        features, beta, log_decay = self.project(x)
        features, tail = self.conv(features, state.tail, reset, lengths)
        keys = (1 + self.householders) * self.heads * self.key_dim
        addresses, v = silu(features).split([keys, features.size(-1) - keys], -1)
        q, k = l2_norm(addresses.unflatten(-1, (-1, self.heads, self.key_dim))).split([1, self.householders], 2)
        v = v.unflatten(-1, (self.householders, self.heads, self.value_dim))
        beta, log_decay = _still(lengths, beta, log_decay)
        o, memory = self._scan(q, k, v, beta, log_decay, state.memory, reset)
        return self.readout(x, o), DeltaState(tail, memory)

    def _scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor | None,
        memory: Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """To the op each write is a token: before the first the memory fades or is reset, after the last it is read."""
        time, count, scale = q.size(1), self.householders, self.key_dim**-0.5
        if time == 1:  # a scan of one token is the equation, and programs of single steps are made from it
            q, o = q[:, :, 0], v[:, :, 0]
            for key, value, rate in zip(k.unbind(2), v.unbind(2), beta.unbind(2), strict=True):
                o, memory = ops.delta_scan(q, key, value, rate, log_decay, scale=scale, state=memory, reset=reset)
                log_decay = reset = None
            return o, memory
        if count > 1:
            q = F.pad(q, (0, 0, 0, 0, count - 1, 0))
            log_decay = None if log_decay is None else _at_first(log_decay, count)
            reset = None if reset is None else _at_first(reset, count)
        q, k, v, beta = (z.flatten(1, 2) for z in (q, k, v, beta))
        o, memory = ops.delta_scan(q, k, v, beta, log_decay, scale=scale, state=memory, reset=reset)
        return o[:, count - 1 :: count], memory


def init_projections(*weights: Tensor) -> None:
    """Uniform weights, small, as the official code of this family has them (arXiv:2312.06635)."""
    for weight in weights:
        nn.init.xavier_uniform_(weight, gain=2**-2.5)


def _still(lengths: Tensor | None, write: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A padded token neither writes nor fades."""
    if lengths is None:
        return write, log_decay
    real = ragged.real_tokens(lengths, write.size(1))
    return ragged.mask(write, real), None if log_decay is None else ragged.mask(log_decay, real)


def _at_first(x: Tensor, count: int) -> Tensor:
    """(B, T, ...) to (B, count T, ...): x at the first of `count` writes of a token, 0 or False at the others."""
    return F.pad(x.unsqueeze(2), (0, 0) * (x.dim() - 2) + (0, count - 1)).flatten(1, 2)
