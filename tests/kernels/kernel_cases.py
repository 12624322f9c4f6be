"""What the tests of compiled ops share. `run(*inputs)` calls an op on float32 tensors: an output and a state."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from agreement import floating, gradients
from seriatim.kernels.cpu.guard import guarded
from seriatim.kernels.cpu.operator import available
from seriatim.ops import backend

LAYOUTS = ("plain", "transposed", "expanded", "sliced")


def laid_out(tensor, layout):
    """A float32 leaf of the tensor's shape: contiguous, its last dimension apart, the first repeated, or with gaps."""
    x = tensor.detach().float()
    if layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "expanded":
        x = x[:1].expand(x.shape)
    elif layout == "sliced":
        x = torch.cat([x, x], -1)[..., : x.size(-1)]
    return x.requires_grad_()


def assert_like_reference(source, run, inputs, tolerance=2e-6):
    """Values and all gradients are those of the reference in float64, relative to the largest number of each tensor."""
    assert available(source)
    high = [z.detach().double().requires_grad_() for z in inputs]
    with backend("reference"):
        wanted = run(*high)
    with backend("cpu"):
        found = run(*inputs)
        found_gradients = gradients(found, inputs)
    assert_near(floating(found), floating(wanted), tolerance, "value")
    assert_near(found_gradients, gradients(wanted, high), tolerance, "gradient")


def assert_agrees(run, inputs, tolerance=2e-6, least=0.1):
    """As `assert_like_reference`, but errors are not relative to less than `least`: where there are few numbers, all of
    them may be small by chance, as differences of what is not."""
    high = [z.detach().double().requires_grad_() for z in inputs]
    with backend("reference"):
        wanted = run(*high)
    found = cpu(run)(*inputs)
    assert_near(floating(found), floating(wanted), tolerance, "value", least)
    assert_near(gradients(found, inputs), gradients(wanted, high), tolerance, "gradient", least)


def cpu(run):
    """The same on the kernels."""

    def on_kernels(*inputs):
        with backend("cpu"):
            return run(*inputs)

    return on_kernels


def assert_near(found, wanted, tolerance, what, least=1e-6):
    """The largest difference, relative to the largest value, or to `least` if that is larger; infinities agree."""
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape, f"{what} {index}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
        a, b = a.detach().double(), b.detach().double()
        infinite = b.isinf()
        assert torch.equal(a[infinite], b[infinite]), f"{what} {index}: infinities differ"
        a, b = a[~infinite], b[~infinite]
        if b.numel():
            far = ((a - b).abs().max() / b.abs().max().clamp(min=least)).item()
            assert far <= tolerance, f"{what} {index}: {far:.3g} apart"


def assert_within_bounds(run, inputs):
    """Nothing beside the arrays is read or written (else this process ends), and the results are the same."""
    with backend("cpu"):
        wanted = _results(run, inputs)
        for mode in ("after", "before"):
            with guarded(mode):
                assert all(map(torch.equal, _results(run, inputs), wanted)), mode


def assert_resets_part(with_reset, apart, clean, spoilt):
    """Between two resets nothing is seen of how inputs differ before and after: in outputs as in gradients along time.

    `with_reset(reset)` is a `run`.
    """
    reset = torch.zeros(clean[0].shape[:2], dtype=torch.bool)
    reset[:, [apart.start, apart.stop]] = True
    outputs, slopes = [], []
    for inputs in (clean, spoilt):
        leaves = [z.requires_grad_() for z in inputs]
        o = cpu(with_reset(reset))(*leaves)[0]
        outputs.append(o[:, apart])
        along = [z for z in leaves if z.dim() > 2 and z.size(1) == o.size(1)]
        slopes.append([z[:, apart] for z in torch.autograd.grad(o.sum(), along)])
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *slopes))


def assert_compiles(run, inputs):
    """One graph, with the same values and gradients."""
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_near(_results(compiled, inputs), _results(run, inputs), 1e-6, "compiled")


def assert_safe_in_threads(run, inputs):
    """Two Python threads that call at once get what one gets, and so does PyTorch with two threads of its own."""
    wanted, together = _results(run, inputs), threading.Barrier(2)

    def work(_):
        together.wait(timeout=60)
        return [_results(run, inputs) for _ in range(5)][-1]

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(work, range(2)):
            assert all(map(torch.equal, found, wanted))
    torch.set_num_threads(2)
    try:
        assert all(map(torch.equal, _results(run, inputs), wanted))
    finally:
        torch.set_num_threads(1)


def _results(run, inputs):
    found = run(*inputs)
    return [*(z.detach() for z in floating(found)), *gradients(found, inputs)]
