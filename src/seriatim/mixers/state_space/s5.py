"""S5."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.mimo_base import MIMOMixer, MIMOSystem
from seriatim.nn.discretization import RULES, discretize_diagonal, log_steps
from seriatim.nn.glu_output import GLUOutput
from seriatim.nn.hippo import normal_blocks
from seriatim.nn.truncated_normal import truncated_normal

__all__ = ["S5"]

ACTIVATIONS = ("gelu", "full_glu", "half_glu1", "half_glu2")
C_STARTS = ("trunc_standard_normal", "lecun_normal", "complex_normal")
LARGEST = -1e-4  # real part that clip_eigenvalues leaves


class S5(MIMOMixer):
    r"""S5: one state space with a diagonal of complex numbers, which reads and answers all features at once.

    .. math:: h' = \Lambda h + B x, \quad y = 2\,\mathrm{Re}(C h) + D \odot x

    in tokens that lie a step e^s apart, one for each state value. Eigenvalues come in conjugate pairs, of which N / 2
    are kept (`conj_sym`; without it all N are, and the 2 goes away). They begin as those of the normal part of
    HiPPO-LegS, in `blocks`, and B = V* B', C = C' V with its eigenvectors V. `activation` says what follows:

    - "gelu": gelu(y)
    - "full_glu": :math:`(W_1 g + b_1) \odot \sigma(W_2 g + b_2)` with g = gelu(y)
    - "half_glu1": :math:`g \odot \sigma(W g + b)`
    - "half_glu2": :math:`y \odot \sigma(W g + b)`

    Episodes are kept apart inside the scan: a reset empties the state before its token.

    Args:
        dim: features in and out.
        state_size: N, real state values; None is dim.
        blocks: parts of the first state matrix, each of an even size.
        discretization: "zoh" or "bilinear".
        conj_sym: of each pair of eigenvalues keep one.
        c_init: "trunc_standard_normal" or "lecun_normal" (C', of variance 1 / N or 1 / (N dim)), or "complex_normal",
            C itself normal.
        clip_eigenvalues: keep the real parts below 0, whatever is learned.
        activation: "gelu", "full_glu", "half_glu1" or "half_glu2".
        step_min, step_max: bounds of the first steps.
        rate: steps between two tokens, 1 as trained; 2 reads data sampled half as often.

    Source: Smith, Warrington and Linderman, 2022, arXiv:2208.04933, sections 3 and 4 and appendix B; activations and
        the names of options after its official code. Resets: Lu et al., 2023, arXiv:2303.03982, section 4.
    """

    def __init__(
        self,
        dim: int,
        state_size: int | None = None,
        blocks: int = 1,
        discretization: str = "zoh",
        conj_sym: bool = True,
        c_init: str = "trunc_standard_normal",
        clip_eigenvalues: bool = False,
        activation: str = "half_glu1",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        size = dim if state_size is None else state_size
        check_size(dim=dim, state_size=size, blocks=blocks)
        check_one_of("discretization", discretization, RULES)
        check_one_of("c_init", c_init, C_STARTS)
        check_one_of("activation", activation, ACTIVATIONS)
        check_positive(rate=rate)
        self.dim, self.state_size, self.blocks, self.discretization = dim, state_size, blocks, discretization
        self.conj_sym, self.c_init, self.clip_eigenvalues = conj_sym, c_init, clip_eigenvalues
        self.activation, self.step_min, self.step_max, self.rate = activation, step_min, step_max, rate
        eigenvalues, vectors = normal_blocks(size, blocks)
        if not conj_sym:
            eigenvalues, vectors = torch.cat([eigenvalues, eigenvalues.conj()]), torch.cat([vectors, vectors.conj()], 1)
        self.states = len(eigenvalues)
        self.log_step = nn.Parameter(log_steps(self.states, step_min, step_max))
        self.real = nn.Parameter(eigenvalues.real.float())
        self.imaginary = nn.Parameter(eigenvalues.imag.float())
        B = truncated_normal(size, dim, deviation=size**-0.5, dtype=torch.float64)
        self.B = nn.Parameter(torch.view_as_real(vectors.mH @ B.to(vectors.dtype)).float())
        self.C = nn.Parameter(torch.view_as_real(_first_answers(c_init, dim, vectors)).float())
        self.D = nn.Parameter(torch.randn(dim))
        self.out: nn.Module | None = None
        if activation != "gelu":
            self.out = GLUOutput(dim, dim) if activation == "full_glu" else nn.Linear(dim, dim)

    def system(self) -> MIMOSystem:
        wide = state_dtype(self.B.dtype)
        real = self.real.to(wide)
        eigenvalues = torch.complex(real.clamp(max=LARGEST) if self.clip_eigenvalues else real, self.imaginary.to(wide))
        B, C = torch.view_as_complex(self.B.to(wide)), torch.view_as_complex(self.C.to(wide))
        step = self.log_step.to(wide).exp() * self.rate
        A, B = discretize_diagonal(eigenvalues.unsqueeze(1), B, step, self.discretization)
        return MIMOSystem(A.squeeze(1), B, 2 * C if self.conj_sym else C)

    def readout(self, y: Tensor) -> Tensor:
        if self.out is None:
            return F.gelu(y)
        if self.activation == "full_glu":
            return self.out(y)
        rounded = F.gelu(y)
        return (rounded if self.activation == "half_glu1" else y) * torch.sigmoid(self.out(rounded))


def _first_answers(name: str, dim: int, vectors: Tensor) -> Tensor:
    """C in the basis of the eigenvectors (N, states), as `c_init` says."""
    size, states = vectors.shape
    if name == "complex_normal":
        return torch.complex(*torch.randn(2, dim, states, dtype=torch.float64)) * math.sqrt(0.5)
    deviation = (size if name == "trunc_standard_normal" else size * dim) ** -0.5
    real, imaginary = truncated_normal(2, dim, size, deviation=deviation, dtype=torch.float64)
    return torch.complex(real, imaginary) @ vectors


def reference(m: S5, x: Tensor) -> Tensor:
    """The paper's equations, one sequence and token at a time; of pairs of eigenvalues both written out."""
    real = torch.minimum(m.real, torch.tensor(LARGEST, dtype=m.real.dtype)) if m.clip_eigenvalues else m.real
    eigenvalues, step = torch.complex(real, m.imaginary), m.log_step.exp() * m.rate
    B, C = torch.complex(*m.B.unbind(2)), torch.complex(*m.C.unbind(2))
    if m.conj_sym:
        eigenvalues, step = torch.cat([eigenvalues, eigenvalues.conj()]), torch.cat([step, step])
        B, C = torch.cat([B, B.conj()]), torch.cat([C, C.conj()], 1)
    if m.discretization == "zoh":
        A = torch.exp(step * eigenvalues)
        scale = (A - 1) / eigenvalues
    else:
        A = (1 + step / 2 * eigenvalues) / (1 - step / 2 * eigenvalues)
        scale = step / (1 - step / 2 * eigenvalues)
    rows = []
    for sequence in x:
        h, out = torch.zeros_like(A), []
        for token in sequence:
            h = A * h + scale * (B @ token.to(B.dtype))
            y = (C @ h).real + m.D * token
            g = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
            if isinstance(m.out, GLUOutput):
                a, b = (m.out.linear.weight @ g + m.out.linear.bias).chunk(2)
                g = a * torch.sigmoid(b)
            elif isinstance(m.out, nn.Linear):
                g = (g if m.activation == "half_glu1" else y) * torch.sigmoid(m.out.weight @ g + m.out.bias)
            out.append(g)
        rows.append(torch.stack(out))
    return torch.stack(rows)
