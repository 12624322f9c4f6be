from itertools import pairwise

import pytest
import torch

from agreement import assert_close, gradients
from seriatim import build, ops
from seriatim.core.errors import SeriatimError
from seriatim.mixers.linear_attention.plstm import reference


def lively(dim=8, heads=2):
    """A model whose gates depend on the input and whose transitions have both signs."""
    torch.manual_seed(0)
    mixer = build("plstm", dim=dim, heads=heads).double()
    with torch.no_grad():
        mixer.gates.weight.normal_(std=dim**-0.5)
        mixer.gates.bias.zero_()
    return mixer


def gates_of(mixer, x):
    """q, k, v, source, transition, mark, direct by the equations."""
    q, k, v = (z.unflatten(-1, (mixer.heads, -1)) for z in mixer.qkv(x).chunk(3, -1))
    source, transition, mark, direct = mixer.gates(x).chunk(4, -1)
    return q, k, v, torch.sigmoid(source), torch.tanh(5 * transition), torch.sigmoid(mark), torch.sigmoid(direct)


def read_out(mixer, o):
    o = o / (mixer.dim // mixer.heads) ** 0.5
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm
    return mixer.out(o.flatten(-2))


def tokens(time=23, dim=8):
    return torch.randn(2, time, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_transitions_of_both_signs_agree_with_the_reference():
    mixer, x = lively(), tokens().requires_grad_()
    assert 0.2 < (gates_of(mixer, x)[4] < 0).double().mean() < 0.8
    found, wanted, inputs = mixer(x)[0], reference(mixer, x), [x, *mixer.parameters()]
    assert_close([found], [wanted], 1e-10, "value")
    assert_close(gradients(found, inputs), gradients(wanted, inputs), 1e-9, "gradient")


def test_transitions_of_both_signs_carry_on():
    """The whole is its pieces, in the state too, with resets and padding among them."""
    mixer, x = lively(), tokens().requires_grad_()
    reset = torch.zeros(2, 23, dtype=torch.bool)
    reset[0, [3, 4, 11]] = reset[1, 22] = True
    lengths, state = torch.tensor([23, 17]), mixer(tokens(4))[1]
    whole = mixer(x, state, reset=reset, lengths=lengths)
    outputs, after = [], state
    for begin, end in pairwise([0, 1, 4, 4, 11, 20, 23]):
        real = (lengths - begin).clamp(0, end - begin)
        y, after = mixer(x[:, begin:end], after, reset=reset[:, begin:end], lengths=real)
        outputs.append(y)
    pieces, whole = [torch.cat(outputs, 1)[1, :17], after], [whole[0][1, :17], whole[1]]
    assert_close(pieces, whole, 1e-11, "value")
    assert_close(gradients(pieces, [x]), gradients(whole, [x]), 1e-10, "gradient")
    for t in range(23):
        y, state = mixer.step(x[:1, t], torch.where(reset[:1, t, None, None, None], 0.0, state[:1]))
    assert_close([state], [whole[1][:1]], 1e-11, "state of steps")


def test_small_and_no_transitions_agree_with_the_reference():
    """A transition of exactly 0 forgets, and learns."""
    mixer, x = lively(), tokens(5).requires_grad_()
    with torch.no_grad():
        mixer.gates.weight[2:4] *= 1e-9
    inputs = [x, *mixer.parameters()]
    for scale in (1.0, 0.0):
        with torch.no_grad():
            mixer.gates.weight[2:4] *= scale
        found, wanted = gradients(mixer(x)[0], inputs), gradients(reference(mixer, x), inputs)
        assert_close(found, wanted, 1e-5, "gradient")
        assert found[3][2:4].abs().max() > 1e-3


def test_is_the_recurrence_of_a_chain_and_of_a_grid_of_one_row():
    mixer, x = lively(), tokens()
    q, k, v, source, transition, mark, direct = gates_of(mixer, x)
    wanted = mixer(x)[0]
    o, _ = ops.dag_scan(
        q, k, v, source[:, :-1], transition[:, 1:-1], mark[:, 1:], direct, edges=[(n, n + 1) for n in range(22)]
    )
    assert_close([read_out(mixer, o)], [wanted], 1e-10, "chain")
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    row = [source[..., None] * right, transition[..., None, None] * torch.diag(right), mark[..., None] * right, direct]
    o, _ = ops.grid_scan(*(z.unsqueeze(1) for z in (q, k, v, *row)))
    assert_close([read_out(mixer, o.squeeze(1))], [wanted], 1e-10, "row")
    o, _ = ops.grid_scan(
        *(z.unsqueeze(2) for z in (q, k, v, row[0].flip(-1), row[1].flip(-1, -2), row[2].flip(-1), direct))
    )
    assert_close([read_out(mixer, o.squeeze(2))], [wanted], 1e-10, "column")


def test_single_precision_over_many_sign_changes():
    mixer, x = lively(), tokens(2000)
    wanted, state = mixer(x)
    found, low_state = mixer.float()(x.float())
    assert (found - wanted).norm() / wanted.norm() < 2e-5
    assert (low_state - state).norm() / state.norm() < 2e-5


def test_begins_as_the_paper_says():
    """Table 4: source and mark -4, direct -6, transition tanh(5): nearly nothing is forgotten."""
    mixer = build("plstm", dim=64, heads=4)
    assert mixer.gates.bias.view(4, 4).mean(1).tolist() == [-4, 1, -4, -6]
    assert not mixer.gates.weight.any()
    assert abs(mixer.qkv.weight.std() - (2 / 320) ** 0.5) < 3e-3
    assert gates_of(mixer, torch.ones(1, 1, 64))[4].min() > 0.9999


def test_heads_must_divide_dim():
    with pytest.raises(SeriatimError, match="dim is 10 and heads is 4"):
        build("plstm", dim=10, heads=4)
