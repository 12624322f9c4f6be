"""What is kept of a module's parameters is never stale."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from seriatim import build
from seriatim.core.derived import Derived


class Scale(nn.Module):
    """Counts how often it computes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("offset", torch.zeros(3))
        self.rate, self.calls = 1.0, []

    def compute(self):
        self.calls.append(1)
        return (self.weight * self.rate + self.offset,)


def changed(module, how):
    if how == "in place":
        module.weight.add_(1)
    elif how == "behind autograd's back":
        module.weight.data.add_(1)
    elif how == "learned":  # PyTorch counts no changes by an optimiser that is fused
        module.weight.grad = torch.ones(3)
        torch.optim.AdamW([module.weight], 0.1, fused=True).step()
    elif how == "replaced":
        module.weight = nn.Parameter(torch.full((3,), 7.0))
    elif how == "a buffer":
        module.offset.add_(1)
    elif how == "an attribute":
        module.rate = 2.0
    elif how == "a dtype":
        module.double()
    elif how == "swapped twice":  # the memory of the first is free again, and may be taken
        for _ in range(2):
            module.weight.data = module.weight.data + 1


@torch.no_grad()
@pytest.mark.parametrize(
    "how",
    [
        "in place",
        "behind autograd's back",
        "learned",
        "replaced",
        "swapped twice",
        "a buffer",
        "an attribute",
        "a dtype",
    ],
)
def test_is_found_again_after_a_change(how):
    derived, module = Derived(tuple), Scale()
    before = derived(module.compute)
    assert derived(module.compute) is before
    assert len(module.calls) == 1
    changed(module, how)
    if how == "behind autograd's back":  # the one change that only a segment shows
        derived.forget()
    (found,) = derived(module.compute)
    assert torch.equal(found, module.weight * module.rate + module.offset)
    assert found.dtype == module.weight.dtype
    assert len(module.calls) == 2
    assert how == "a dtype" or found is before[0]  # a program may read it where it lies


def test_nothing_is_kept_where_gradients_are_wanted():
    derived, module = Derived(tuple), Scale()
    with torch.no_grad():
        derived(module.compute)
    assert derived(module.compute)[0].requires_grad
    assert len(module.calls) == 2


@torch.no_grad()
def test_inside_transforms_and_copies():
    derived, module = Derived(tuple), Scale()
    derived(module.compute)
    module.derived = derived
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other.weight.add_(1)
        assert torch.equal(other.derived(other.compute)[0], other.weight)
    assert torch.equal(derived(module.compute)[0], module.weight)

    doubled = torch.vmap(lambda z: z * derived(module.compute)[0])(torch.full((2, 3), 2.0))
    assert torch.equal(doubled, torch.full((2, 3), 2.0))
    assert len(module.calls) == 2


@torch.no_grad()
def test_parameters_are_never_written_to():
    """LSSL's C is one of the tensors that are kept."""
    mixer, x = build("lssl", dim=4, state_size=8), torch.randn(1, 1, 4)
    mixer(x)
    before = {name: value.clone() for name, value in mixer.state_dict().items()}
    found = torch.func.functional_call(mixer, {name: value + 1 for name, value in before.items()}, (x,))[0]
    assert not torch.equal(found, mixer(x)[0])
    assert all(torch.equal(value, before[name]) for name, value in mixer.state_dict().items())


@torch.no_grad()
def test_a_module_goes_as_soon_as_nobody_needs_it():
    module = Scale()
    module.derived = Derived(tuple)
    module.derived(module.compute)
    seen = weakref.ref(module)
    gc.disable()
    try:
        del module
        assert seen() is None
    finally:
        gc.enable()


class Forgetful(Derived):
    """Another thread forgets what was seen as soon as it was looked at."""

    @property
    def _seen(self):
        found, self.seen = vars(self).get("seen"), None
        return found

    @_seen.setter
    def _seen(self, value):
        self.seen = value


@torch.no_grad()
def test_another_thread_may_forget_meanwhile():
    derived, module = Forgetful(tuple), Scale()
    for _ in range(3):
        assert torch.equal(derived(module.compute)[0], module.weight)
