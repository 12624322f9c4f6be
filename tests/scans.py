"""What the tests of the scans share: properties of any op `run(*tensors, state=, reset=)` on tensors along time."""

from itertools import pairwise

import torch
from torch.autograd.graph import saved_tensors_hooks

from agreement import assert_backends_agree, assert_close, floating, gradients
from seriatim.ops import backend

CUTS = [1, 33, 0, 5, 32, 1, 28]  # 100 tokens, across chunks of 16, 32 and 64


def in_pieces(run, tensors, state, reset, cuts=CUTS):
    """The outputs and the last state of reading one piece after another."""
    pieces = zip(*(z.split(cuts, 1) for z in tensors), reset.split(cuts, 1), strict=True)
    outputs = []
    for *piece, begins in pieces:
        y, state = run(*piece, state=state, reset=begins)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def assert_pieces_agree(run, tensors, state, reset, cuts=CUTS):
    """The whole equals its pieces in outputs, state and gradients."""
    whole, pieces = run(*tensors, state=state, reset=reset), in_pieces(run, tensors, state, reset, cuts)
    assert_close(floating(pieces), floating(whole), 1e-11, "value")
    assert_close(gradients(pieces, [*tensors, state]), gradients(whole, [*tensors, state]), 1e-10, "gradient")


def assert_reset_begins_anew(run, tensors, state, where):
    """Resets at the tokens `where` are separate sequences; gradients do not cross them."""
    time = tensors[0].size(1)
    reset = torch.zeros(tensors[0].size(0), time, dtype=torch.bool)
    reset[:, where] = True
    whole = run(*tensors, state=state, reset=reset)
    edges, outputs = [0, *[index for index in where if index], time], []
    last = state if 0 not in where else None
    for begin, end in pairwise(edges):
        y, last = run(*(z[:, begin:end] for z in tensors), state=last if begin == 0 else None, reset=None)
        outputs.append(y)
    separate = torch.cat(outputs, 1), last
    assert_close(floating(whole), floating(separate), 1e-12, "value")
    assert_close(gradients(whole, [*tensors, state]), gradients(separate, [*tensors, state]), 1e-11, "gradient")


def assert_compiles(run, tensors):
    """One graph, with the same values and gradients."""
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*tensors), run(*tensors)
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    assert_close(gradients(found, tensors), gradients(wanted, tensors), 1e-11, "gradient")


def assert_strides_do_not_matter(run, tensors):
    """Transposed and expanded inputs give what contiguous ones give."""
    strange = [z.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for z in tensors]
    assert not all(z.is_contiguous() for z in strange)
    found, wanted = run(*strange), run(*tensors)
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    assert_close(gradients(found, strange), gradients(wanted, tensors), 1e-11, "gradient")
    expanded = [z[:1].detach().expand(z.shape).requires_grad_() for z in tensors]
    assert_backends_agree(lambda: run(*expanded), expanded)


def assert_rounds_well(run, tensors, dtype, tolerance):
    """In that dtype, values and gradients are near those of the reference in float64 on the same inputs."""
    low = [z.detach().to(dtype).requires_grad_() for z in tensors]
    high = [z.detach().double().requires_grad_() for z in low]
    found = run(*low)
    with backend("reference"):
        wanted = run(*high)
    assert found[0].dtype == dtype
    assert all(z.dtype == torch.float32 for z in floating(found[1]))
    for a, b in zip(floating(found), floating(wanted), strict=True):
        assert_near(a, b, tolerance)
    for a, b in zip(gradients(found, low), gradients(wanted, high), strict=True):
        assert_near(a, b, tolerance)


def assert_near(found, wanted, tolerance):
    """The root mean square difference relative to the root mean square."""
    found, wanted = found.detach().double(), wanted.detach()
    assert found.isfinite().all()
    far = ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()
    assert far <= tolerance, f"{far:.3g} apart"


def saved_bytes(run, tensors):
    """What autograd keeps for the backward pass, each storage once, beside the inputs."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        found = run(*tensors)
    inputs = {z.untyped_storage().data_ptr() for z in tensors}
    del found
    return sum(size for pointer, size in kept.items() if pointer not in inputs)
