"""Legendre memory unit."""

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.legendre_memory import LegendreMemory

__all__ = ["LMU"]

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda z: z}


class LMU(InvariantMixer):
    r"""Legendre memory unit, its feed-forward form: the last `window` tokens of a few signals, as polynomials.

    .. math:: u_t = f_u(W_u x_t + b_u), \quad m_t = A m_{t-1} + B u_t, \quad y_t = f(W_m m_t + W_x x_t + b)

    m holds, for each signal u, the coefficients of Legendre polynomials of degree below `order` that follow it over the
    last `window` tokens. A and B follow from that alone and are not learned: the delay network
    (:func:`seriatim.nn.hippo.legendre_delay`) by a zero-order hold. Nothing nonlinear stands between m and the m
    before, so that all tokens are computed at once; the original unit also feeds m and y back into u.

    W_u begins LeCun uniform, W_m and W_x Glorot normal, biases 0.

    Args:
        dim: features in and out.
        order: d, numbers that remember a signal; None is dim.
        window: theta, tokens that are remembered, above 0.
        memories: signals u.
        signal_activation: f_u, "relu", "tanh" or "identity".
        activation: f, one of the same.

    Source: Voelker, Kajic and Eliasmith, 2019, "Legendre Memory Units", section 2, initialisation and equations 1 to
        4; Chilkuri and Eliasmith, 2021, arXiv:2102.11417, equations 18 to 20.
    """

    def __init__(
        self,
        dim: int,
        order: int | None = None,
        window: float = 128.0,
        memories: int = 1,
        signal_activation: str = "relu",
        activation: str = "relu",
    ):
        super().__init__()
        size = dim if order is None else order
        check_size(dim=dim, order=size, memories=memories)
        check_one_of("signal_activation", signal_activation, ACTIVATIONS)
        check_one_of("activation", activation, ACTIVATIONS)
        self.dim, self.order, self.window, self.memories = dim, order, window, memories
        self.signal_activation, self.activation = signal_activation, activation
        self.state_shape = (memories, size)
        self.delay = LegendreMemory(size, window)
        self.signal = nn.Linear(dim, memories)
        self.memory = nn.Linear(memories * size, dim, bias=False)
        self.input = nn.Linear(dim, dim)
        bound = (3 / dim) ** 0.5
        nn.init.uniform_(self.signal.weight, -bound, bound)
        for layer in (self.memory, self.input):
            nn.init.xavier_normal_(layer.weight)
        for bias in (self.signal.bias, self.input.bias):
            nn.init.zeros_(bias)

    def project(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.signal_activation](self.signal(x))

    def system(self) -> System:
        wide = state_dtype(self.signal.weight.dtype)
        A, B = self.delay.matrices(wide)
        answers = torch.eye(B.size(0), dtype=wide, device=B.device)
        return System(*(z.expand(self.memories, *z.shape) for z in (A, B, answers)))

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.memory(y.flatten(2).to(x.dtype)) + self.input(x))


def reference(m: LMU, x: Tensor) -> Tensor:
    """The papers' equations, one sequence, token and signal at a time; A and B entry by entry, then discretised."""
    memories, size = m.state_shape
    A = torch.empty(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            A[i, j] = (2 * i + 1) / m.window * (-1.0 if i < j else (-1.0) ** (i - j + 1))
    B = torch.tensor([(2 * i + 1) / m.window * (-1.0) ** i for i in range(size)], dtype=torch.float64)
    after = torch.linalg.matrix_exp(A)
    B = torch.linalg.solve(A, (after - torch.eye(size)) @ B).to(x.dtype)
    A = after.to(x.dtype)
    functions = {"relu": lambda z: z * (z > 0), "tanh": torch.tanh, "identity": lambda z: z}
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(size) for _ in range(memories)], []
        for token in sequence:
            u = functions[m.signal_activation](m.signal.weight @ token + m.signal.bias)
            memory = [A @ memory[g] + B * u[g] for g in range(memories)]
            total = m.memory.weight @ torch.cat(memory) + m.input.weight @ token + m.input.bias
            out.append(functions[m.activation](total))
        rows.append(torch.stack(out))
    return torch.stack(rows)
