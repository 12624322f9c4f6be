r"""The Cauchy product with conjugate symmetry: rational functions with given poles, at given nodes.

.. math:: k_j(z_l) = \sum_n \frac{v_{jn}}{z_l - w_n} + \frac{\bar v_{jn}}{z_l - \bar w_n}

Where the coefficients and poles of a real system come in conjugate pairs, half of them are given. Nodes times poles
numbers are never in memory at once: they are computed in blocks, and once more on the way back.

Dimensions: G systems, J products of each, N poles, L nodes. Source: Gu, Goel and Ré, 2021, arXiv:2111.00396, section 3.
"""

import torch
from jaxtyping import Complex
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.cauchy import cauchy as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_tensors
from seriatim.ops.precision import widen

__all__ = ["cauchy", "reference"]

BLOCK = 1 << 19  # complex numbers of the largest array in between


def cauchy(
    v: Complex[Tensor, "G J N"], z: Complex[Tensor, " L"], w: Complex[Tensor, "G N"]
) -> Complex[Tensor, "G J L"]:
    """The sum over n of v / (z - w) and its conjugate twin.

    Args:
        v: (G, J, N) complex, coefficients of J products of each system.
        z: (L,) complex, nodes; constants, to which no gradient flows.
        w: (G, N) complex, poles. In complex64 their distance from the nodes should lie between 1e-9 and 1e9.

    Returns:
        (G, J, L) complex.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above, or z asks for a gradient.
    """
    arguments = {"v": (v, "systems products poles"), "z": (z, "nodes"), "w": (w, "systems poles")}
    check_tensors(arguments, allow_complex=True)
    for name, (tensor, _) in arguments.items():
        if not tensor.is_complex():
            raise SeriatimError(f"{name} has dtype {tensor.dtype}; it must be complex")
    if z.requires_grad:
        raise SeriatimError("z asks for a gradient; the nodes of a Cauchy product are constants")
    v, z, w = widen(v, z, w)
    run = choose({"reference": reference, "torch": blocked, "cpu": compiled}, v)
    k: Tensor = run(v, z, w)
    return k


def reference(
    v: Complex[Tensor, "G J N"], z: Complex[Tensor, " L"], w: Complex[Tensor, "G N"]
) -> Complex[Tensor, "G J L"]:
    """The equation, node by node."""
    columns = [v.new_zeros(*v.shape[:2], 0)]
    for node in z:
        terms = v / (node - w).unsqueeze(1) + v.conj() / (node - w.conj()).unsqueeze(1)
        columns.append(terms.sum(2, keepdim=True))
    return torch.cat(columns, 2)


def blocked(
    v: Complex[Tensor, "G J N"], z: Complex[Tensor, " L"], w: Complex[Tensor, "G N"]
) -> Complex[Tensor, "G J L"]:
    """The same, a block of nodes at a time."""
    blocks = z.split(max(1, BLOCK // max(1, w.numel())))
    if len(blocks) == 1:
        return _block(v, z, w)
    return torch.cat(
        [checkpoint(_block, v, nodes, w, use_reentrant=False, preserve_rng_state=False) for nodes in blocks], 2
    )


def _block(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return v @ (1 / (z - w.unsqueeze(2))) + v.conj() @ (1 / (z - w.conj().unsqueeze(2)))
