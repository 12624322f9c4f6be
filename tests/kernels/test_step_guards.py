"""A program is used only while it does what the step would do, and while nobody watches the step."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from step_mixers import Applied, has_program, programs, random_input, same, small_model, steps
from torch import nn

from seriatim import ops
from seriatim.core import taps
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.models.language_model import LanguageModel


@pytest.fixture(autouse=True)
def _kernels():
    """Whatever SERIATIM_BACKEND says."""
    with ops.backend("cpu"):
        yield


def _in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def _through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def _other_memory(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def _assigned(model):
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()}, assign=True)


def _other_parameter(model):
    model.stack.blocks[0].mixer.in_proj.weight = nn.Parameter(
        torch.randn_like(model.stack.blocks[0].mixer.in_proj.weight)
    )


def _other_child(model):
    model.out_norm = nn.Identity()


def _one_child_more(model):
    model.stack.blocks.append(copy.deepcopy(model.stack.blocks[1]))


def _other_attribute(model):
    model.stack.blocks[1].mixer.temperature = 1.0


def _other_epsilon(model):
    model.out_norm.eps = 1.0


def _bias_gone(model):
    model.stack.blocks[1].mixer.out_gate.bias = None


def _doubled(model):
    model.double()


CHANGES = [_in_place, _through_data, _other_memory, _assigned, _other_parameter, _other_child, _one_child_more]
CHANGES += [_other_attribute, _other_epsilon, _bias_gone, _doubled]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_seen(change):
    model = small_model(tie_embeddings=False, norm="layer")
    nn.init.ones_(model.stack.blocks[1].mixer.out_gate.bias)
    steps(model, 1, 3)
    assert has_program(model)
    before = steps(model, 1, 3)
    change(model)
    found = steps(model, 1, 3)
    with ops.backend("torch"):
        same(found, steps(model, 1, 3))
    with pytest.raises(AssertionError):
        same(found, before)


def test_hooks_run():
    model = small_model()
    steps(model, 1, 2)
    seen = []
    handle = model.stack.blocks[0].mixer.in_proj.register_forward_hook(lambda *arguments: seen.append(1))
    steps(model, 1, 3)
    assert len(seen) == 3
    handle.remove()
    steps(model, 1, 3)
    assert len(seen) == 3
    assert has_program(model)


def test_dropout_draws_in_training_and_not_afterwards():
    model = small_model(dropout=0.5)
    wanted = steps(model, 1, 2)
    assert has_program(model)
    model.train()
    first, second = (steps(model, 1, 1) for _ in range(2))
    assert not torch.equal(first[0][0], second[0][0])
    model.eval()
    same(steps(model, 1, 2), wanted, 0)


def test_gradients_come_from_the_step_itself():
    model = small_model()
    steps(model, 1, 2)
    y, _ = model.step(random_input(model, 1), model.init_state(1))
    y.sum().backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_another_backend_runs_the_step_itself(name):
    model = small_model()
    with ops.backend(name):
        steps(model, 1, 2)
    assert programs(model) == []


def test_who_watches_sees_pytorch():
    model = small_model()
    steps(model, 1, 2)
    count = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            count.append(func)
            return func(*args, **(kwargs or {}))

    with Counting():
        steps(model, 1, 1)
    assert len(count) > 50


def test_taps_are_collected():
    def tapped(x, state, module):
        taps.tap(module, "input", x)
        return x + 1, state

    module = Applied(tapped)
    steps(module, 1, 2)
    assert has_program(module)
    with taps.collect(module) as found:
        steps(module, 1, 2)
    assert len(found.values["input"]) == 2


def test_autocast_and_vmap_and_compile_and_inference_mode():
    module = build("gla", dim=16, heads=2).eval()
    x, state = torch.randn(2, 16), module.init_state(2)
    with torch.no_grad():
        wanted = module.step(x, state)
        assert has_program(module)
        with torch.autocast("cpu", torch.bfloat16):
            assert module.step(x, state)[0].dtype == torch.bfloat16
        with ops.backend("torch"):
            mapped = torch.func.vmap(lambda x: module.step(x, state))(x.expand(3, 2, 16))
        same([(mapped[0][1], mapped[1][1])], [wanted])
        compiled = torch.compile(module.step, backend="aot_eager", fullgraph=True)
        same([compiled(x, state)], [wanted])
    with torch.inference_mode():
        same([module.step(x, state)], [wanted], 0)
        fresh = build("gla", dim=16, heads=2).eval()
        fresh.load_state_dict(module.state_dict())
        same([fresh.step(x, fresh.init_state(2))], [wanted], 0)
        assert has_program(fresh)


def test_copies_and_pickles_know_no_programs():
    model = small_model()
    wanted = steps(model, 1, 3)
    names = set(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert programs(other) == []
        assert vars(other).keys() == vars(model).keys()
        same(steps(other, 1, 3), wanted, 0)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert set(model.state_dict()) == names


def test_programs_go_with_their_module():
    model = small_model()
    steps(model, 1, 2)
    program = weakref.ref(programs(model)[0])
    del model
    gc.collect()
    assert program() is None


def test_mistakes_are_told_as_ever():
    model = small_model()
    steps(model, 2, 2)
    with torch.no_grad():
        with pytest.raises(IndexError):
            model.step(torch.tensor([3, 23]), model.init_state(2))
        with pytest.raises(IndexError):
            model.step(torch.tensor([-1, 2]), model.init_state(2))
        with pytest.raises(SeriatimError, match="has 3 rows"):
            model.step(torch.tensor([1, 2]), model.init_state(3))
        module = build("mamba", dim=16).eval()
        with pytest.raises(SeriatimError, match="shape"):
            module.step(torch.randn(2, 15), module.init_state(2))
        with pytest.raises(SeriatimError, match="state"):
            module.step(torch.randn(2, 16), module.init_state(2)._replace(system=torch.zeros(2, 3, 3)))


def _reads_a_value(x, state, module):
    return (x if float(x.sum()) > 0 else -x), state


def _draws(x, state, module):
    return x + torch.rand_like(x), state


def _changes_its_state(x, state, module):
    return x, state.add_(1)


def _changes_a_parameter(x, state, module):
    module.bias.add_(1)
    return x + module.bias, state


def _counts(x, state, module):
    module.calls = getattr(module, "calls", 0) + 1
    return x * module.calls, state


def _has_no_instruction(x, state, module):
    return x.cumsum(1), state


def _in_double(x, state, module):
    return (x.double() + 1).float(), state


UNSUPPORTED = [
    _reads_a_value,
    _draws,
    _changes_its_state,
    _changes_a_parameter,
    _counts,
    _has_no_instruction,
    _in_double,
]


@pytest.mark.parametrize("function", UNSUPPORTED)
def test_other_steps_stay_themselves(function):
    torch.manual_seed(0)
    found, other = Applied(function), Applied(function)
    other.load_state_dict(found.state_dict())
    torch.manual_seed(1)
    got = steps(found, 2, 4)
    assert programs(found) == [None]
    if function is _draws:
        assert not torch.equal(got[0][0] - random_input(found, 2, 0), got[1][0] - random_input(found, 2, 1))
    elif function is _has_no_instruction:
        with ops.backend("torch"):
            same(got, steps(other, 2, 4), 0)


def test_inside_a_step_that_cannot_the_parts_that_can_have_programs():
    model = LanguageModel(23, 16, ["mamba", {"mixer": "attention", "heads": 2}]).eval()
    found = steps(model, 1, 5)
    assert programs(model) == []
    assert has_program(model.stack.blocks[0].mixer)
    with ops.backend("torch"):
        same(found, steps(model, 1, 5))
