"""Every operator that a step may use gives in a program what PyTorch gives, special values included."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from step_mixers import Applied, has_program, programs, same
from torch import Tensor

from seriatim import ops
from seriatim.kernels.cpu import guard


@pytest.fixture(autouse=True)
def _kernels():
    """Whatever SERIATIM_BACKEND says."""
    with ops.backend("cpu"):
        yield


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -3.7, 1e-6, -1e-6, 20.5, -20.5, 88.0, -88.0, 105.0, -105.0, 1e4, -1e4]
SPECIAL += [3e38, -3e38, math.inf, -math.inf, math.nan]


def check(function, x, state=None, tolerance=1e-6, module=None):
    """The program of `function`, as a step, against the function."""
    if state is None:
        state = torch.randn(x.size(0), x.size(1))
    module = module or Applied(function, x.size(1), state.shape[1:], state.dtype)
    with torch.no_grad():
        found = module.step(x, state)
        assert has_program(module), function
        for mode in ("after", "before"):
            with guard.guarded(mode):
                same([module.step(x, state)], [found], 0)
        with ops.backend("torch"):
            same([found], [module.step(x, state)], tolerance)


def special():
    """Every special value with every other."""
    values = torch.tensor(SPECIAL)
    return values.repeat(len(SPECIAL))[None], values.repeat_interleave(len(SPECIAL))[None]


UNARY = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softplus with options": lambda x: F.softplus(x, beta=2, threshold=5),
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "erf": torch.erf,
    "sin": lambda x: torch.sin(x.clamp(-1e4, 1e4)),
    "cos": lambda x: torch.cos(x.clamp(-1e4, 1e4)),
    "elu": F.elu,
    "leaky": F.leaky_relu,
    "cube": lambda x: x**3,
    "root": lambda x: x**0.5,
    "power": lambda x: x**1.7,
    "base": lambda x: 2.0**x,
    "isnan": lambda x: torch.isnan(x).float() + 2 * torch.isinf(x),
    "not": lambda x: torch.logical_not(x).float(),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name):
    function = UNARY[name]
    x = torch.cat([torch.tensor(SPECIAL), torch.linspace(-9, 9, 1001)])[None]
    check_by_number(lambda x, state, module: (function(x), state), x, x)


def test_gelu():
    """Against float64: PyTorch's own in float32 is right to 1e-6 only."""
    x = torch.linspace(-12, 12, 4001)[None]
    module = Applied(lambda x, state, module: (F.gelu(x), F.gelu(x, approximate="tanh")), x.size(1))
    with torch.no_grad():
        exact, by_tanh = module.step(x, x)
    assert has_program(module)
    torch.testing.assert_close(exact.double(), F.gelu(x.double()), rtol=3e-7, atol=4e-7)
    torch.testing.assert_close(by_tanh.double(), F.gelu(x.double(), approximate="tanh"), rtol=3e-7, atol=4e-7)


BINARY = {
    "add": lambda x, y: x + y,
    "add with factor": lambda x, y: torch.add(x, y, alpha=0.3),
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: 1 - x + y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floor div": lambda x, y: torch.div(x.clamp(-50, 50), y.clamp(1, 9), rounding_mode="floor"),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp": lambda x, y: x.clamp(-2, 3) + y.clamp(min=-1) - y.clamp(max=4),
    "clamp by": lambda x, y: torch.clamp(x, y, y + 1),
    "lt": lambda x, y: (x < y).float(),
    "le": lambda x, y: (x <= y).float(),
    "gt": lambda x, y: (x > y).float(),
    "ge": lambda x, y: (x >= y).float(),
    "eq": lambda x, y: (x == y).float(),
    "ne": lambda x, y: (x != y).float(),
    "and": lambda x, y: ((x > 0) & (y > 0)).float(),
    "or": lambda x, y: ((x > 0) | ~(y > 0)).float(),
    "xor": lambda x, y: torch.logical_xor(x, y).float(),
    "where": lambda x, y: torch.where(x > y, x, 2.0),
    "masked": lambda x, y: x.masked_fill(y > 0, float("-inf")),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(y, x, y, value=-2),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp by": lambda x, y: torch.lerp(x, y, y.sigmoid()),
    "power": lambda x, y: x.abs() ** y.clamp(-3, 3),
    "remainder": lambda x, y: torch.remainder(x.clamp(-99, 99), y.clamp(1, 9)),
}


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers(name):
    function = BINARY[name]
    x, y = special()
    check_by_number(lambda x, state, module: (function(x, state), state), x, y)


def check_by_number(function, x, state, tolerance=2e-6):
    """The same, each number relative to itself; what lies below the normal range counts as 0."""
    module = Applied(function, x.size(1))
    with torch.no_grad():
        found, _ = module.step(x, state)
        assert has_program(module)
        with ops.backend("torch"):
            wanted, _ = module.step(x, state)
    torch.testing.assert_close(
        found, wanted, rtol=tolerance, atol=1.2e-38 + 1e-7 * (wanted.abs() < 1e30).any(), equal_nan=True
    )


def _whole(x, state, module):
    y = state * 3 - 7
    y = torch.where(y > 4, y, -y) % 5 + torch.maximum(state, y).clamp(max=2**40)
    return x + y[:, None], state + 1


def _converted(x, state, module):
    return x + state[:, None] % 3 + (x > 0).long().clamp(min=0), (x[:, 0] * 100).long() + state


def _flags(x, state, module):
    return x.masked_fill(state, 0.5), (x > 0) ^ state


def test_integers_and_truth_values():
    x = torch.randn(3, 5)
    big = torch.tensor([2**40, -(2**33) - 1, 3])
    check(_whole, x, big)
    check(_converted, x, torch.tensor([5, 0, -4]))
    check(_flags, x, torch.randn(3, 5) > 0)
    check(
        lambda x, state, module: ((state & (x > 0)).any(1, keepdim=True) + x, (state | (x > 1)).all(1)),
        x,
        torch.rand(3, 5) > 0.5,
    )


ROWS = {
    "sum": lambda x: x.sum(1, keepdim=True) + x.sum(0) + x.sum(),
    "mean": lambda x: x.mean((0, 1)) * x.mean(1, True),
    "extremes": lambda x: x.amax(1, True) - x.amin(0),
    "products": lambda x: x.prod(1, True) + x.prod(),
    "norm": lambda x: F.normalize(x, dim=-1),
    "softmax": lambda x: x.softmax(-1) + x.softmax(0) + x.log_softmax(1),
    "layer norm": lambda x: F.layer_norm(x, (x.size(1),), x[0], x[1]),
    "layer norm without weights": lambda x: F.layer_norm(x, x.shape),
    "rms norm": lambda x: F.rms_norm(x, (x.size(1),), x[0], 1e-6),
    "fused rms norm": lambda x: torch.ops.aten._fused_rms_norm(x, [x.size(1)], x[0], 1e-6)[0],
    "cat": lambda x: torch.cat([x, 2 * x, x[:, 1:2]], 1)[:, 3 : 3 + x.size(1)],
    "stack": lambda x: torch.stack([x, -x], 2).flatten(1)[:, 1 : 1 + x.size(1)],
    "pad": lambda x: F.pad(x, (1, 2, 0, 0), value=3.0)[:, : x.size(1)] + F.pad(x, (1, 0))[:, 1:],
    "pad of nothing": lambda x: x + F.pad(x[:, :0], (x.size(1), 0), value=2.0),
    "select": lambda x: x.index_select(0, torch.tensor([2, 0, 1])) + F.embedding(torch.tensor([0, 2, 2]), x),
    "turned": lambda x: (x.T.contiguous() @ x).sum(0) + x.T.reshape(x.shape),
    "in place": lambda x: (x + 1).mul_(2).add_(x).masked_fill_(x > 1, 0),
    "in parts": lambda x: torch.zeros_like(x).copy_(x).narrow(1, 1, 2).mul_(3).sum() + x,
    "filled": lambda x: torch.full_like(x, 2.0) * x + torch.arange(x.size(1)) + x.new_ones(1),
    "split": lambda x: torch.cat([z.tanh() for z in x.split([1, x.size(1) - 1], 1)][::-1], 1),
    "windows": lambda x: x.unfold(1, 2, 1).sum(-1).sum(1, True) + x,
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name):
    function = ROWS[name]
    check(lambda x, state, module: (function(x) + state, state), torch.randn(3, 6), tolerance=2e-6)


def test_a_reduction_keeps_nan():
    x = torch.tensor([[1.0, math.nan, 3.0], [math.inf, -math.inf, 0.0], [1.0, 2.0, 3.0]])
    check(lambda x, state, module: (torch.stack([x.amax(1), x.amin(1), x.sum(1)], 1), x.amax(0) + state), x)


PRODUCTS = {
    "linear": lambda x, m: F.linear(x, m.weight, m.bias),
    "linear without bias": lambda x, m: F.linear(x, m.weight),
    "columns": lambda x, m: x @ m.weight,
    "weights first": lambda x, m: (m.weight @ x.T).T + m.weight @ x[0],
    "addmm": lambda x, m: torch.addmm(x, x, m.weight, beta=0.5, alpha=-2),
    "addmv": lambda x, m: torch.addmv(m.bias, m.weight, x[0], alpha=2) + x * torch.dot(x[0], m.bias),
    "bmm": lambda x, m: torch.bmm(x[:, None], m.weight.expand(x.size(0), -1, -1))[:, 0],
    "outer": lambda x, m: (x[:, :, None] @ x[:, None]).sum(1),
    "halves": lambda x, m: F.linear(x[:, 1:], m.weight[:, 1:]) + x[:, :-1] @ m.weight[:-1],
    "part of rows": lambda x, m: F.linear(x, m.weight[::2]).sum(1, True) + x,
    "by einsum": lambda x, m: torch.einsum("bi,ij,bj->bi", x, m.weight, x),
    "of results": lambda x, m: (x @ m.weight.tanh()) @ (m.weight.T @ m.weight),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("batch", "dim"), [(1, 5), (1, 40), (2, 33), (3, 17), (7, 16)])
def test_products(name, batch, dim):
    function = PRODUCTS[name]
    check(lambda x, state, module: (function(x, module), state), torch.randn(batch, dim), tolerance=4e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_attention(shared):
    def attend(x, state, module):
        q, k, v = x.view(2, 1, 4, 3), state[..., :3], state[..., 3:]
        mask = torch.arange(5) < 4
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None, None], enable_gqa=shared)
        return out.transpose(1, 2).reshape(2, 12), state

    state = torch.randn(2, 5, 2 if shared else 4, 6)
    check(attend, torch.randn(2, 12), state, tolerance=2e-6)


@st.composite
def layouts(draw):
    """Shapes that broadcast together, and an order of dimensions for each tensor's memory."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17]), min_size=1, max_size=4))
    tensors = []
    for _ in range(3):
        sizes = [size if draw(st.booleans()) else 1 for size in shape][draw(st.integers(0, len(shape) - 1)) :]
        tensors.append((sizes, draw(st.permutations(range(len(sizes))))))
    return shape, tensors


def _laid(sizes, order, seed):
    inner = torch.randn([sizes[i] for i in order], generator=torch.Generator().manual_seed(seed))
    return inner.permute(sorted(range(len(order)), key=order.__getitem__))


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 3))
def test_any_shapes_and_layouts(layout, turn):
    shape, tensors = layout
    a, b, c = (_laid(sizes, order, seed) for seed, (sizes, order) in enumerate(tensors))

    def function(x, state, module):
        scaled = a * x[0, 0] + b
        mixed = (scaled.exp() - c).expand(shape)
        turned = mixed.permute([(i + turn) % len(shape) for i in range(len(shape))])
        flat = (turned * 2 + turned.sigmoid()).reshape(-1)
        return x + flat.sum() + (mixed * scaled).sum(-1).sum(), turned.contiguous().flatten()[None].expand(
            x.size(0), -1
        ) + state

    check(function, torch.randn(2, 3), torch.randn(2, math.prod(shape)), tolerance=4e-6)


def test_long_chains_are_cut():
    def chain(x, state, module):
        terms = [x]
        for i in range(120):
            terms.append(torch.tanh(terms[-1] * 0.9 + terms[i // 2] * (0.1 + i)))
        return sum(terms), terms[7] + state

    check(chain, torch.randn(2, 9), tolerance=1e-5)


def test_rows_longer_than_a_strip_and_many_short_ones():
    def wide(x, state, module):
        y = x[:, :, None] * state.sigmoid()
        return x + y.sum(-1), (y.transpose(1, 2) + x[:, None]).transpose(1, 2) * 0.5

    check(wide, torch.randn(2, 3), torch.randn(2, 3, 2500), tolerance=4e-6)
    check(wide, torch.randn(2, 700), torch.randn(2, 700, 3), tolerance=4e-6)


def test_outputs_that_are_inputs_parameters_or_the_same():
    def shared(x, state, module):
        y = x * 2
        return y, y.clone() + 0 * state

    check(shared, torch.randn(2, 7))
    check(lambda x, state, module: (module.weight[:2], x), torch.randn(2, 7))
    check(lambda x, state, module: (x.T.contiguous().T, state[:, 1:]), torch.randn(2, 7))
    module = Applied(lambda x, state, module: (x, torch.full_like(state, 3.0)), 7)
    with torch.no_grad():
        x = torch.randn(2, 7)
        y, state = module.step(x, module.init_state(2))
    assert isinstance(y, Tensor)
    assert y.data_ptr() != x.data_ptr()
    assert state.eq(3).all()
    assert len(programs(module)) == 1
